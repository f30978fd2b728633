//! `webhook`: sends events to any URL, as the body of a request.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   bus: {salt_bus: {}}
//! sinks:
//!   chat:
//!     webhook:
//!       url: https://chat.example.com/hooks/salt
//!       body: template
//!       template: '{{"text": "{fun} {outcome} on {minion}"}}'
//!     filter: {kinds: [job_return], outcome: [failed]}
//! ```
//!
//! # Stored
//!
//! | `body` | requests | what is sent |
//! |---|---|---|
//! | `events` | one a batch | a JSON list of events |
//! | `event` | one an event | `{"tag": …, "data": …}` |
//! | `template` | one an event | the text of `template` |
//!
//! Where a request is one event's, `url` and `headers` are templates too. A value of an event is
//! escaped for its place. In the URL it is one segment of the path, or a value of the query. In a
//! header its control characters are made visible. In a body it is escaped as `content_type` asks
//! for (JSON, `x-www-form-urlencoded`, HTML and XML); in any other its control characters are made
//! visible. In URLs and headers a value is cut at 512 bytes, and `_` stands in a URL for one that
//! the event does not have.
//!
//! Each request has the header `Idempotency-Key`, the id of the event or batch. It is the same when
//! the request comes again.
//!
//! With `signature` a header holds the HMAC-SHA256 of the body as it is sent, in hexadecimal
//! digits, as GitHub writes it.
//!
//! # Guarantee
//!
//! A receiver can tell by `Idempotency-Key` what comes again. Requests of events go in order, one
//! after the other, and what was accepted of a batch is not sent again by the same process.
//!
//! A hook wants news. So an event is tried for an hour and becomes a dead letter then, and what has
//! waited on disk for an hour is dropped and counted. A receiver that is to have everything wants
//! `retry: {give_up_after: null}` and `spill: {max_age: null, max_bytes: 4GiB}`.
//!
//! # Failures
//!
//! * 2xx → the events are settled → nothing
//! * 400, 413, 414, 422, 431 → the event is a dead letter; a list is halved first →
//!   `saltern_sink_rejected_events_total`
//! * 401 → the sink is parked → `/readyz` says no
//! * any other answer, or none → it is sent again later, after `Retry-After` if there is one →
//!   `saltern_sink_retries_total`

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::contract::{
    Again, ConnectError, Context, Defaults, Once, Partly, Refusal, Sink, WriteError,
};
use crate::client::auth::Auth;
use crate::client::http::{self, Client};
use crate::client::signature::Signature;
use crate::client::tls::TlsConfig;

use crate::delivery::retry::RetryConfig;
use crate::event::EventKind;
use crate::event::batch::{Batch, BatchLimits, Entry};
use crate::event::escape::Place;
use crate::event::template::{Template, Values};
use crate::event::url_template::UrlTemplate;
use crate::queue::config::SpillConfig;
use crate::sync::blocking;
use crate::units::{ByteSize, Span};

/// A URL that takes events.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Where requests go, a template: `https://example.com/hooks/{minion}`. Scheme, host and port
    /// are the same for all events.
    url: UrlTemplate,
    /// The request's method. Default: `POST`.
    #[serde(default = "post")]
    method: String,
    /// Headers besides those that saltern sets; their values are templates. Default: none.
    #[serde(default)]
    headers: BTreeMap<String, Template>,
    /// What a request holds: the `events` of a batch as a list, one `event`, or the text of
    /// `template` for one event. Default: `events`.
    #[serde(default)]
    body: Body,
    /// The body where that is `template`. A literal brace is written twice: `{{"on": "{minion}"}}`.
    /// Default: none.
    template: Option<Template>,
    /// The body's type. Default: `application/json`.
    #[serde(default = "json")]
    content_type: String,
    /// Proves to the receiver who the body is from. Default: none.
    signature: Option<Signature>,
    /// Who we are. Default: nobody.
    #[serde(default)]
    auth: Auth,
    /// Compress bodies. Few receivers take that. Default: false.
    #[serde(default)]
    gzip: bool,
    /// How long the answer to a request may take. Should be less than the sink's `retry.timeout`.
    /// Default: 10s.
    #[serde(default = "ten_seconds")]
    timeout: Span,
    /// TLS, for a URL that begins with `https://`.
    #[serde(default)]
    tls: TlsConfig,
}

/// What a request holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Body {
    /// A batch, as a JSON list of events.
    #[default]
    Events,
    /// One event: `{"tag": …, "data": …}`.
    Event,
    /// The text of `template`, for one event.
    Template,
}

fn post() -> String {
    "POST".to_owned()
}

fn json() -> String {
    "application/json".to_owned()
}

fn ten_seconds() -> Span {
    Span::seconds(10)
}

