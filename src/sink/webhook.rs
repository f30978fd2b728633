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
//! | `digest` | one for all events of a while | counts, and a list of events; see "Digests" |
//!
//! `url` and `headers` are templates too if a request is one event's. A value of an event is
//! escaped for its place. In the URL it is one segment of the path, or a value of the query. In a
//! header its control characters are made visible. In a body it is escaped as `content_type` asks
//! for: JSON, and YAML, JavaScript and GraphQL between double quotes; `x-www-form-urlencoded`;
//! HTML and XML. In any other its control characters are made visible. In URLs and headers a value
//! is cut at 512 bytes. A URL has `_` for a value that the event does not have; headers and bodies
//! have nothing.
//!
//! | field | is |
//! |---|---|
//! | `{minion}` | the minion that the event is about |
//! | `{fun}` | the function, or those of a job of several with commas between |
//! | `{jid}` | the job's id |
//! | `{outcome}` | `worked`, `failed` or `unknown` |
//! | `{kind}` | the event's kind, such as `job_return` |
//! | `{tag}` | the event's tag |
//! | `{master}` | the master's id |
//! | `{date:%Y-%m-%d}` | the time at which saltern read the event (UTC), as `strftime` has it |
//!
//! Each request has the header `Idempotency-Key`, the id of the event, batch or digest. It is the
//! same when the request comes again.
//!
//! With `signature` a header holds the HMAC-SHA256 of the body as it is sent, in hexadecimal
//! digits, as GitHub writes it.
//!
//! # Digests
//!
//! With `body: digest` events are gathered, and sent together:
//!
//! ```yaml
//! sources:
//!   bus: {salt_bus: {}}
//! sinks:
//!   chat:
//!     webhook:
//!       url: https://chat.example.com/hooks/salt
//!       body: digest
//!       digest:
//!         after: 5m
//!         template: '{{"text": "{count} returns failed\n{lines}"}}'
//!     filter: {kinds: [job_return], outcome: [failed]}
//! ```
//!
//! A digest is `{"count": …, "dropped": …, "by": {…}, "events": […]}`, or the text of
//! `digest.template`. It says of each event its `time`, `tag`, `kind`, `minion`, `fun`, `jid` and
//! `outcome`, and in `by` how many events there are of each kind, outcome, function and minion.
//! Values are cut at 512 bytes. An event is settled once it is in the digest's file,
//! `STATE_DIR/digests/SINK.db`, which survives a stop and a crash. `retry.give_up_after` and
//! `spill.max_age` are about the way into that file; a digest is sent until it is accepted.
//! `saltern_sink_gathered_events` is the number of events that wait there. At a clean stop,
//! and when a reload changes the sink, they are sent at once if the receiver takes them, and else
//! later.
//!
//! A sink sends at most `max_events` each `interval`: with the defaults 10 events a second. More
//! pile up. Up to 10000 events and 16 MiB wait; the oldest are dropped then, and `dropped` of the
//! next digest counts them. So a digest wants a `filter`. A digest that is refused for good is
//! halved, and an event that is refused alone is dropped and counted too. Such a sink has one
//! writer.
//!
//! # Guarantee
//!
//! A receiver recognises repeats by `Idempotency-Key`. Requests of events go in order, one after
//! the other. The same process does not send events of a batch again that were accepted, unless a
//! reload changes the sink in the middle of the batch.
//!
//! A hook wants news. So an event is tried for an hour and then becomes a dead letter, and an event
//! that has waited on disk for an hour is dropped and counted. A receiver that is to have
//! everything wants `retry: {give_up_after: null}` and `spill: {max_age: null, max_bytes: 4GiB}`.
//!
//! # Failures
//!
//! * 2xx → the events are settled → nothing
//! * 400, 413, 414, 422, 431 → the event is a dead letter; a list is halved first →
//!   `saltern_sink_rejected_events_total`
//! * 401 → the sink is parked → `/readyz` says no
//! * any other answer, or none → it is sent again later, after `Retry-After` (up to an hour) →
//!   `saltern_sink_retries_total`

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::contract::{ConnectError, Context, Defaults, Once, Sink, WriteError};
use super::envelope::{ContentType, Envelope, Headers, Verb};
use super::http;
use super::notify::digest::{DigestConfig, Digests};
use super::one_by_one::OneByOne;
use crate::client::auth::Auth;
use crate::client::http::Client;
use crate::client::signature::Signature;
use crate::client::tls::TlsConfig;
use crate::delivery::retry::RetryConfig;
use crate::event::batch::{Batch, BatchLimits, Entry};
use crate::event::template::{Template, Values};
use crate::event::url_template::UrlTemplate;
use crate::queue::config::SpillConfig;
use crate::sync::blocking;
use crate::units::{ByteSize, Span};

