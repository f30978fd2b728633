//! The JSON Schema of one type, and the keys that it says there are.

use schemars::{JsonSchema, Schema};

/// The schema of one type, its definitions written out.
pub(super) fn schema_of<T: JsonSchema>() -> Schema {
    let settings = schemars::generate::SchemaSettings::default().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>()
}

/// The keys of the options that every entry of a section takes.
pub(super) fn keys_of<O: JsonSchema>() -> Vec<String> {
    let schema = schema_of::<O>();
    let properties = schema.get("properties").and_then(|properties| properties.as_object());
    properties.map(|properties| properties.keys().cloned().collect()).unwrap_or_default()
}