/// The settings, checked.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Settings")]
#[schemars(with = "Settings")]
pub(super) struct Config {
    url: UrlTemplate,
    method: Method,
    headers: Vec<(HeaderName, Template)>,
    holds: Holds,
    content_type: HeaderValue,
    signature: Option<Signature>,
    auth: Auth,
    gzip: bool,
    timeout: Duration,
    tls: TlsConfig,
}

/// What a request holds.
#[derive(Clone)]
enum Holds {
    /// A batch.
    Batch,
    /// An event.
    Event,
    /// This text, for an event.
    Text(Template, Place),
}

/// Headers that follow from the request.
const OWNED: [&str; 6] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
];

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

impl TryFrom<Settings> for Config {
    type Error = String;

    fn try_from(settings: Settings) -> Result<Self, String> {
        let Settings { url, signature, auth, gzip, tls, .. } = settings;
        let holds = match (settings.body, settings.template) {
            (Body::Template, Some(text)) => {
                Holds::Text(text, Place::in_body(&settings.content_type))
            }
            (Body::Template, None) => return Err("`body: template` needs a `template`".into()),
            (_, Some(_)) => return Err("`template` needs `body: template`".into()),
            (Body::Event, None) => Holds::Event,
            (Body::Events, None) => Holds::Batch,
        };
        if let Holds::Text(text, Place::Json) = &holds {
            let example = text.render_with(&no_event(), |_| "1".to_owned());
            serde_json::from_str::<serde_json::Value>(&example).map_err(|error| {
                let help = "a field within a text stands between quotes: \"{minion}\"";
                format!("`template` does not give JSON: {error}; {help}")
            })?;
        }
        let is_fixed = |template: &Template| template.fixed().is_some();
        let has_fields = !url.is_fixed() || !settings.headers.values().all(is_fixed);
        if matches!(holds, Holds::Batch) && has_fields {
            let help = "write `body: event` for fields of an event in `url` and `headers`";
            return Err(format!("with `body: events` a request holds many events; {help}"));
        }
        let header = |(name, template): (String, Template)| {
            if OWNED.contains(&name.to_lowercase().as_str()) {
                return Err(format!("the header `{name}` cannot be set here"));
            }
            let parsed = HeaderName::from_bytes(name.as_bytes());
            Ok((parsed.map_err(|_| format!("`{name}` is not the name of a header"))?, template))
        };
        Ok(Config {
            url,
            method: Method::from_bytes(settings.method.as_bytes())
                .map_err(|_| "`method` is not the name of a method, such as `PUT`")?,
            headers: settings.headers.into_iter().map(header).collect::<Result<_, _>>()?,
            holds,
            content_type: HeaderValue::from_str(&settings.content_type)
                .map_err(|_| "`content_type` cannot be the value of a header")?,
            signature,
            auth,
            gzip,
            timeout: settings.timeout.0,
            tls,
        })
    }
}

/// The values of a template that has no fields.
fn no_event() -> Values<'static> {
    Values::of_kind(EventKind::Custom, "")
}

/// Connections to the receiver.
pub(super) struct Webhook {
    config: Config,
    client: Client,
    /// How long a write may go on before it begins no further request.
    begins_for: Duration,
}

const HOUR: Span = Span::seconds(3600);

const SENDING: &str = "sending to the webhook";

impl Sink for Webhook {
    const NAME: &'static str = "webhook";
    const ABOUT: &'static str = "requests to any URL: of a batch, an event, or a text of your own";
    const DEFAULTS: Defaults = Defaults {
        retry: RetryConfig { give_up_after: Some(HOUR), ..RetryConfig::STORE },
        spill: SpillConfig {
            max_age: Some(HOUR),
            max_bytes: ByteSize::mib(256),
            ..SpillConfig::STORE
        },
        ..Defaults::store(BatchLimits::new(100, ByteSize::mib(1), Span::seconds(1)))
    };
    const ONCE: Once = Once::No;
    type Config = Config;

    fn check(config: &Config) -> Vec<String> {
        config.tls.unused(config.url.is_https()).into_iter().collect()
    }

    async fn connect(config: &Config, context: &Context) -> Result<Self, ConnectError> {
        let tls = config.url.is_https().then_some(&config.tls);
        let client = blocking(|| Client::new(tls, &config.auth, config.timeout));
        let client =
            client.map_err(|error| ConnectError::fatal("setting up connections", error))?;
        // The last one still has the time to be answered.
        let begins_for = context.limit.saturating_sub(config.timeout + Duration::from_secs(1));
        Ok(Webhook { config: config.clone(), client, begins_for })
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), WriteError> {
        if !matches!(self.config.holds, Holds::Batch) {
            return self.write_each(batch).await;
        }
        let list = blocking(|| list(batch));
        self.send(&no_event(), &batch.id().to_string(), list).await
    }
}

