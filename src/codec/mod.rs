//! How payloads and texts are written down.

pub mod hex;
pub mod json;
pub mod lenient_json;
pub mod msgpack;
pub mod python;
pub mod visible;
