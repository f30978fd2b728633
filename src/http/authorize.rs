//! The rights of clients over HTTP.
//!
//! Probes and scrapers get `/metrics`, `/healthz` and `/readyz`, under any name and without a
//! token. Over the unix socket the kernel names the user of a client. Root and the daemon's own
//! user act; any other user that the file's mode lets in reads. Over TCP a token gives its bearer
//! the right to read or to act. A browser gets it as a cookie, by one URL that `saltern console`
//! prints.
//!
//! A page of another site must get nothing by way of somebody's browser. So a request has to call
//! this machine by a name that is its own, because a foreign name can be made to lead here. An
//! `Origin` has to be that same name, and a request that acts by cookie alone has to have one.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Query, Request, State as Extract};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use nix::unistd::{Uid, User};
use tracing::warn;

use super::connection_slots::Slot;
use crate::codec::hex::hex;
use crate::config::http::Http;
use crate::sync::blocking;
use crate::units::{Secret, is_same_secret};

/// The paths that are served to anybody, for probes and scrapers.
const OPEN: &[&str] = &["/metrics", "/healthz", "/readyz"];

/// By this header a command says whose daemon it means, where it had to guess its socket.
pub(crate) const MEANT: HeaderName = HeaderName::from_static("saltern-state-dir");

/// The rights of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Read,
    /// Read, and change something: any method but GET and HEAD.
    Act,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Peer {
    /// A process on this machine, by the unix socket.
    User(u32),
    /// Somebody at this address.
    Address(SocketAddr),
}

impl Peer {
    fn name(self) -> String {
        match self {
            Peer::User(uid) => format!("user {}", name_of_user(uid)),
            Peer::Address(address) => address.to_string(),
        }
    }
}

/// The client that asks, as the log names it.
#[derive(Debug, Clone)]
pub(super) struct Asker(String);

impl std::fmt::Display for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The facts of the decision.
pub(super) struct AccessPolicy {
    /// The daemon's own user.
    own: u32,
    state_dir: PathBuf,
    /// Names that this machine is called by, as [`name_of`] writes them, and the address that is
    /// listened on.
    hosts: Vec<String>,
    token: Option<Secret>,
    read_token: Option<Secret>,
    /// The name of the cookie. Cookies of all ports of a host are one, so the port is in it.
    cookie: String,
    is_tls: bool,
}

impl AccessPolicy {
    pub(super) fn new(
        http: &Http,
        state_dir: &Path,
        token: Option<Secret>,
        listen: Option<SocketAddr>,
    ) -> Self {
        AccessPolicy {
            own: rustix::process::geteuid().as_raw(),
            state_dir: state_dir.to_owned(),
            // A stranger can make a name lead here, but no address.
            hosts: (http.hosts.iter().map(|host| name_of(host)))
                .chain(listen.map(|listen| listen.ip().to_string()))
                .collect(),
            token,
            read_token: http.read_token.clone(),
            cookie: format!("saltern-{}", listen.map_or(0, |listen| listen.port())),
            is_tls: http.tls.is_some(),
        }
    }

    fn scope_of_user(&self, uid: u32) -> Scope {
        if uid == 0 || uid == self.own { Scope::Act } else { Scope::Read }
    }

    /// The rights of the bearer of this text. It is always compared with both tokens.
    fn scope_of(&self, sent: &[u8], form: impl Fn(&str) -> Vec<u8>) -> Option<Scope> {
        let is = |token: &Option<Secret>| {
            token.as_ref().is_some_and(|token| is_same_secret(sent, &form(token.expose())))
        };
        match (is(&self.token), is(&self.read_token)) {
            (true, _) => Some(Scope::Act),
            (false, true) => Some(Scope::Read),
            (false, false) => None,
        }
    }

    fn plain(&self, sent: &[u8]) -> Option<Scope> {
        self.scope_of(sent, |token| token.as_bytes().to_vec())
    }

    /// A cookie holds few characters: its token is in hexadecimal digits.
    fn cookie_scope(&self, sent: &str) -> Option<Scope> {
        self.scope_of(sent.as_bytes(), |token| hex(token.as_bytes()).into_bytes())
    }