/// The events as a JSON list.
fn list(batch: &Batch) -> Vec<u8> {
    let mut body = vec![b'['];
    for (place, event) in batch.events().enumerate() {
        if place > 0 {
            body.extend_from_slice(b", ");
        }
        event.write_object(&mut body);
    }
    body.push(b']');
    body
}

impl Webhook {
    /// A request for each event. Ends at the first that may be accepted later.
    async fn write_each(&self, batch: &Batch) -> Result<(), WriteError> {
        let began = Instant::now();
        let mut refused = Vec::new();
        for (place, entry) in batch.entries().enumerate() {
            if place > 0 && began.elapsed() >= self.begins_for {
                let places = (place..batch.len()).collect();
                let again = Some(Again { places, cause: None, after: None });
                return Err(WriteError::Partly(Partly { doing: SENDING.into(), refused, again }));
            }
            let (cause, after) = match self.send_event(&entry).await {
                Ok(()) => continue,
                Err(WriteError::Reject { cause, .. }) => {
                    refused.push(Refusal { place, cause });
                    continue;
                }
                Err(WriteError::Retry { cause, after, .. }) if place > 0 => (cause, after),
                Err(WriteError::Reconnect { cause, .. }) if place > 0 => (cause, None),
                Err(other) => return Err(other),
            };
            let places: BTreeSet<_> = (place..batch.len()).collect();
            let again = Some(Again { places, cause: Some(cause), after });
            return Err(WriteError::Partly(Partly { doing: SENDING.into(), refused, again }));
        }
        match refused.is_empty() {
            true => Ok(()),
            false => Err(WriteError::refused(SENDING, refused)),
        }
    }

    async fn send_event(&self, entry: &Entry<'_>) -> Result<(), WriteError> {
        let values = Values::of(entry);
        let body = match &self.config.holds {
            Holds::Text(text, place) => {
                text.render_with(&values, |value| place.escape(value)).into_bytes()
            }
            Holds::Event | Holds::Batch => blocking(|| {
                let mut object = Vec::new();
                entry.event.write_object(&mut object);
                object
            }),
        };
        self.send(&values, &entry.event.id().to_string(), body).await
    }

