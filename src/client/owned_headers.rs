//! Headers that follow from a request, and that no configuration sets.

use reqwest::header::HeaderName;

const OWNED: [&str; 7] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "transfer-encoding",
];

/// The header of this name, which is not one that follows from the request. `None` if there can be
/// no such header.
pub(crate) fn free(name: &str) -> Result<Option<HeaderName>, String> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if OWNED.contains(&name.as_str()) => {
            Err(format!("the header `{name}` cannot be set here; it follows from the request"))
        }
        Ok(name) => Ok(Some(name)),
        Err(_) => Ok(None),
    }
}
