//! HTTP towards any store: one client, with TLS, logins, limits, and the meaning of answers.
//!
//! A kind makes a [`Client`] when it connects and sends a [`Request`] a batch. It gets an
//! [`Answer`]; [`Answer::checked`] makes an [`Error`] of one that is no success, by [`usual`] or by
//! a rule of the kind. An [`Error`] knows its consequence ([`Failed`]).
//!
//! Nothing is sent a second time here, since the engine tries again. No redirect is followed,
//! because it would carry events and credentials to a place that nobody configured. No proxy is
//! used. An answer is read up to [`MOST`] bytes, and only its beginning is shown. The status alone
//! decides on success, unless the kind reads the body.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::redirect::Policy;
use reqwest::{Method, Response, StatusCode};
use rustls::CertificateError;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::client::auth::Auth;
use crate::client::servers::Url;
use crate::client::tls::{TlsConfig, TlsError};
use crate::codec::visible;

/// The time in which a server has to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Idle connections are closed before the server does so. Servers are known to keep them for 3 s at
/// the least, so a request rarely meets a connection that is about to end.
const IDLE: Duration = Duration::from_secs(2);

/// The most that is read of an answer that has to be whole, in bytes.
const MOST: usize = 16 << 20;

/// The most that is read of any other answer, in bytes.
const MOST_OF_A_BEGINNING: usize = 64 << 10;

/// The most of an answer that an error shows, in bytes.
const SHOWN: usize = 300;

/// The longest that a server may make us wait with `Retry-After`.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Connections to the servers of one sink. They end when it is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    inner: reqwest::Client,
    limit: Duration,
    /// Headers that say who we are.
    auth: Arc<HeaderMap>,
}

impl Client {
    /// A client without connections. Reads the files of `tls`, so it blocks; with `None` there is
    /// no TLS. `limit` is the time for one request, from its first byte to the answer's last.
    pub(crate) fn new(
        tls: Option<&TlsConfig>,
        auth: &Auth,
        limit: Duration,
    ) -> Result<Self, TlsError> {
        let tls = match tls {
            Some(tls) => tls.client()?,
            None => TlsConfig::trusts_nobody()?,
        };
        let inner = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .no_proxy()
            .redirect(Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .user_agent(concat!("saltern/", env!("CARGO_PKG_VERSION")))
            .default_headers(auth.headers())
            .connect_timeout(limit.min(CONNECT))
            .timeout(limit)
            .pool_idle_timeout(IDLE)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(60))
            // Ends a connection to a server that takes no more bytes, also after its request was
            // given up.
            .tcp_user_timeout(limit)
            .build()
            .map_err(|error| TlsError::Client(explained(&error).0))?;
        Ok(Client { inner, limit, auth: Arc::new(auth.headers()) })
    }

    /// Connects to the server of a URL and lets go again. Nothing is sent. Each of its addresses
    /// has a part of the time.
    pub(crate) async fn reach(&self, url: &reqwest::Url) -> io::Result<()> {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = url.port_or_known_default().unwrap_or_default();
        let limit = self.limit.min(CONNECT);
        let late = || {
            let late = format!("no connection within {limit:?}");
            io::Error::new(io::ErrorKind::TimedOut, late)
        };
        let found = timeout(limit / 2, lookup_host((host, port))).await.map_err(|_| late())??;
        let addresses: Vec<_> = found.collect();
        let each = limit / 2 / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut failed = late();
        for address in addresses {
            match timeout(each, TcpStream::connect(address)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => failed = error,
                Err(_) => {}
            }
        }
        Err(failed)
    }

    /// A request with `POST`.
    pub(crate) fn post(&self, url: &Url) -> Request<'_> {
        self.request(Method::POST, url.parsed().clone())
    }

    /// A request. Errors show nothing of the URL but scheme, host and port.
    pub(crate) fn request(&self, method: Method, url: reqwest::Url) -> Request<'_> {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        Request { client: self, method, url, headers, body, reads_answer: false }
    }
}

