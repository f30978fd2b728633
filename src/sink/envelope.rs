//! All of a request but its body: URL, headers, signature and key, for sinks that send requests of
//! their users' making.

use std::collections::BTreeMap;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::contract::WriteError;
use crate::client::auth::Auth;
use crate::client::http::{self, Client};
use crate::client::owned_headers;
use crate::client::signature::Signature;
use crate::event::escape::Place;
use crate::event::template::{Part, Template, Values};
use crate::event::url_template::UrlTemplate;
use crate::sync::blocking;

/// The parts of a sink's requests besides their bodies.
#[derive(Clone)]
pub(super) struct Envelope {
    pub(super) url: UrlTemplate,
    pub(super) method: Verb,
    pub(super) headers: Headers,
    pub(super) content_type: ContentType,
    pub(super) signature: Option<Signature>,
    pub(super) gzip: bool,
}

/// A request's method, such as `PUT`. It is sent in capitals.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub(super) struct Verb(Method);

impl Verb {
    pub(super) fn post() -> Self {
        Verb(Method::POST)
    }
}

impl TryFrom<String> for Verb {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed = Method::from_bytes(text.to_ascii_uppercase().as_bytes());
        Ok(Verb(parsed.map_err(|_| "this is not the name of a method, such as `PUT`")?))
    }
}

/// The type of a body.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub(super) struct ContentType {
    written: HeaderValue,
    /// The place that values in such a body are escaped for.
    pub(super) place: Place,
}

impl ContentType {
    pub(super) fn json() -> Self {
        let written = HeaderValue::from_static("application/json");
        ContentType { written, place: Place::Json }
    }

    /// Fails if this text, made by a template for some values, is no body of this type.
    pub(super) fn takes(&self, example: &str) -> Result<(), String> {
        let written = self.written.to_str().unwrap_or_default().to_lowercase();
        if !written.split(';').next().is_some_and(|kind| kind.contains("json")) {
            return Ok(());
        }
        // `jsonl` and `json-seq` are texts of JSON one after the other.
        let texts = serde_json::Deserializer::from_str(example).into_iter::<IgnoredAny>();
        texts.collect::<Result<Vec<_>, _>>().map(drop).map_err(|error| {
            let help = "a field within a text stands between quotes: \"{kind}\"";
            format!("`template` does not give JSON: {error}; {help}")
        })
    }
}

impl TryFrom<String> for ContentType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let written = HeaderValue::from_str(&text);
        let written =
            written.map_err(|_| "the type of a body has characters that no header holds")?;
        Ok(ContentType { written, place: Place::in_body(&text) })
    }
}

/// Headers, whose values are templates.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(try_from = "BTreeMap<String, Template>")]
#[schemars(with = "BTreeMap<String, Template>")]
pub(super) struct Headers(Vec<(HeaderName, Template)>);

impl TryFrom<BTreeMap<String, Template>> for Headers {
    type Error = String;

    fn try_from(headers: BTreeMap<String, Template>) -> Result<Self, String> {
        let header = |(name, template): (String, Template)| {
            let parsed = owned_headers::free(&name)?;
            let parsed = parsed.ok_or_else(|| format!("`{name}` is not the name of a header"))?;
            let is_wrong = |part: &Part| match part {
                Part::Text(text) => HeaderValue::from_bytes(text.as_bytes()).is_err(),
                Part::Field(_) => false,
            };
            if template.parts().iter().any(is_wrong) {
                return Err(format!(
                    "the value for the header `{name}` has a line feed or another control character"
                ));
            }
            Ok((parsed, template))
        };
        let mut headers = headers.into_iter().map(header).collect::<Result<Vec<_>, String>>()?;
        headers.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        match headers.windows(2).find(|pair| matches!(pair, [a, b] if a.0 == b.0)) {
            Some([(name, _), ..]) => Err(format!("the header `{name}` is here twice")),
            _ => Ok(Headers(headers)),
        }
    }
}

impl Headers {
    /// Fails if a header of the login, or of the signature, is among them.
    pub(super) fn leave_alone(
        &self,
        auth: &Auth,
        signature: Option<&Signature>,
    ) -> Result<(), String> {
        let others = auth.names().map(|name| (name, "auth"));
        let others = others.chain(signature.map(|signature| (signature.name(), "signature")));
        for (other, key) in others {
            if self.0.iter().any(|(name, _)| name == other) {
                return Err(format!(
                    "`{key}` sets the header `{other}` already; remove it from `headers`"
                ));
            }
        }
        Ok(())
    }
}

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

impl Envelope {
    /// True if it is the same for all events.
    pub(super) fn is_fixed(&self) -> bool {
        let Headers(headers) = &self.headers;
        self.url.is_fixed() && headers.iter().all(|(_, template)| template.fixed().is_some())
    }

    /// Sends this body. `key` is the same when it comes again.
    pub(super) async fn send(
        &self,
        client: &Client,
        doing: &'static str,
        values: &Values<'_>,
        key: &str,
        body: Vec<u8>,
    ) -> Result<(), WriteError> {
        let wrong = |cause: String| WriteError::reject("making a request of an event", cause);
        let header = |text: &str| {
            HeaderValue::from_bytes(text.as_bytes()).map_err(|error| wrong(error.to_string()))
        };
        let url = self.url.url(values).map_err(wrong)?;
        let body = match self.gzip {
            true => blocking(|| http::gzip(&body)),
            false => Bytes::from(body),
        };
        let mut request = client
            .request(self.method.0.clone(), url)
            .body("application/json", body.clone())
            .header(CONTENT_TYPE, self.content_type.written.clone())
            .header(IDEMPOTENCY_KEY, header(key)?);
        if self.gzip {
            request = request.header(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        for (name, template) in &self.headers.0 {
            let text = template.render_with(values, |value| Place::Header.escape(value));
            request = request.header(name.clone(), header(&text)?);
        }
        if let Some(signature) = &self.signature {
            let (name, value) = signature.of(&body);
            request = request.header(name, value);
        }
        let answer = request.send().await.and_then(|answer| answer.checked(http::usual));
        answer.map(drop).map_err(|error| WriteError::over_http(doing, error))
    }
}