    fn by_cookie(&self, headers: &HeaderMap) -> Option<Scope> {
        let cookies = headers.get_all(header::COOKIE).into_iter();
        let mut pairs = cookies.filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(';'));
        pairs.find_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            if name == self.cookie { self.cookie_scope(value) } else { None }
        })
    }

    /// Lets a request in, or returns the reason why not.
    fn judge(&self, peer: Peer, request: &Request) -> Result<Asker, Refusal> {
        let (headers, uri) = (request.headers(), request.uri());
        let host = host_of(uri, headers).ok_or(Refusal::NoHost)?;
        let is_user = matches!(peer, Peer::User(_));
        // A stranger cannot make a name without a dot lead here, and commands have no name for a
        // socket's path: `curl --unix-socket PATH http://saltern/`.
        let is_local = is_user && !host.host().contains('.');
        if !is_loopback(host.host()) && !is_local && !self.hosts.contains(&name_of(host.host())) {
            return Err(Refusal::Host(host.to_string()));
        }
        let origin = headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
        if let Some(origin) = origin
            && !is_origin_of(origin, &host)
        {
            return Err(Refusal::Origin);
        }
        let acts = !matches!(*request.method(), Method::GET | Method::HEAD);
        let (scope, asker) = match peer {
            Peer::User(uid) => {
                if let Some(meant) = headers.get(MEANT)
                    && !is_same_place(meant.to_str().unwrap_or_default(), &self.state_dir)
                {
                    return Err(Refusal::Elsewhere(self.state_dir.clone()));
                }
                // Looking a name up may ask a server, so it is done for the log alone.
                let name = if acts { name_of_user(uid) } else { uid.to_string() };
                (self.scope_of_user(uid), format!("user {name}"))
            }
            Peer::Address(address) => {
                let (scope, means) = match bearer(headers).map(|sent| self.plain(sent)) {
                    Some(scope) => (scope.ok_or(Refusal::WrongToken)?, "token"),
                    None => {
                        let scope = self.by_cookie(headers).ok_or(Refusal::NoToken)?;
                        if acts && origin.is_none() {
                            return Err(Refusal::CookieAlone);
                        }
                        (scope, "cookie")
                    }
                };
                let key = if scope == Scope::Act { "http.token" } else { "http.read_token" };
                (scope, format!("{address} with the {means} of {key}"))
            }
        };
        match (acts, scope) {
            (true, Scope::Read) => Err(Refusal::ReadsOnly(asker)),
            _ => Ok(Asker(asker)),
        }
    }

    /// The answer to a browser that comes with a token in its URL: the page without it, and a
    /// cookie.
    fn log_in(&self, request: &Request) -> Option<Response> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(request.uri()).ok()?;
        let (_, sent) = pairs.iter().find(|(name, _)| name == "token")?;
        self.plain(sent.as_bytes())?;
        let query = request.uri().query().unwrap_or_default();
        let rest: Vec<_> = query.split('&').filter(|pair| !pair.starts_with("token=")).collect();
        let mark = if rest.is_empty() { "" } else { "?" };
        // A path that begins with two slashes would be the address of another host.
        let path = request.uri().path().trim_start_matches('/');
        let location = format!("/{path}{mark}{}", rest.join("&"));
        let secure = if self.is_tls { "; Secure" } else { "" };
        let (name, value) = (&self.cookie, hex(sent.as_bytes()));
        let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}");
        let headers = [(header::LOCATION, location), (header::SET_COOKIE, cookie)];
        Some((StatusCode::SEE_OTHER, headers).into_response())
    }
}

/// The reason for which a request is not answered.
#[derive(Debug)]
enum Refusal {
    NoHost,
    Host(String),
    Origin,
    Elsewhere(PathBuf),
    NoToken,
    WrongToken,
    CookieAlone,
    ReadsOnly(String),
}

impl Refusal {
    fn says(&self) -> (StatusCode, String) {
        match self {
            Refusal::NoHost => (
                StatusCode::BAD_REQUEST,
                "send one `Host` header, with a name of this daemon".to_owned(),
            ),
            Refusal::Host(host) => (
                StatusCode::MISDIRECTED_REQUEST,
                format!(
                    "`{host}` is no name of this daemon; call it by localhost or a loopback address, \
                     or put the name into http.hosts"
                ),
            ),
            Refusal::Origin => (
                StatusCode::FORBIDDEN,
                "the request comes from a page of another host (see its `Origin`)".to_owned(),
            ),
            Refusal::Elsewhere(state_dir) => (
                StatusCode::MISDIRECTED_REQUEST,
                format!(
                    "this is the daemon of state_dir {}, and another is meant; is that one running?",
                    state_dir.display()
                ),
            ),
            Refusal::WrongToken => (
                StatusCode::UNAUTHORIZED,
                "the token is not that of this daemon: send http.token or http.read_token, or, if \
                 no http.token is configured, the text of STATE_DIR/http-token"
                    .to_owned(),
            ),
            Refusal::NoToken => (
                StatusCode::UNAUTHORIZED,
                "send `Authorization: Bearer TOKEN` with the token of http.token (if none is \
                 configured, it is in STATE_DIR/http-token); for a browser, `saltern console` \
                 prints the URL to open; on this machine, use the unix socket, which needs no \
                 token"
                    .to_owned(),
            ),
            Refusal::CookieAlone => (
                StatusCode::FORBIDDEN,
                "a request that changes something needs a bearer token, or an `Origin` beside the \
                 cookie"
                    .to_owned(),
            ),
            Refusal::ReadsOnly(asker) => (
                StatusCode::FORBIDDEN,
                format!(
                    "{asker} may only read; root, the daemon's own user and holders of http.token \
                     may act"
                ),
            ),
        }
    }