/// A request while it is put together.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    client: &'a Client,
    method: Method,
    url: reqwest::Url,
    headers: HeaderMap,
    body: Bytes,
    reads_answer: bool,
}

impl Request<'_> {
    /// Asks for a success with a whole body. Without this the status of a success is enough, and
    /// only the beginning of its body is read.
    pub(crate) fn with_whole_answer(self) -> Self {
        Request { reads_answer: true, ..self }
    }

    /// Adds a parameter behind the `?`.
    pub(crate) fn query(mut self, name: &str, value: &str) -> Self {
        self.url.query_pairs_mut().append_pair(name, value);
        self
    }

    /// Sets a header.
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Sets the body and its type.
    pub(crate) fn body(self, kind: &'static str, body: Bytes) -> Self {
        Request { body, ..self }.header(CONTENT_TYPE, HeaderValue::from_static(kind))
    }

    /// Sends it and waits for the answer, of any status.
    pub(crate) async fn send(self) -> Result<Answer, Error> {
        let (limit, reads_answer) = (self.client.limit, self.reads_answer);
        let to = To(Arc::new(Sent {
            method: self.method.clone(),
            url: self.url.clone(),
            headers: self.headers.clone(),
            auth: Arc::clone(&self.client.auth),
        }));
        let request = self.client.inner.request(self.method, self.url);
        let request = request.headers(self.headers).body(self.body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Err(to.unanswered(&error, limit)),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let has_to_be_whole = reads_answer && status.is_success();
        let most = if has_to_be_whole { MOST } else { MOST_OF_A_BEGINNING };
        match read(response, most).await {
            Ok(Read::Whole(body)) => Ok(Answer { to, status, headers, body }),
            Ok(Read::Beginning(body)) if !has_to_be_whole => {
                Ok(Answer { to, status, headers, body })
            }
            Ok(Read::Beginning(_)) => {
                Err(to.retry(format!("{status}, and the answer is longer than {most} bytes")))
            }
            // The status says enough, even without the rest.
            Err(_) if !has_to_be_whole => Ok(Answer { to, status, headers, body: Bytes::new() }),
            Err(error) if error.is_timeout() => Err(to.unanswered(&error, limit)),
            Err(error) => {
                let why = explained(&error).0;
                Err(to.retry(format!("{status}, and the answer broke off: {why}")))
            }
        }
    }
}

/// An answer, as far as it was read.
enum Read {
    Whole(Bytes),
    Beginning(Bytes),
}

/// Reads at most so many bytes. The connection is not used again if there are more.
async fn read(mut response: Response, most: usize) -> Result<Read, reqwest::Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        let room = most - body.len();
        body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        if chunk.len() > room {
            return Ok(Read::Beginning(body.freeze()));
        }
    }
    Ok(Read::Whole(body.freeze()))
}

/// A server's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    to: To,
    /// The status.
    pub(crate) status: StatusCode,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body; maybe only its beginning, unless the request asked for all of it.
    pub(crate) body: Bytes,
}

impl Answer {
    /// The answer, if it is a success by this rule.
    pub(crate) fn checked(
        self,
        meaning: impl FnOnce(&Answer) -> Result<(), Failed>,
    ) -> Result<Answer, Error> {
        match meaning(&self) {
            Ok(()) => Ok(self),
            Err(failed) => Err(self.error(failed)),
        }
    }

    fn error(&self, failed: Failed) -> Error {
        let mut cause = self.status.to_string();
        let body = self.to.hide(String::from_utf8_lossy(&self.body).into_owned());
        if !body.trim().is_empty() {
            cause += &format!(": {}", visible::capped(body.trim(), SHOWN));
        }
        if let Some(location) = self.headers.get(LOCATION).and_then(|value| value.to_str().ok()) {
            // The rest may hold a secret.
            let place = reqwest::Url::parse(location);
            let place =
                place.map_or("elsewhere".to_owned(), |url| url.origin().ascii_serialization());
            cause += &format!(
                "; it redirects to {place}, and redirects are not followed: correct `url` if that \
                 is the right place"
            );
        }
        cause += advice(self.status);
        let after = retry_after(&self.headers, Timestamp::now());
        Error { to: self.to.clone(), cause, failed, after }
    }
}

