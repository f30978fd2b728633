//! The JSON Schema of one type, and the keys that it says there are.

use schemars::{JsonSchema, Schema, SchemaGenerator};

/// Writes definitions out.
fn generator() -> SchemaGenerator {
    let settings = schemars::generate::SchemaSettings::default().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator()
}

/// The schema of one type, its definitions written out.
pub(super) fn schema_of<T: JsonSchema>() -> Schema {
    generator().into_root_schema_for::<T>()
}

/// The keys of the options that every entry of a section takes.
pub(super) fn keys_of<O: JsonSchema>() -> Vec<String> {
    keys(&schema_of::<O>())
}

/// The keys below a kind.
pub(super) fn keys_of_kind(schema: fn(&mut SchemaGenerator) -> Schema) -> Vec<String> {
    keys(&schema(&mut generator()))
}

fn keys(schema: &Schema) -> Vec<String> {
    let properties = schema.get("properties").and_then(|properties| properties.as_object());
    properties.map(|properties| properties.keys().cloned().collect()).unwrap_or_default()
}