    fn answer(&self) -> Response {
        let (code, message) = self.says();
        let message = format!("{message}\n");
        if code != StatusCode::UNAUTHORIZED {
            return (code, message).into_response();
        }
        let wanted = [(header::WWW_AUTHENTICATE, "Bearer realm=\"saltern\"")];
        (code, wanted, message).into_response()
    }
}

/// Lets a request through if its client has the right to it.
pub(super) async fn authorize(
    Extract(policy): Extract<Arc<AccessPolicy>>,
    mut request: Request,
    next: Next,
) -> Response {
    if OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let Some(peer) = request.extensions().get::<Peer>().copied() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let judged = blocking(|| policy.judge(peer, &request));
    let is_asked_to_log_in = matches!(peer, Peer::Address(_))
        && *request.method() == Method::GET
        && request.uri().query().is_some_and(|query| query.contains("token="))
        && matches!(judged, Ok(_) | Err(Refusal::NoToken | Refusal::WrongToken));
    if is_asked_to_log_in && let Some(answer) = policy.log_in(&request) {
        return answer;
    }
    match judged {
        Ok(asker) => {
            if let Some(slot) = request.extensions().get::<Slot>() {
                slot.is_known();
            }
            request.extensions_mut().insert(asker);
            next.run(request).await
        }
        Err(refusal) => {
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                // The text of the client must not fill the log.
                let reason: String = refusal.says().1.chars().take(200).collect();
                warn!(asker = peer.name(), reason, "a request that acts is refused");
            }
            refusal.answer()
        }
    }
}

/// The name by which the client calls this machine; `None` unless it says one name.
fn host_of(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let mut all = headers.get_all(header::HOST).iter();
    let host = all.next().map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    match (uri.authority(), host, all.next()) {
        (_, _, Some(_)) | (_, Some(None), _) | (None, None, _) => None,
        (None, Some(host), None) => host,
        (Some(named), None, None) => Some(named.clone()),
        (Some(named), Some(host), None) => host.filter(|host| host == named),
    }
    .filter(|host| !host.as_str().contains('@'))
}

/// A name in lower case without the dot of the root, or an address without its brackets.
fn name_of(host: &str) -> String {
    let host = host.trim_end_matches('.').trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => host.to_ascii_lowercase(),
    }
}

fn is_loopback(host: &str) -> bool {
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
}

/// Says if a page of `origin` is from `host`.
fn is_origin_of(origin: &str, host: &Authority) -> bool {
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host.as_str()))
}

fn is_same_place(meant: &str, own: &Path) -> bool {
    let whole = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).ok();
    whole(Path::new(meant)) == whole(own)
}

