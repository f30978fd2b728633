//! A signature of a body, in a header: HMAC-SHA256, as GitHub and many others make it.

use reqwest::header::{HeaderName, HeaderValue};
use ring::hmac;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::client::owned_headers;
use crate::codec::hex::hex;
use crate::units::Secret;

/// Proves to a receiver that a body is from us: a header with the HMAC-SHA256 of the sent body, in
/// hexadecimal digits.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    /// The secret that the receiver knows too.
    secret: Secret,
    /// The header. Default: `X-Hub-Signature-256`.
    #[serde(default = "hub_signature")]
    header: String,
    /// The text before the digits. Default: `sha256=`.
    #[serde(default = "sha256")]
    prefix: String,
}

fn hub_signature() -> String {
    "X-Hub-Signature-256".to_owned()
}

fn sha256() -> String {
    "sha256=".to_owned()
}

/// The key of signatures, and the header that carries them.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written")]
pub(crate) struct Signature {
    header: HeaderName,
    /// The prefix, which is checked to be fit for a header.
    prefix: HeaderValue,
    key: hmac::Key,
}

impl TryFrom<Written> for Signature {
    type Error = String;

    fn try_from(Written { secret, header, prefix }: Written) -> Result<Self, String> {
        if secret.expose().is_empty() {
            return Err("the `secret` is empty".to_owned());
        }
        Ok(Signature {
            header: owned_headers::free(&header)?.ok_or("`header` is not the name of a header")?,
            prefix: HeaderValue::from_str(&prefix)
                .map_err(|_| "`prefix` has characters that no header holds")?,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes()),
        })
    }
}

impl Signature {
    /// The name of the header.
    pub(crate) fn name(&self) -> &HeaderName {
        &self.header
    }

    /// The header for this body.
    pub(crate) fn of(&self, body: &[u8]) -> (HeaderName, HeaderValue) {
        let digits = hex(hmac::sign(&self.key, body).as_ref());
        let value = [self.prefix.as_bytes(), digits.as_bytes()].concat();
        // Both parts can stand in a header, and so can the whole.
        let value = HeaderValue::from_bytes(&value).unwrap_or_else(|_| self.prefix.clone());
        (self.header.clone(), value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::Node;

    /// The example of GitHub's documentation.
    #[test]
    fn it_is_what_github_sends() {
        let yaml = "{secret: \"It's a Secret to Everybody\"}";
        let signature: Signature = Node::parse(yaml).unwrap().read().unwrap();
        let (header, value) = signature.of(b"Hello, World!");
        assert_eq!(header, "x-hub-signature-256");
        assert_eq!(
            value,
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
    }

    #[test]
    fn mistakes_are_told_without_the_secret() {
        for (wrong, says) in [
            ("{secret: ''}", "empty"),
            ("{secret: hunter2, header: 'a b'}", "`header`"),
            ("{secret: hunter2, header: Idempotency-Key}", "cannot be set here"),
            ("{secret: hunter2, prefix: \"a\\n\"}", "`prefix`"),
        ] {
            let read = Node::parse(wrong).unwrap().read::<Signature>();
            let error = read.err().unwrap_or_else(|| panic!("{wrong} is read")).to_string();
            assert!(error.contains(says) && !error.contains("hunter2"), "{error}");
        }
    }
}