/// The consequence of an answer that is no success, or of no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// It may work later, and nothing is wrong with the events.
    Retry,
    /// The same, over a new connection.
    Reconnect,
    /// The store will never accept some of the events.
    Reject,
    /// The configuration is wrong.
    Fatal,
}

/// The meaning of an answer, for a kind that knows nothing more:
///
/// | status | means |
/// |---|---|
/// | 2xx | stored |
/// | 400, 413, 414, 422, 431 | there is something in the events, or too much: they are halved |
/// | 401 | the credentials are wrong: nothing is tried before the configuration is corrected |
/// | 421 | another connection is wanted |
/// | any other | later again |
///
/// 403, 404 and redirects are among the others, because stores and proxies also answer so for a
/// while. A full disk makes an index read-only, a path is not there yet, a proxy is in maintenance.
/// No event is lost by trying again.
pub(crate) fn usual(answer: &Answer) -> Result<(), Failed> {
    match answer.status.as_u16() {
        200..=299 => Ok(()),
        400 | 413 | 414 | 422 | 431 => Err(Failed::Reject),
        401 => Err(Failed::Fatal),
        421 => Err(Failed::Reconnect),
        _ => Err(Failed::Retry),
    }
}

fn advice(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "; correct the user and password, or the token",
        403 => "; the user or token may not do this: allow it there",
        404 => "; is there a mistake in the path of `url`?",
        407 => "; a proxy in between needs a login",
        _ => "",
    }
}

/// The wait that `Retry-After` asks for, as seconds or as a date. A date is compared with the
/// server's own clock if the answer has it.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let theirs = headers.get(DATE).and_then(|date| date_of(date.to_str().ok()?));
            let wait = date_of(text)?.duration_since(theirs.unwrap_or(now));
            Duration::try_from(wait).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_WAIT))
}

fn date_of(text: &str) -> Option<Timestamp> {
    rfc2822::parse(text).ok().map(|date| date.timestamp())
}

/// The address of a request, as an error shows it: the path and all behind it may be secret.
#[derive(Clone)]
struct To(Arc<Sent>);

/// All of a request but its body.
struct Sent {
    method: Method,
    url: reqwest::Url,
    headers: HeaderMap,
    /// The headers that say who we are.
    auth: Arc<HeaderMap>,
}

impl fmt::Debug for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A shorter text is no secret, and may stand anywhere.
const SHORTEST: usize = 4;

/// A shorter part of a URL is a word of its path, or a number.
const SHORTEST_PART: usize = 8;

/// Headers of a request that hold no secret.
const OPEN: [HeaderName; 3] =
    [CONTENT_TYPE, CONTENT_ENCODING, HeaderName::from_static("idempotency-key")];

/// The texts of a request that may be secret, the longest first: one may be a part of another.
fn secrets(url: &reqwest::Url, headers: &[&HeaderMap]) -> Vec<String> {
    let mut texts = vec![url.path().to_owned()];
    texts.extend(url.query().map(str::to_owned));
    let segments = url.path_segments().into_iter().flatten().map(str::to_owned);
    let values = url.query_pairs().map(|(_, value)| value.into_owned());
    texts.extend(segments.chain(values).filter(|part| part.len() >= SHORTEST_PART));
    for (name, value) in headers.iter().flat_map(|headers| headers.iter()) {
        if OPEN.contains(name) || name.as_str().ends_with("user") {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        // Of `Bearer TOKEN` a server may repeat the token alone, of `Basic …` the password.
        let word = value.rsplit(' ').next().unwrap_or_default();
        let login = STANDARD.decode(word).ok().and_then(|login| String::from_utf8(login).ok());
        let password = login.as_deref().and_then(|login| login.split_once(':'));
        texts.extend(password.map(|(_, password)| password.to_owned()));
        texts.extend([value.to_string(), word.to_owned()]);
    }
    // Some writers of JSON put a backslash before a slash.
    let escaped: Vec<_> = texts.iter().map(|text| text.replace('/', "\\/")).collect();
    texts.extend(escaped);
    texts.retain(|text| text.len() >= SHORTEST);
    texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    texts.dedup();
    texts
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0.method, self.0.url.origin().ascii_serialization())
    }
}

