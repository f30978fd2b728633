//! Logins at stores that are reached over HTTP.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::client::owned_headers;
use crate::units::Secret;

/// The login: `{user, password}` for HTTP's basic authentication, `{token}` for a bearer token, or
/// `{header, value}` for a header of the store's own.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    /// The user.
    user: Option<String>,
    /// The user's password.
    password: Option<Secret>,
    /// A token, sent as `Authorization: Bearer TOKEN`.
    token: Option<Secret>,
    /// The name of a header with a key, such as `X-Api-Key`.
    header: Option<String>,
    /// The value of `header`.
    value: Option<Secret>,
}

/// The headers of the login. None by default.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written")]
pub(crate) struct Auth(Vec<(HeaderName, HeaderValue)>);

impl Auth {
    /// HTTP's basic authentication.
    fn basic(user: &str, password: Option<&Secret>) -> Result<Self, String> {
        if user.contains(':') {
            return Err(
                "a `user` cannot contain `:`, because HTTP puts one between user and password"
                    .to_owned(),
            );
        }
        let password = password.map_or("", Secret::expose);
        let encoded = STANDARD.encode(format!("{user}:{password}"));
        Auth::default().with("authorization", &Secret::new(format!("Basic {encoded}")))
    }

    /// One header more.
    pub(crate) fn with(mut self, name: &str, value: &Secret) -> Result<Self, String> {
        let name = owned_headers::free(name)?.ok_or("`header` is not the name of a header")?;
        let mut value = HeaderValue::from_bytes(value.expose().as_bytes()).map_err(|_| {
            format!("the value for the header {name} has a line feed or another control character")
        })?;
        value.set_sensitive(true);
        self.0.push((name, value));
        Ok(self)
    }

    /// True if there is no login.
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The names of the headers.
    pub(crate) fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter().map(|(name, _)| name)
    }

    /// The headers that go with every request.
    pub(crate) fn headers(&self) -> HeaderMap {
        self.0.iter().cloned().collect()
    }
}

/// Shows the names of the headers alone.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl TryFrom<Written> for Auth {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { user, password, token, header, value } = written;
        for (key, secret) in [("token", &token), ("value", &value)] {
            if secret.as_ref().is_some_and(|secret| secret.expose().trim().is_empty()) {
                return Err(format!("the `{key}` is empty"));
            }
        }
        match (user, token, header, value) {
            (Some(user), None, None, None) => Auth::basic(&user, password.as_ref()),
            (None, Some(token), None, None) if password.is_none() => {
                let token = Secret::new(format!("Bearer {}", token.expose()));
                Auth::default().with(AUTHORIZATION.as_str(), &token)
            }
            (None, None, Some(header), Some(value)) if password.is_none() => {
                Auth::default().with(&header, &value)
            }
            _ => Err("write one of {user, password}, {token} and {header, value}".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::Node;

    fn read(yaml: &str) -> Result<Auth, String> {
        Node::parse(yaml).unwrap().read().map_err(|problem| problem.to_string())
    }

    fn sent(yaml: &str) -> Vec<(String, String)> {
        let headers = read(yaml).unwrap().headers();
        let texts = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), String::from_utf8(value.as_bytes().to_vec()).unwrap())
        };
        headers.iter().map(texts).collect()
    }

    #[test]
    fn each_form_becomes_a_header() {
        let header = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        for (yaml, expected) in [
            // The example of RFC 7617.
            (
                "{user: Aladdin, password: open sesame}",
                header("authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
            ),
            ("{user: a}", header("authorization", "Basic YTo=")),
            ("{user: ab, password: ä}", header("authorization", "Basic YWI6w6Q=")),
            ("{token: abc}", header("authorization", "Bearer abc")),
            ("{header: X-Api-Key, value: abc}", header("x-api-key", "abc")),
        ] {
            assert_eq!(sent(yaml), expected, "{yaml}");
        }
    }

    #[test]
    fn half_a_form_or_two_are_refused() {
        for wrong in [
            "{}",
            "{password: p}",
            "{user: u, token: t}",
            "{token: t, password: p}",
            "{header: X-Api-Key}",
            "{value: v}",
        ] {
            assert!(read(wrong).unwrap_err().contains("one of"), "{wrong}");
        }
        assert!(read("{user: 'a:b', password: p}").unwrap_err().contains('`'));
        assert!(read("{header: 'a b', value: v}").unwrap_err().contains("`header`"));
        let owned = read("{header: Content-Length, value: '5'}").unwrap_err();
        assert!(owned.contains("`content-length` cannot be set here"), "{owned}");
        assert_eq!(read("{token: ''}").unwrap_err(), "the `token` is empty");
        assert_eq!(read("{header: X-Key, value: ' '}").unwrap_err(), "the `value` is empty");
    }

    #[test]
    fn no_secret_is_shown() {
        let auth = read("{header: X-Api-Key, value: hunter2}").unwrap();
        assert_eq!(format!("{auth:?}"), "{\"x-api-key\"}");
        assert!(format!("{:?}", auth.headers()).contains("Sensitive"));
        let error = read("{token: \"hunter2\\n\"}").unwrap_err();
        assert!(error.contains("control character") && !error.contains("hunter2"), "{error}");
    }
}