/// A URL that takes events.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// The URL of requests, a template: `https://example.com/hooks/{minion}`. Scheme, host and port
    /// are the same for all events.
    url: UrlTemplate,
    /// The request's method. Default: `POST`.
    #[serde(default = "Verb::post")]
    method: Verb,
    /// Headers besides those that saltern sets; their values are templates. Default: none.
    #[serde(default)]
    headers: Headers,
    /// The content of a request. Default: `events`.
    #[serde(default)]
    body: Body,
    /// The text of the body, if `body` is `template`. A literal brace is written twice: `{{"on":
    /// "{minion}"}}`. Default: none.
    template: Option<Template>,
    /// The settings of digests, if `body` is `digest`. Default: as its keys say.
    digest: Option<DigestConfig>,
    /// The body's type. Default: `application/json`.
    #[serde(default = "ContentType::json")]
    content_type: ContentType,
    /// Proves to the receiver who the body is from. Default: none.
    signature: Option<Signature>,
    /// The login at the receiver. Default: none.
    #[serde(default)]
    auth: Auth,
    /// Compress bodies. Few receivers take that. Default: false.
    #[serde(default)]
    gzip: bool,
    /// The time that the answer to a request may take. Should be less than the sink's
    /// `retry.timeout`. Default: 10s.
    #[serde(default = "ten_seconds", deserialize_with = "crate::units::positive")]
    timeout: Span,
    /// TLS, for a URL that begins with `https://`.
    #[serde(default)]
    tls: TlsConfig,
}

/// The content of a request.
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
    /// The facts of several events.
    Digest,
}

fn ten_seconds() -> Span {
    Span::seconds(10)
}

/// The settings, checked.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Settings")]
#[schemars(with = "Settings")]
pub(super) struct Config {
    envelope: Envelope,
    holds: Holds,
    auth: Auth,
    timeout: Duration,
    tls: TlsConfig,
}

/// The content of a request, with the template of a text.
#[derive(Clone)]
enum Holds {
    /// A batch.
    Batch,
    /// An event.
    Event,
    /// This text, for an event.
    Text(Template),
    /// Several events.
    Digest(DigestConfig),
}

impl TryFrom<Settings> for Config {
    type Error = String;

    fn try_from(settings: Settings) -> Result<Self, String> {
        let Settings { url, method, headers, content_type, signature, gzip, auth, tls, .. } =
            settings;
        let holds = match (settings.body, settings.template, settings.digest) {
            (Body::Template, Some(text), None) => Holds::Text(text),
            (Body::Template, None, _) => return Err("`body: template` needs a `template`".into()),
            (Body::Digest, None, digest) => Holds::Digest(digest.unwrap_or_default()),
            (Body::Digest, Some(_), _) => return Err("write `digest.template` for a digest".into()),
            (_, _, Some(_)) => return Err("`digest` needs `body: digest`".into()),
            (_, Some(_), None) => return Err("`template` needs `body: template`".into()),
            (Body::Event, None, None) => Holds::Event,
            (Body::Events, None, None) => Holds::Batch,
        };
        match &holds {
            Holds::Text(text) => {
                // It must be no number: a minion's text outside of quotes would be read as JSON.
                content_type.takes(&text.render_with(&Values::none(), |_| "a".to_owned()))?;
            }
            Holds::Digest(digest) => content_type.takes(&digest.example(content_type.place))?,
            Holds::Batch | Holds::Event => {}
        }
        headers.leave_alone(&auth, signature.as_ref())?;
        let envelope = Envelope { url, method, headers, content_type, signature, gzip };
        if matches!(holds, Holds::Batch | Holds::Digest(_)) && !envelope.is_fixed() {
            let help = "write `body: event` for fields of an event in `url` and `headers`";
            return Err(format!("with this `body` a request holds many events; {help}"));
        }
        Ok(Config { envelope, holds, auth, timeout: settings.timeout.0, tls })
    }
}

