//! The JSON Schema of the configuration.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::json;

use super::general::General;
use super::null::{NULL_IN_GENERAL, NULL_IN_SINK};
use super::schema_of_type::schema_of;
use super::sink_entry::SinkOptions;
use super::source_entry::SourceOptions;
use crate::sink;
use crate::source;

/// The JSON Schema of the whole configuration.
pub fn schema() -> Schema {
    let mut generator = SchemaGenerator::default();
    let sources =
        source::registry::KINDS.iter().map(|kind| (kind.name, (kind.schema)(&mut generator)));
    let sources = entry_schema::<SourceOptions>(sources.collect(), &[]);
    let sinks = sink::registry::KINDS.iter().map(|kind| (kind.name, (kind.schema)(&mut generator)));
    let sinks = entry_schema::<SinkOptions>(sinks.collect(), &NULL_IN_SINK);
    let mut schema = schema_of::<General>();
    if let Some(properties) = schema.get_mut("properties").and_then(|p| p.as_object_mut()) {
        properties
            .insert("sources".into(), json!({"type": "object", "additionalProperties": sources}));
        properties.insert("sinks".into(), json!({"type": "object", "additionalProperties": sinks}));
    }
    allow_null(&mut schema, &NULL_IN_GENERAL);
    let definitions = generator.take_definitions(true);
    if let Some(defs) = schema.ensure_object().entry("$defs").or_insert(json!({})).as_object_mut() {
        defs.extend(definitions);
    }
    schema.insert("title".into(), json!("saltern configuration"));
    schema.insert("required".into(), json!(["sources", "sinks"]));
    schema
}

/// An entry: the options of all kinds, and exactly one kind.
fn entry_schema<O: JsonSchema>(
    kinds: Vec<(&'static str, Schema)>,
    nullable: &[&str],
) -> serde_json::Value {
    let mut schema = schema_of::<O>();
    allow_null(&mut schema, nullable);
    let one_of: Vec<_> = kinds.iter().map(|(name, _)| json!({"required": [name]})).collect();
    if let Some(properties) = schema.get_mut("properties").and_then(|p| p.as_object_mut()) {
        for (name, kind) in kinds {
            properties.insert(name.to_owned(), json!({"anyOf": [kind, {"type": "null"}]}));
        }
    }
    schema.insert("oneOf".into(), json!(one_of));
    schema.into()
}

/// Lets these keys be `null` too.
fn allow_null(schema: &mut Schema, keys: &[&str]) {
    for key in keys {
        let read = schema.get_mut("properties").and_then(|all| all.get_mut(*key));
        if let Some(read) = read {
            let description = read.get("description").cloned();
            let one = std::mem::take(read);
            *read = json!({"description": description, "anyOf": [one, {"type": "null"}]});
        }
    }
}
