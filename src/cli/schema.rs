//! `saltern schema`: the JSON Schema of the configuration, for editors and for Salt's renderers.

use super::{Failure, print};
use crate::config;

pub(super) fn schema() -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(config::schema().as_value())
        .map_err(|error| Failure::Running(format!("cannot write the schema: {error}")))?;
    print(&(text + "\n"))
}