/// Connections to the receiver.
pub(super) struct Webhook {
    requests: Requests,
    /// The events that are gathered, where a request is a digest.
    digests: Option<Digests>,
    /// The time after which a write begins no further request.
    begins_for: Duration,
    /// The receiver refuses our login, so nothing more is sent.
    is_refused: bool,
}

struct Requests {
    config: Config,
    client: Client,
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
    type Prepared = ();

    fn check(config: &Config, limit: Duration) -> Vec<String> {
        let unused = config.tls.unused(config.envelope.url.is_https());
        unused.into_iter().chain(http::late(config.timeout, limit)).collect()
    }

    async fn connect(config: &Config, context: &Context) -> Result<Self, ConnectError> {
        let tls = config.envelope.url.is_https().then_some(&config.tls);
        let client = blocking(|| Client::new(tls, &config.auth, config.timeout));
        let client =
            client.map_err(|error| ConnectError::fatal("setting up connections", error))?;
        let digests = match &config.holds {
            Holds::Digest(digest) => Some(blocking(|| Digests::open(digest, context))?),
            Holds::Batch | Holds::Event | Holds::Text(_) => {
                blocking(|| Digests::say_left_behind(context));
                reach(&client, &config.envelope).await?;
                None
            }
        };
        // The last request still has time for its answer.
        let begins_for = context.limit.saturating_sub(config.timeout + Duration::from_secs(1));
        let requests = Requests { config: config.clone(), client };
        Ok(Webhook { requests, digests, begins_for, is_refused: false })
    }

    async fn write(&mut self, batch: &Batch, _: Option<()>) -> Result<(), WriteError> {
        if let Some(digests) = &mut self.digests {
            return blocking(|| digests.gather(batch));
        }
        if matches!(self.requests.config.holds, Holds::Batch) {
            let list = blocking(|| batch.json_list());
            return self.requests.send(&Values::none(), &batch.id().to_string(), list).await;
        }
        let mut events = OneByOne::new(SENDING, batch.len(), self.begins_for);
        for (place, entry) in batch.entries().enumerate() {
            events.begin(place)?;
            events.note(place, self.requests.send_event(&entry).await)?;
        }
        events.end()
    }

    fn due(&self) -> Option<Instant> {
        self.digests.as_ref()?.due()
    }

    async fn tick(&mut self) -> Result<(), WriteError> {
        let Some(digests) = &mut self.digests else { return Ok(()) };
        let place = self.requests.config.envelope.content_type.place;
        let Some(due) = blocking(|| digests.seal(place))? else { return Ok(()) };
        let sent = self.requests.send(&Values::none(), &due.key, due.body).await;
        self.is_refused = matches!(sent, Err(WriteError::Fatal { .. }));
        blocking(|| digests.settle(sent))
    }

    /// Sends the gathered events. Nothing says when there will be a sink of this name again.
    async fn close(mut self) -> Result<(), WriteError> {
        if let Some(digests) = &mut self.digests {
            digests.hurry();
        }
        while self.due().is_some() {
            let sent = if self.is_refused { Ok(()) } else { self.tick().await };
            if self.is_refused || sent.is_err() {
                self.digests.iter().for_each(Digests::say_left);
                return sent;
            }
        }
        Ok(())
    }

    fn max_writers(config: &Config) -> u16 {
        match config.holds {
            Holds::Digest(_) => 1,
            Holds::Batch | Holds::Event | Holds::Text(_) => Self::DEFAULTS.max_writers,
        }
    }
}

/// Finds out whether the receiver is there. What it makes of a request only an event can tell.
async fn reach(client: &Client, envelope: &Envelope) -> Result<(), ConnectError> {
    let server = envelope.url.server();
    let server = server.map_err(|error| ConnectError::fatal("reading the `url`", error))?;
    client.reach(&server).await.map_err(|error| {
        let doing = format!("connecting to {}", server.origin().ascii_serialization());
        ConnectError::retry(doing, error)
    })
}

impl Requests {
    async fn send_event(&self, entry: &Entry<'_>) -> Result<(), WriteError> {
        let values = Values::of(entry);
        let body = match &self.config.holds {
            Holds::Text(text) => {
                let place = self.config.envelope.content_type.place;
                text.render_with(&values, |value| place.escape(value)).into_bytes()
            }
            Holds::Event | Holds::Batch | Holds::Digest(_) => blocking(|| {
                let mut object = Vec::new();
                entry.event.write_object(&mut object);
                object
            }),
        };
        self.send(&values, &entry.event.id().to_string(), body).await
    }

