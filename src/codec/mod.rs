//! The encodings of payloads and texts.

pub(crate) mod hex;
pub mod json;
mod json_string;
pub mod lenient_json;
pub mod msgpack;
pub(crate) mod python;
pub(crate) mod visible;