fn name_of_user(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("{} ({uid})", user.name.escape_default()),
        _ => uid.to_string(),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn policy() -> AccessPolicy {
        let secret = |text: &str| Some(Secret::new(text.to_owned()));
        let http = Http {
            hosts: vec!["Salt.example".to_owned(), "[FD00::1]".to_owned()],
            read_token: secret("reader"),
            ..Http::default()
        };
        let listen = Some("10.0.0.9:4507".parse().unwrap());
        let mut policy = AccessPolicy::new(&http, Path::new("/s"), secret("hunter2"), listen);
        policy.own = 77;
        policy
    }

    fn judged(peer: Peer, method: &str, headers: &[(&str, &str)]) -> Result<String, u16> {
        let mut request = Request::builder().method(method).uri("/api/v1/spill");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let judged = policy().judge(peer, &request);
        judged.map(|asker| asker.0).map_err(|refusal| refusal.says().0.as_u16())
    }

    const LOCAL: (&str, &str) = ("host", "localhost:4507");
    const TOKEN: (&str, &str) = ("authorization", "Bearer hunter2");
    const READER: (&str, &str) = ("authorization", "bearer reader");
    /// `hunter2` in hex.
    const COOKIE: (&str, &str) = ("cookie", "a=b; saltern-4507=68756e74657232");

    fn address() -> Peer {
        Peer::Address("127.0.0.1:9".parse().unwrap())
    }

    #[test]
    fn only_a_token_is_a_token_and_each_does_what_it_may() {
        let asked = |method, headers: &[(&str, &str)]| judged(address(), method, headers);
        assert_eq!(asked("GET", &[LOCAL]), Err(401));
        for wrong in ["Bearer hunter", "Bearer hunter22", "Bearer ", "Basic hunter2", "hunter2"] {
            assert_eq!(asked("GET", &[LOCAL, ("authorization", wrong)]), Err(401), "{wrong}");
        }
        let by = asked("DELETE", &[LOCAL, TOKEN]).unwrap();
        assert_eq!(by, "127.0.0.1:9 with the token of http.token");
        assert!(asked("GET", &[LOCAL, READER]).is_ok());
        assert_eq!(asked("DELETE", &[LOCAL, READER]), Err(403));
        assert!(asked("GET", &[LOCAL, COOKIE]).is_ok());
        assert_eq!(asked("GET", &[LOCAL, ("cookie", "saltern-4508=68756e74657232")]), Err(401));
    }

    #[test]
    fn a_browser_acts_for_its_own_page_alone() {
        let asked = |method, headers: &[(&str, &str)]| judged(address(), method, headers);
        let origin = |origin| ("origin", origin);
        assert_eq!(asked("DELETE", &[LOCAL, COOKIE]), Err(403));
        assert!(asked("DELETE", &[LOCAL, COOKIE, origin("http://localhost:4507")]).is_ok());
        for foreign in ["http://evil.example", "null", "http://localhost:4508", "localhost:4507"] {
            for token in [TOKEN, COOKIE] {
                assert_eq!(asked("GET", &[LOCAL, token, origin(foreign)]), Err(403), "{foreign}");
            }
            let user = judged(Peer::User(0), "DELETE", &[LOCAL, origin(foreign)]);
            assert_eq!(user, Err(403), "{foreign}");
        }
    }

    #[test]
    fn a_name_that_is_not_ours_is_refused() {
        let named = |peer, host| judged(peer, "GET", &[("host", host), TOKEN]).map(|_| ());
        for own in ["localhost", "127.0.0.2:1", "[::1]:4507", "SALT.example:80", "salt.example."] {
            assert_eq!(named(address(), own), Ok(()), "{own}");
        }
        // An address that is configured, or listened on.
        for own in ["[fd00::1]:80", "10.0.0.9:4507"] {
            assert_eq!(named(address(), own), Ok(()), "{own}");
        }
        for foreign in ["evil.example", "localhost.evil.example", "10.0.0.1", "saltern"] {
            assert_eq!(named(address(), foreign), Err(421), "{foreign}");
        }
        assert_eq!(named(Peer::User(5), "saltern"), Ok(()));
        assert_eq!(named(Peer::User(5), "evil.example"), Err(421));
        assert_eq!(judged(address(), "GET", &[TOKEN]), Err(400));
        assert_eq!(judged(address(), "GET", &[LOCAL, ("host", "x"), TOKEN]), Err(400));
    }

    #[test]
    fn root_and_the_owner_act_and_the_group_reads() {
        for (uid, acts) in [(0, true), (77, true), (78, false)] {
            assert!(judged(Peer::User(uid), "GET", &[LOCAL]).is_ok());
            assert_eq!(judged(Peer::User(uid), "DELETE", &[LOCAL]).is_ok(), acts, "{uid}");
        }
        let meant = |path| judged(Peer::User(0), "GET", &[LOCAL, (MEANT.as_str(), path)]);
        assert!(meant("/s/../s").is_ok() || meant("/s").is_ok());
        assert_eq!(meant("/elsewhere"), Err(421));
    }

    #[test]
    fn the_url_of_a_browser_becomes_a_cookie() {
        let asked = |uri: &str| {
            let request = Request::builder().uri(uri).body(Body::empty()).unwrap();
            let answer = policy().log_in(&request)?;
            let of = |name| answer.headers()[name].to_str().unwrap().to_owned();
            Some((of("location"), of("set-cookie")))
        };
        let (location, cookie) = asked("/?token=hunter2").unwrap();
        assert_eq!(location, "/");
        assert!(cookie.starts_with("saltern-4507=68756e74657232;"), "{cookie}");
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        assert_eq!(asked("//evil/x?a=1&token=hunter2").unwrap().0, "/evil/x?a=1");
        assert!(asked("/?token=hunter").is_none());
    }
}