impl To {
    /// A server's words without what we told it in confidence.
    fn hide(&self, said: String) -> String {
        let secrets = secrets(&self.0.url, &[&self.0.headers, &self.0.auth]);
        secrets.iter().fold(said, |said, secret| said.replace(secret, "***"))
    }

    fn retry(self, cause: String) -> Error {
        Error { to: self, cause, failed: Failed::Retry, after: None }
    }

    fn unanswered(self, error: &reqwest::Error, limit: Duration) -> Error {
        if error.is_timeout() {
            let cause = match error.is_connect() {
                true => format!("no connection within {:?}", limit.min(CONNECT)),
                false => format!("no answer within {limit:?}"),
            };
            return self.retry(cause);
        }
        let (cause, advice) = explained(error);
        self.retry(cause + advice)
    }
}

/// The failure of a request.
#[derive(Debug, thiserror::Error)]
#[error("{to}: {cause}")]
pub(crate) struct Error {
    to: To,
    cause: String,
    /// Its consequence.
    pub(crate) failed: Failed,
    /// The wait that the server asked for.
    pub(crate) after: Option<Duration>,
}

/// Every cause of an error that adds to "a request failed", and advice.
fn explained(error: &reqwest::Error) -> (String, &'static str) {
    let mut causes: Vec<String> = Vec::new();
    let mut advice = "";
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        let says_nothing = text.starts_with("client error (") || text == "error sending request";
        // A cause often repeats the one behind it.
        if !says_nothing && causes.last().is_none_or(|last| !last.contains(&text)) {
            causes.push(text);
        }
        if let Some(tls) = inside(error) {
            advice = advice_on_tls(tls);
        }
        cause = error.source();
    }
    if causes.is_empty() {
        causes.push(error.to_string());
    }
    (visible::capped(&causes.join(": "), SHOWN), advice)
}

/// The error of TLS in an [`io::Error`], which does not name it as its source.
fn inside<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return Some(tls);
    }
    inside(error.downcast_ref::<io::Error>()?.get_ref()?)
}

fn advice_on_tls(error: &rustls::Error) -> &'static str {
    match error {
        // The second is the case of another CA with the same name.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "; name the CA that signed the server's certificate as `tls.ca`",
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "; write the name in `url` that the server's certificate is for",
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "; the server's certificate has expired: renew it there",
        rustls::Error::InvalidMessage(_) => "; does the server speak TLS at this port?",
        rustls::Error::AlertReceived(_) => {
            "; the server ended it: does it want a certificate (`tls.cert`, `tls.key`)?"
        }
        _ => "",
    }
}