    async fn send(&self, values: &Values<'_>, id: &str, body: Vec<u8>) -> Result<(), WriteError> {
        let config = &self.config;
        let wrong = |cause: String| WriteError::reject("making a request of an event", cause);
        let header = |text: String| {
            HeaderValue::from_bytes(text.as_bytes()).map_err(|error| wrong(error.to_string()))
        };
        let url = config.url.url(values).map_err(wrong)?;
        let body = match config.gzip {
            true => blocking(|| http::gzip(&body)),
            false => Bytes::from(body),
        };
        let mut request = self
            .client
            .request(config.method.clone(), url)
            .body("application/json", body.clone())
            .header(CONTENT_TYPE, config.content_type.clone())
            .header(IDEMPOTENCY_KEY, header(id.to_owned())?);
        if config.gzip {
            request = request.header(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        for (name, template) in &config.headers {
            let text = template.render_with(values, |value| Place::Header.escape(value));
            request = request.header(name.clone(), header(text)?);
        }
        if let Some(signature) = &config.signature {
            let (name, value) = signature.of(&body);
            request = request.header(name, value);
        }
        let answer = request.send().await.and_then(|answer| answer.checked(http::usual));
        answer.map(drop).map_err(|error| WriteError::over_http(SENDING, error))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::extract::State;
    use axum::http::{HeaderMap, StatusCode, Uri};

    use super::*;
    use crate::event::Event;
    use crate::sink::testing::{batch, context};
    use crate::yaml::Node;

    fn read(yaml: &str) -> Result<Config, String> {
        Node::parse(yaml).unwrap().read().map_err(|problem| problem.message)
    }

    #[test]
    fn mistakes_are_told_when_the_configuration_is_read() {
        for (more, says) in [
            ("body: template", "needs a `template`"),
            ("template: x", "needs `body: template`"),
            ("body: template\ntemplate: '{{\"a\": {minion}'", "does not give JSON"),
            ("body: template\ntemplate: '{{\"a\": {fnu}}}'", "did you mean `fun`?"),
            ("headers: {x: '{minion}'}", "a request holds many events"),
            ("headers: {Content-Length: '1'}", "cannot be set here"),
            ("headers: {'a b': c}", "not the name of a header"),
            ("method: 'a b'", "not the name of a method"),
            ("content_type: \"a\\n\"", "`content_type`"),
        ] {
            let yaml = format!("url: http://h/\n{more}");
            let error = read(&yaml).err().unwrap_or_else(|| panic!("{yaml} is read"));
            assert!(error.contains(says), "{yaml}: {error}");
        }
        assert!(read("{url: 'http://h/{minion}'}").is_err());
        assert!(read("{url: 'http://h/{minion}', body: event}").is_ok());
    }

    /// What came, and what is answered: to an event whose id ends so, with this status.
    #[derive(Default)]
    struct Receiver {
        came: Mutex<Vec<(String, HeaderMap, String)>>,
        answers: Mutex<Vec<(&'static str, u16)>>,
    }

    async fn receive(
        State(receiver): State<std::sync::Arc<Receiver>>,
        uri: Uri,
        headers: HeaderMap,
        body: String,
    ) -> StatusCode {
        let mut answers = receiver.answers.lock().unwrap();
        let status = match answers.iter().position(|(end, _)| uri.path().ends_with(end)) {
            Some(at) => answers.remove(at).1,
            None => 204,
        };
        if status < 300 {
            receiver.came.lock().unwrap().push((uri.to_string(), headers, body));
        }
        StatusCode::from_u16(status).unwrap()
    }

    /// A receiver, and a sink that sends to it.
    async fn sink(more: &str) -> (std::sync::Arc<Receiver>, Webhook) {
        let receiver = std::sync::Arc::new(Receiver::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(receive).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let config = read(&format!("url: 'http://{address}{more}")).unwrap();
        (receiver, Webhook::connect(&config, &context()).await.unwrap())
    }

    fn events(minions: &[&str]) -> Batch {
        let event = |minion: &&str| {
            let data = serde_json::json!({"id": minion, "fun": "test.ping"});
            Event::new("salt/job/1/ret/x", &rmp_serde::to_vec(&data).unwrap())
        };
        batch(minions.iter().map(event).collect())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_batch_is_a_list() {
        let (receiver, mut sink) = sink("/all'\nmethod: PUT\nheaders: {x-a: b}").await;
        let batch = events(&["a", "b"]);
        sink.write(&batch).await.unwrap();
        let (uri, headers, body) = receiver.came.lock().unwrap().remove(0);
        let list: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((uri.as_str(), list[1]["data"]["id"].as_str()), ("/all", Some("b")));
        assert_eq!(headers["idempotency-key"], batch.id().to_string());
        assert_eq!(
            (&headers["x-a"], &headers["content-type"]),
            (&"b".parse().unwrap(), &"application/json".parse().unwrap())
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_text_of_hostile_values_is_still_json() {
        let more = "/{minion}'\nbody: template\nheaders: {x-minion: '{minion}'}\n\
                    template: '{{\"on\": \"{minion}\"}}'\nsignature: {secret: s}";
        let (receiver, mut sink) = sink(more).await;
        let minion = "../\"}\r\nX: y";
        sink.write(&events(&[minion])).await.unwrap();
        let (uri, headers, body) = receiver.came.lock().unwrap().remove(0);
        assert_eq!(uri, "/..%2F%22%7D%0D%0AX%3A%20y");
        assert_eq!(headers["x-minion"], "../\"}\\r\\nX: y");
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(json, serde_json::json!({"on": minion}));
        assert!(headers["x-hub-signature-256"].to_str().unwrap().starts_with("sha256="));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_accepted_of_a_batch_is_not_sent_again() {
        let (receiver, mut sink) = sink("/{minion}'\nbody: event").await;
        *receiver.answers.lock().unwrap() = vec![("b", 422), ("c", 503)];
        let batch = events(&["a", "b", "c", "d"]);
        let WriteError::Partly(partly) = sink.write(&batch).await.unwrap_err() else {
            panic!("it is not partly stored");
        };
        assert_eq!(partly.refused.iter().map(|refusal| refusal.place).collect::<Vec<_>>(), [1]);
        let again = partly.again.unwrap();
        assert_eq!(again.places, BTreeSet::from([2, 3]));
        sink.write(&batch.part(&again.places)).await.unwrap();
        let came = receiver.came.lock().unwrap();
        assert_eq!(
            came.iter().map(|(uri, ..)| uri.as_str()).collect::<Vec<_>>(),
            ["/a", "/c", "/d"]
        );
        let ids: BTreeSet<_> = came
            .iter()
            .map(|(_, headers, _)| headers["idempotency-key"].to_str().unwrap())
            .collect();
        assert_eq!(ids.len(), 3);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_means_the_usual() {
        for (status, label) in [(503, "retry"), (401, "fatal"), (400, "partly"), (404, "retry")] {
            let (receiver, mut sink) = sink("/{minion}'\nbody: event").await;
            receiver.answers.lock().unwrap().push(("a", status));
            assert_eq!(sink.write(&events(&["a"])).await.unwrap_err().label(), label, "{status}");
        }
    }
}