    async fn send(&self, values: &Values<'_>, key: &str, body: Vec<u8>) -> Result<(), WriteError> {
        self.config.envelope.send(&self.client, SENDING, values, key, body).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
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
            ("body: template\ntemplate: '{{\"a\": {minion}}}'", "stands between quotes"),
            ("body: template\ntemplate: '{{\"a\": {fnu}}}'", "did you mean `fun`?"),
            ("headers: {x: '{minion}'}", "a request holds many events"),
            ("headers: {Content-Length: '1'}", "cannot be set here"),
            ("headers: {x-a: \"a\\nb\"}", "the header `x-a` has a line feed"),
            ("auth: {header: Host, value: x}", "cannot be set here"),
            ("auth: {token: ''}", "the `token` is empty"),
            ("timeout: 0", "a time of 0 is not possible here"),
            ("headers: {'a b': c}", "not the name of a header"),
            ("headers: {X-A: b, x-a: c}", "the header `x-a` is here twice"),
            ("headers: {idempotency-key: b}", "cannot be set here"),
            ("headers: {authorization: b}\nauth: {token: c}", "`auth` sets the header"),
            ("headers: {a: b}\nsignature: {secret: c, header: A}", "`signature` sets the header"),
            ("method: 'a b'", "not the name of a method"),
            ("content_type: \"a\\n\"", "the type of a body"),
            ("digest: {after: 1m}", "needs `body: digest`"),
            ("body: digest\ntemplate: x", "`digest.template`"),
            ("body: digest\ndigest: {max_events: 0}", "1 to 1000"),
            ("body: digest\ndigest: {template: '{{\"a\": {lines}}}'}", "does not give JSON"),
        ] {
            let yaml = format!("url: http://h/\n{more}");
            let error = read(&yaml).err().unwrap_or_else(|| panic!("{yaml} is read"));
            assert!(error.contains(says), "{yaml}: {error}");
        }
        assert!(read("{url: 'http://h/{minion}'}").is_err());
        assert!(read("{url: 'http://h/{minion}', body: event}").is_ok());
    }

    /// The requests that came, and the answers: to an event whose id ends so, with this status.
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
        sink_in(more, &context()).await
    }

    async fn sink_in(more: &str, context: &Context) -> (std::sync::Arc<Receiver>, Webhook) {
        let receiver = std::sync::Arc::new(Receiver::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(receive).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let config = read(&format!("url: 'http://{address}{more}")).unwrap();
        (receiver, Webhook::connect(&config, context).await.unwrap())
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
        let (receiver, mut sink) = sink("/all'\nmethod: put\nheaders: {x-a: b}").await;
        let batch = events(&["a", "b"]);
        sink.write(&batch, None).await.unwrap();
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
        sink.write(&events(&[minion]), None).await.unwrap();
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
        let WriteError::Partly(partly) = sink.write(&batch, None).await.unwrap_err() else {
            panic!("it is not partly stored");
        };
        assert_eq!(partly.refused.iter().map(|refusal| refusal.place).collect::<Vec<_>>(), [1]);
        let again = partly.again.unwrap();
        assert_eq!(again.places, BTreeSet::from([2, 3]));
        sink.write(&batch.part(&again.places), None).await.unwrap();
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
    async fn a_digest_whose_login_is_refused_is_not_sent_again_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let context = Context { state_dir: folder.path().into(), ..context() };
        let more = "/a'\nbody: digest\ndigest: {after: 0s}";
        for (status, left) in [(401, 1), (503, 0)] {
            let (receiver, mut sink) = sink_in(more, &context).await;
            *receiver.answers.lock().unwrap() = vec![("a", status), ("a", status)];
            sink.write(&events(&[&status.to_string()]), None).await.unwrap();
            sink.tick().await.unwrap_err();
            // Whatever else was wrong may have passed by now.
            assert_eq!(sink.close().await.is_ok(), status == 401);
            assert_eq!(receiver.answers.lock().unwrap().len(), left, "{status}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_means_the_usual() {
        for (status, label) in [(503, "retry"), (401, "fatal"), (400, "partly"), (404, "retry")] {
            let (receiver, mut sink) = sink("/{minion}'\nbody: event").await;
            receiver.answers.lock().unwrap().push(("a", status));
            assert_eq!(
                sink.write(&events(&["a"]), None).await.unwrap_err().label(),
                label,
                "{status}"
            );
        }
    }
}