/// Compresses a body for `Content-Encoding: gzip`.
pub(crate) fn gzip(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    // Writing to memory does not fail.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;

    use flate2::read::GzDecoder;
    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::client::tls;
    use crate::yaml::Node;

    const LIMIT: Duration = Duration::from_secs(30);

    fn client(limit: Duration) -> Client {
        Client::new(None, &Auth::default(), limit).unwrap()
    }

    fn url(text: &str) -> Url {
        Url::try_from(text.to_owned()).unwrap()
    }

    /// Reads one request: its head in small letters, and its body.
    async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
        let mut read = Vec::new();
        let end = loop {
            if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut read).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while read.len() < end + length {
            stream.read_buf(&mut read).await.ok()?;
        }
        Some((head, read[end..].to_vec()))
    }

    async fn answer(
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        answers: impl Fn(&str, &[u8]) -> String,
    ) {
        while let Some((head, body)) = request(&mut stream).await {
            let answer = answers(&head, &body);
            // A client that has read enough may have gone.
            let _ = stream.write_all(answer.as_bytes()).await;
            if !answer.contains("Content-Length") {
                return;
            }
        }
    }

    /// A server that answers each request by this; its URL.
    async fn server(
        answers: impl Fn(&str, &[u8]) -> String + Clone + Send + Sync + 'static,
    ) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answers = answers.clone();
                tokio::spawn(async move { answer(stream, answers).await });
            }
        });
        url(&format!("http://127.0.0.1:{port}/secret-path"))
    }

    fn of(status: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
    }

    async fn sent(url: &Url) -> Result<Answer, Error> {
        client(LIMIT).post(url).send().await?.checked(usual)
    }

    async fn asked(url: &Url, limit: Duration) -> Result<Answer, Error> {
        client(limit).post(url).with_whole_answer().send().await?.checked(usual)
    }

    #[tokio::test]
    async fn a_request_has_its_parameters_its_credentials_and_its_body() {
        let url = server(|head, body| {
            assert!(head.starts_with("post /secret-path?a=%2f&b=2 http/1.1\r\n"), "{head}");
            assert!(head.contains("\r\nauthorization: bearer t\r\n"), "{head}");
            assert!(head.contains("\r\ncontent-type: text/plain\r\n"), "{head}");
            assert!(head.contains("\r\nuser-agent: saltern/"), "{head}");
            of("200 OK", "", &String::from_utf8_lossy(body))
        });
        let url = url.await;
        let auth = serde_json::from_str(r#"{"token": "t"}"#).unwrap();
        let client = Client::new(None, &auth, LIMIT).unwrap();
        for body in ["one", "two"] {
            let request = client.post(&url).query("a", "/").query("b", "2");
            let answer = request.body("text/plain", body.into()).send().await.unwrap();
            assert_eq!(answer.checked(usual).unwrap().body, body);
        }
    }

    #[tokio::test]
    async fn a_compressed_body_is_the_same_body() {
        let text = "salt ".repeat(10_000);
        let expected = text.clone();
        let url = server(move |head, body| {
            assert!(head.contains("content-encoding: gzip"), "{head}");
            let mut unpacked = String::new();
            GzDecoder::new(body).read_to_string(&mut unpacked).unwrap();
            assert_eq!(unpacked, expected);
            assert!(body.len() < 1000);
            of("200 OK", "", "")
        });
        let url = url.await;
        let client = client(LIMIT);
        let request = client.post(&url).body("text/plain", gzip(text.as_bytes()));
        let encoding = HeaderValue::from_static("gzip");
        request.header(reqwest::header::CONTENT_ENCODING, encoding).send().await.unwrap();
    }

    #[tokio::test]
    async fn what_follows_from_a_status() {
        for (status, failed) in [
            ("400 Bad Request", Failed::Reject),
            ("413 Payload Too Large", Failed::Reject),
            ("401 Unauthorized", Failed::Fatal),
            ("421 Misdirected Request", Failed::Reconnect),
            ("302 Found", Failed::Retry),
            ("403 Forbidden", Failed::Retry),
            ("404 Not Found", Failed::Retry),
            ("408 Request Timeout", Failed::Retry),
            ("429 Too Many Requests", Failed::Retry),
            ("503 Service Unavailable", Failed::Retry),
        ] {
            let url = server(move |_, _| of(status, "", "why\u{1b}[2J")).await;
            let error = sent(&url).await.unwrap_err();
            assert_eq!(error.failed, failed, "{error}");
            let said = error.to_string();
            assert!(said.contains(status) && said.contains("why\\u{1b}"), "{said}");
            assert!(said.starts_with("POST http://127.0.0.1:"), "{said}");
            assert!(!said.contains("secret-path"), "{said}");
        }
    }

    #[tokio::test]
    async fn an_error_repeats_nothing_that_the_server_was_told_in_confidence() {
        let echo = |head: &str, _: &[u8]| {
            let head = head.replace('/', "\\/") + head;
            let body = format!("no hunter3-of-hooks, wrong hunter5-of-keys or hunter6, {head}");
            let length = body.len();
            format!("HTTP/1.1 404 Not Found\r\nContent-Length: {length}\r\n\r\n{body}")
        };
        let auth = "{user: a, password: hunter6}";
        let auth: Auth = Node::parse(auth).unwrap().read().unwrap();
        let client = Client::new(None, &auth, LIMIT).unwrap();
        let url = url(&format!("{}/hooks/hunter3-of-hooks", server(echo).await));
        let secret = HeaderValue::from_static("hunter4");
        let request =
            client.post(&url).query("key", "hunter5-of-keys").body("text/plain", Bytes::new());
        let request = request.header(HeaderName::from_static("x-key"), secret);
        let error = request.send().await.unwrap().checked(usual).unwrap_err();
        let said = format!("{error} {:?}", error.source().map(ToString::to_string));
        assert!(said.contains("404") && said.contains("***") && !said.contains("hunter"), "{said}");
    }

    #[tokio::test]
    async fn retry_after_is_seconds_or_a_date() {
        let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
        for (header, after) in [
            ("Retry-After: 120\r\n".to_owned(), Some(120)),
            (format!("{date}Retry-After: Sun, 06 Nov 1994 08:50:07 GMT\r\n"), Some(30)),
            (format!("{date}Retry-After: Sun, 06 Nov 1994 08:40:00 GMT\r\n"), Some(0)),
            // Longer than anybody means.
            ("Retry-After: 99999999999\r\n".to_owned(), Some(3600)),
            ("Retry-After: Tue, 31 Dec 2999 23:59:59 GMT\r\n".to_owned(), Some(3600)),
            ("Retry-After: soon\r\n".to_owned(), None),
            (String::new(), None),
        ] {
            let said = header.clone();
            let url = server(move |_, _| of("503 Service Unavailable", &said, "")).await;
            let error = sent(&url).await.unwrap_err();
            assert_eq!(error.after, after.map(Duration::from_secs), "{header}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_read_up_to_a_limit() {
        let url = server(|_, _| of("500 Internal Server Error", "", &"x".repeat(1 << 20))).await;
        let answer = client(LIMIT).post(&url).send().await.unwrap();
        assert_eq!(answer.body.len(), MOST_OF_A_BEGINNING);
        let said = answer.checked(usual).unwrap_err().to_string();
        assert!(said.len() < SHOWN + 100, "{said}");
        let url = server(|_, _| of("200 OK", "", &"x".repeat(MOST + 1))).await;
        let error = asked(&url, LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("longer than 16777216 bytes"), "{error}");
        assert_eq!(sent(&url).await.unwrap().body.len(), MOST_OF_A_BEGINNING);
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_or_does_not_come_is_no_success_where_it_is_read() {
        let torn = server(|_, _| "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfour".into()).await;
        let error = asked(&torn, LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("broke off"), "{error}");
        assert_eq!(error.failed, Failed::Retry);
        assert_eq!(sent(&torn).await.unwrap().status, StatusCode::OK, "the rows are stored");
        let closing = server(|_, _| String::new()).await;
        assert_eq!(sent(&closing).await.unwrap_err().failed, Failed::Retry);

        // Nobody answers: before the head, and in the middle of the body.
        for begun in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfour"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let silent = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                request(&mut stream).await.unwrap();
                stream.write_all(begun.as_bytes()).await.unwrap();
                std::future::pending::<()>().await;
            });
            let silent_url = url(&format!("http://127.0.0.1:{port}"));
            let error = asked(&silent_url, Duration::from_millis(300)).await.unwrap_err();
            assert!(error.to_string().contains("no answer within 300ms"), "{error}");
            silent.abort();
        }
        let error = sent(&url_of_nobody().await).await.unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
    }

    /// A server that answers nothing and reads nothing learns that it was given up. Connections
    /// would else pile up.
    #[tokio::test]
    async fn a_request_that_is_given_up_leaves_no_connection_behind() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = url(&format!("http://{}", listener.local_addr().unwrap()));
        let client = client(Duration::from_millis(300));
        for size in [10, 64 << 20] {
            let request = client.post(&to).body("text/plain", vec![b'x'; size].into()).send();
            let (result, accepted) = tokio::join!(request, listener.accept());
            result.unwrap_err();
            let (mut stream, _) = accepted.unwrap();
            let mut ended = vec![0; 1 << 20];
            let until_end = async { while stream.read(&mut ended).await.is_ok_and(|n| n > 0) {} };
            tokio::time::timeout(Duration::from_secs(60), until_end).await.unwrap();
        }
    }

    async fn url_of_nobody() -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        url(&format!("http://{}", listener.local_addr().unwrap()))
    }

    #[tokio::test]
    async fn no_redirect_is_followed() {
        let other = server(|_, _| panic!("a redirect is followed")).await;
        let location = format!("Location: {other}?token=t\r\n");
        let url = server(move |_, _| of("307 Temporary Redirect", &location, "")).await;
        let error = sent(&url).await.unwrap_err();
        assert_eq!(error.failed, Failed::Retry);
        let said = error.to_string();
        assert!(
            said.contains("it redirects to http://127.0.0.1:") && !said.contains("token"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn a_server_that_ends_idle_connections_costs_no_request() {
        // It ends each connection after one answer, without a word.
        let url = server(|_, _| "HTTP/1.1 204 No Content\r\n\r\n".into()).await;
        let client = client(LIMIT);
        for _ in 0..20 {
            client.post(&url).send().await.unwrap().checked(usual).unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A CA and a certificate for `localhost` that it has signed.
    fn make_certificates(folder: &Path) {
        std::fs::write(folder.join("extensions"), "subjectAltName=DNS:localhost\n").unwrap();
        for arguments in [
            "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca",
            "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server",
            "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
             -out server.crt -extfile extensions",
        ] {
            let mut openssl = Command::new("openssl");
            let made = openssl.args(arguments.split_whitespace()).current_dir(folder).output();
            assert!(made.unwrap().status.success(), "openssl {arguments}");
        }
    }

    #[tokio::test]
    async fn a_certificate_is_verified_and_advice_is_given() {
        let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make_certificates(ours.path());
        make_certificates(others.path());
        let side = tls::server(&ours.path().join("server.crt"), &ours.path().join("server.key"));
        let acceptor = TlsAcceptor::from(Arc::new(side.unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        answer(stream, |_, _| of("200 OK", "", "")).await;
                    }
                });
            }
        });
        let trusting =
            |folder: &Path| TlsConfig { ca: Some(folder.join("ca.crt")), ..TlsConfig::default() };
        let unverified = TlsConfig { verify: false, ..trusting(others.path()) };
        let (by_name, by_address) =
            (format!("https://localhost:{port}"), format!("https://127.0.0.1:{port}"));
        for (config, to, says) in [
            (&trusting(ours.path()), &by_name, None),
            (&unverified, &by_address, None),
            (&trusting(others.path()), &by_name, Some("as `tls.ca`")),
            (&trusting(ours.path()), &by_address, Some("the name in `url`")),
        ] {
            let client = Client::new(Some(config), &Auth::default(), LIMIT).unwrap();
            let result = client.post(&url(to)).send().await;
            match says {
                None => assert!(result.is_ok(), "{to}: {result:?}"),
                Some(advice) => {
                    let error = result.unwrap_err().to_string();
                    assert!(error.contains("invalid peer certificate"), "{error}");
                    assert!(error.contains(advice), "{error}");
                }
            }
        }
        // Without TLS nothing goes to such a URL.
        let error = client(LIMIT).post(&url(&by_name)).send().await.unwrap_err();
        assert!(error.to_string().contains("invalid peer certificate"), "{error}");
        // A server that does not speak TLS.
        let plain = server(|_, _| of("200 OK", "", "")).await.to_string();
        let client = Client::new(Some(&unverified), &Auth::default(), LIMIT).unwrap();
        let error = client.post(&url(&plain.replace("http:", "https:"))).send().await;
        assert!(!error.unwrap_err().to_string().is_empty());
    }
}
