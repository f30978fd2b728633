//! A running daemon, as the commands ask it: over its unix socket, else over TCP.
//!
//! The socket is where the configuration says, else in its usual places. A socket in a directory
//! that anybody can write may be a decoy. So the process that answers has to be one of root, of our
//! own user, or of the owner of `state_dir` or of the socket's directory.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::uri::{Authority, Scheme};
use axum::http::{Method, Request, StatusCode, Uri, header};
use futures_util::StreamExt;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group};
use rustls::pki_types::ServerName;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::demo_sign;
use super::tcp_listener::stranger;
use crate::cli::output::Failure;
use crate::cli::runtime::runtime;
use crate::cli::target::Target;
use crate::client::tls::TlsConfig;
use crate::codec::visible;
use crate::config::http::Http;
use crate::config::located::Located;
use crate::config::{self, ConfigError, General};
use crate::error::chain;
use crate::files::state_dir::is_taken;
use crate::http::authorize::MEANT;
use crate::http::{place, token};
use crate::units::Secret;

/// The time in which a daemon has to accept the connection and begin its answer.
const ANSWER: Duration = Duration::from_secs(40);

/// A running daemon.
pub(super) struct Daemon {
    transport: Transport,
}

/// The way to it.
enum Transport {
    Socket {
        path: PathBuf,
        /// The `state_dir` of the daemon that is meant, where its socket is in a place for any.
        meant: Option<PathBuf>,
        state_dir: PathBuf,
    },
    Address {
        scheme: Scheme,
        authority: Authority,
        /// `None` for a place that may be somebody else's.
        tokens: Option<Tokens>,
        /// Certificates that are trusted instead of the system's.
        ca: Option<PathBuf>,
    },
}

/// The tokens of the configuration, and the one that the daemon made.
struct Tokens {
    reads: Option<Secret>,
    acts: Option<Secret>,
}

impl Tokens {
    fn of(general: &General) -> Self {
        let made = || token::read(&token::file_of(&general.state_dir)).ok();
        let reads = general.http.read_token.clone();
        let acts = general.http.token.clone().or_else(made);
        Tokens { reads, acts }
    }

    /// The weakest token that is enough for the request.
    fn shown(&self, method: &Method) -> Option<&Secret> {
        match *method {
            Method::GET => self.reads.as_ref().or(self.acts.as_ref()),
            _ => self.acts.as_ref().or(self.reads.as_ref()),
        }
    }
}

/// Says if this host is the one that the configuration is for, beside loopback.
fn is_own(host: &str, http: &Http) -> bool {
    if http.hosts.iter().any(|name| name.eq_ignore_ascii_case(host)) {
        return true;
    }
    let (Some(listen), Ok(ip)) = (http.listen, host.parse::<IpAddr>()) else { return false };
    // An address for all means each address of this machine, and no other can be bound.
    ip == listen.ip() || listen.ip().is_unspecified() && UdpSocket::bind((ip, 0)).is_ok()
}

/// The answer of a daemon to the question which state directory is its own.
enum Answers {
    FromThere,
    /// In another directory, with its own words.
    FromElsewhere(String),
}

/// The outcome of looking for its socket.
enum Found {
    Socket {
        path: PathBuf,
        meant: Option<PathBuf>,
    },
    /// There is one that may not be opened; with advice.
    Denied(String),
    /// Nobody listens at any of these.
    Nobody(Vec<PathBuf>),
}

impl Daemon {
    /// The daemon at `url`, or the one that `target` describes.
    pub(super) fn find(target: &Target, url: Option<&str>) -> Result<Self, Failure> {
        let general = general_of(target, url.is_some())?;
        if let Some(url) = url {
            return Daemon::at(url, &general);
        }
        match look(target, &general) {
            Found::Socket { path, meant } => {
                let transport = Transport::Socket { path, meant, state_dir: general.state_dir };
                Ok(Daemon { transport })
            }
            Found::Denied(why) => Err(Failure::Running(why)),
            Found::Nobody(places) => {
                // A daemon whose socket was turned off has its address left.
                if general.http.socket.is_none()
                    && let Some(listen) = general.http.listen
                {
                    let scheme = if general.http.tls.is_some() { "https" } else { "http" };
                    return Daemon::at(&format!("{scheme}://{}", reachable(listen)), &general);
                }
                if general.http.socket.is_none() {
                    let message = "http.listen and http.socket are null, so the daemon cannot be \
                                   asked";
                    return Err(Failure::Usage(message.to_owned()));
                }
                let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
                Err(Failure::Running(format!(
                    "there is no daemon at {}: start it, or name another one with --config or \
                     --state-dir",
                    places.join(" or ")
                )))
            }
        }
    }

    /// The same as [`Daemon::find`]; `None` if none can be found at its socket.
    pub(super) fn running(target: &Target) -> Result<Option<Self>, Failure> {
        let general = general_of(target, false)?;
        match look(target, &general) {
            Found::Nobody(_) => Ok(None),
            _ => Daemon::find(target, None).map(Some),
        }
    }

    /// Asks it if this is its `state_dir`.
    async fn has(self, state_dir: &Path) -> Result<Answers, Failure> {
        let transport = match self.transport {
            Transport::Socket { path, state_dir: of, .. } => {
                let meant = std::path::absolute(state_dir).ok();
                Transport::Socket { path, meant, state_dir: of }
            }
            transport @ Transport::Address { .. } => transport,
        };
        let daemon = Daemon { transport };
        let asked = timeout(ANSWER, daemon.request(Method::GET, &["status"], &[])).await;
        let answer = asked.map_err(|_| daemon.failed("no answer; is this saltern?"))??;
        if answer.status != StatusCode::MISDIRECTED_REQUEST {
            return Ok(Answers::FromThere);
        }
        let said = answer.bytes().await.map_err(|error| daemon.failed(&chain(&error)))?;
        let (Failure::Running(said) | Failure::Usage(said)) =
            daemon.failed(String::from_utf8_lossy(&said).trim());
        Ok(Answers::FromElsewhere(said))
    }

    fn at(url: &str, general: &General) -> Result<Self, Failure> {
        let wrong = |error: String| Failure::Usage(format!("--url {url}: {error}"));
        let parsed: Uri = url.parse().map_err(|error| wrong(format!("{error}")))?;
        let parts = parsed.into_parts();
        let is_known = |scheme: &Scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS;
        let (Some(scheme), Some(authority)) = (parts.scheme.filter(is_known), parts.authority)
        else {
            let message = "the daemon speaks http://HOST:PORT or https://HOST:PORT only";
            return Err(wrong(message.to_owned()));
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let is_here = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let port = port_of(&scheme, &authority);
        if is_here && let Some(user) = stranger(port, &general.state_dir) {
            return Err(Failure::Running(format!(
                "--url {url}: the process that listens there belongs to user {user}, who is \
                 neither root nor the owner of {}; no token was sent to it",
                general.state_dir.display()
            )));
        }
        let ca = general.http.tls.as_ref().filter(|_| is_here).map(|tls| tls.cert.clone());
        let is_own = is_here || is_own(host, &general.http);
        let tokens = is_own.then(|| Tokens::of(general));
        Ok(Daemon { transport: Transport::Address { scheme, authority, tokens, ca } })
    }

    /// Asks for this path under `/api/v1/`, and waits for the beginning of the answer.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Answer, Failure> {
        let asked = timeout(ANSWER, self.request(method, path, query)).await;
        let answer = asked.map_err(|_| self.failed("no answer; is this saltern?"))??;
        match answer.status {
            StatusCode::OK => Ok(answer),
            StatusCode::UNAUTHORIZED if self.is_elsewhere() => Err(self.failed(
                "the daemon needs its token, which is sent only to loopback, to the address of \
                 http.listen and to the names in http.hosts of the configuration; if this host is \
                 the daemon's, add it to http.hosts",
            )),
            StatusCode::UNAUTHORIZED => Err(self.failed(
                "the daemon needs its token: name its configuration, which has http.token, with \
                 --config; or leave out --url to use its unix socket",
            )),
            status => {
                let body = answer.bytes().await.unwrap_or_default();
                let body = String::from_utf8_lossy(&body);
                Err(self.failed(&format!("the answer is {status}: {}", body.trim())))
            }
        }
    }

    async fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Answer, Failure> {
        let encoded = |text: &&str| form_urlencoded::byte_serialize(text.as_bytes()).collect();
        let path: Vec<String> = path.iter().map(encoded).collect();
        let mut uri = format!("/api/v1/{}", path.join("/")).replace('+', "%20");
        if !query.is_empty() {
            let mut pairs = form_urlencoded::Serializer::new(String::new());
            uri = format!("{uri}?{}", pairs.extend_pairs(query).finish());
        }
        let mut request = Request::builder().method(method.clone()).uri(uri);
        match &self.transport {
            Transport::Socket { path, meant, state_dir } => {
                request = request.header(header::HOST, "localhost");
                if let Some(meant) = meant.as_ref().and_then(|meant| meant.to_str()) {
                    request = request.header(MEANT, meant);
                }
                let stream = self.connected(UnixStream::connect(path).await)?;
                let uid = self.connected(stream.peer_cred())?.uid();
                if !is_trusted(uid, path, state_dir) {
                    return Err(self.failed(&format!(
                        "the process that listens there belongs to user {uid}, who is neither root \
                         nor the owner of {} or of the socket's directory; it may be a decoy",
                        state_dir.display()
                    )));
                }
                self.send(stream, request).await
            }
            Transport::Address { scheme, authority, tokens, ca } => {
                request = request.header(header::HOST, authority.as_str());
                if let Some(token) = tokens.as_ref().and_then(|tokens| tokens.shown(&method)) {
                    let bearer = format!("Bearer {}", token.expose());
                    request = request.header(header::AUTHORIZATION, bearer);
                }
                let is_tls = *scheme == Scheme::HTTPS;
                let host = authority.host().trim_start_matches('[').trim_end_matches(']');
                let port = port_of(scheme, authority);
                let connected = TcpStream::connect((host, port)).await;
                let stream = self.connected(connected)?;
                if !is_tls {
                    return self.send(stream, request).await;
                }
                let tls = TlsConfig { ca: ca.clone(), ..TlsConfig::default() };
                let tls = tls.client().map_err(|error| self.failed(&chain(&error)))?;
                let name = ServerName::try_from(host.to_owned());
                let name = name.map_err(|error| self.failed(&error.to_string()))?;
                let connecting = TlsConnector::from(Arc::new(tls)).connect(name, stream);
                let stream = self.connected(connecting.await)?;
                self.send(stream, request).await
            }
        }
    }

    fn connected<T>(&self, result: io::Result<T>) -> Result<T, Failure> {
        result.map_err(|error| {
            let advice = "is the daemon running, and is this where it listens?";
            self.failed(&format!("{}; {advice}", chain(&error)))
        })
    }

    async fn send<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        request: axum::http::request::Builder,
    ) -> Result<Answer, Failure> {
        let failed = |error: &(dyn std::error::Error + 'static)| self.failed(&chain(error));
        let request = request.body(Body::empty()).map_err(|error| failed(&error))?;
        let shaken = handshake::<_, Body>(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(|error| failed(&error))?;
        let mut task = JoinSet::new();
        // The reader of the answer sees how it ends.
        task.spawn(async move { drop(connection.await) });
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        let body = Body::new(response.into_body()).into_data_stream();
        Ok(Answer { status, body, _connection: task })
    }

    /// Tells if no token is sent there.
    fn is_elsewhere(&self) -> bool {
        matches!(self.transport, Transport::Address { tokens: None, .. })
    }

    /// The failure to ask the daemon, with the reason.
    pub(super) fn failed(&self, why: &str) -> Failure {
        let at = match &self.transport {
            Transport::Socket { path, .. } => path.display().to_string(),
            Transport::Address { scheme, authority, .. } => format!("{scheme}://{authority}"),
        };
        Failure::Running(format!("cannot ask the daemon at {at}: {why}"))
    }
}

/// An answer whose body is still to come.
pub(super) struct Answer {
    status: StatusCode,
    body: BodyDataStream,
    _connection: JoinSet<()>,
}

impl Answer {
    /// The next piece; `None` at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, axum::Error> {
        self.body.next().await.transpose()
    }

    /// All of it.
    pub(super) async fn bytes(mut self) -> Result<Vec<u8>, axum::Error> {
        let mut all = Vec::new();
        while let Some(piece) = self.chunk().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}

/// The part of the configuration that the commands need. With `--url` or `--state-dir` it is that
/// of an empty configuration. So it is if the file at the default path is absent or may not be
/// read.
pub(super) fn general_of(target: &Target, has_url: bool) -> Result<General, Failure> {
    located(target, has_url).map(|located| located.general)
}

/// The same, with the facts about the token.
pub(super) fn located(target: &Target, has_url: bool) -> Result<Located, Failure> {
    let config = &target.config;
    let is_default = config == Path::new(config::DEFAULT_PATH);
    let mut located = match Located::load(config) {
        Ok(located) => located,
        Err(ConfigError::Unreadable { cause, .. })
            if has_url
                || is_default
                    && matches!(
                        cause.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                    ) =>
        {
            Located::default()
        }
        Err(_) if target.state_dir.is_some() && is_default => Located::default(),
        Err(error) => return Err(error.into()),
    };
    if let Some(state_dir) = &target.state_dir
        && *state_dir != located.general.state_dir
    {
        // It belongs to another daemon than the one of the file.
        let state_dir = state_dir.clone();
        let general = General { state_dir, http: Http::default(), ..located.general };
        located = Located { general, unread_token: None };
    }
    Ok(located)
}

/// The daemon that is meant: the one that was named, the one of the system, or else a demo. If
/// there is none, the error says how to name one.
pub(super) fn meant(target: &Target, has_url: bool) -> Result<Target, Failure> {
    let Some(tried) = nobody_by_default(target) else { return Ok(target.clone()) };
    for state_dir in demo_sign::state_dirs() {
        if place::usual_of(&state_dir).iter().any(|path| try_connect(path).is_ok()) {
            eprintln!(
                "no daemon and no configuration here; this is the demo in {}",
                visible::lines(&state_dir.display().to_string())
            );
            return Ok(Target { state_dir: Some(state_dir), config: target.config.clone() });
        }
    }
    let tried: Vec<_> = tried.iter().map(|path| path.display().to_string()).collect();
    let left = General::default().state_dir;
    let left = match left.is_dir() {
        true => format!("; --state-dir {} shows what is left there", left.display()),
        false => String::new(),
    };
    Err(Failure::Usage(format!(
        "there is no configuration {config}, and nobody listens at {tried}\n\
         Say which daemon is meant: --config FILE names its configuration, --state-dir DIR its \
         state_dir{url}{left}.\n\
         Without a Salt master `saltern demo` has events and jobs to show; start it in another terminal.",
        config = target.config.display(),
        tried = tried.join(" or "),
        url = if has_url { ", --url http://HOST:PORT its address" } else { "" },
    )))
}

/// The `state_dir` whose files are read: that of the configuration, if the daemon that answers has
/// the same. A directory that was named with `--state-dir` counts in any case.
pub(super) fn state_dir_of(target: &Target) -> Result<PathBuf, Failure> {
    let state_dir = general_of(target, false)?.state_dir;
    if target.state_dir.is_some() {
        return Ok(state_dir);
    }
    let asked = match Daemon::running(target) {
        Ok(None) => return Ok(state_dir),
        Ok(Some(daemon)) => runtime()?.block_on(daemon.has(&state_dir)),
        Err(failure) => Err(failure),
    };
    let shown = state_dir.display();
    match asked {
        Ok(Answers::FromThere) => Ok(state_dir),
        Ok(Answers::FromElsewhere(said)) => Err(Failure::Usage(format!(
            "{said}\nSay which one is meant: --state-dir DIR names its state_dir, --config FILE its \
             configuration. Without them it would be {shown}."
        ))),
        // A daemon has it, most likely the one that does not answer.
        Err(_) if may_be_system(&state_dir) => Ok(state_dir),
        Err(Failure::Running(why) | Failure::Usage(why)) => Err(Failure::Running(format!(
            "{why}\nSo it is not known if {shown} is its state_dir; name the one that is meant \
             with --state-dir DIR"
        ))),
    }
}

/// Says if commands that name no daemon find a demo, because there is nothing else.
pub(super) fn is_demo_found() -> bool {
    let target = Target { config: config::DEFAULT_PATH.into(), state_dir: None };
    nobody_by_default(&target).is_some()
}

/// The places where the daemon of the system was not found, if it is meant and has no
/// configuration.
fn nobody_by_default(target: &Target) -> Option<Vec<PathBuf>> {
    let is_absent =
        || target.config.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    let general = General::default();
    if !is_any(target) || !is_absent() || is_taken(&general.state_dir) {
        return None;
    }
    match look(target, &general) {
        Found::Nobody(tried) => Some(tried),
        Found::Socket { .. } | Found::Denied(_) => None,
    }
}

/// Says if the system's daemon is meant, because no other is named.
fn is_any(target: &Target) -> bool {
    target.state_dir.is_none() && target.config == Path::new(config::DEFAULT_PATH)
}

/// Looks for the socket.
fn look(target: &Target, general: &General) -> Found {
    let Some(settings) = &general.http.socket else { return Found::Nobody(Vec::new()) };
    let absolute = std::path::absolute(&general.state_dir);
    let state_dir = absolute.unwrap_or_else(|_| general.state_dir.clone());
    let own = match &settings.path {
        Some(path) => vec![path.clone()],
        None => place::usual_of(&general.state_dir),
    };
    let mut places: VecDeque<_> = own.into_iter().map(|path| (path, None)).collect();
    if settings.path.is_none() && is_any(target) {
        places.push_front((place::SYSTEM.into(), None));
        // The socket of a daemon with the same environment, as in a container.
        if let Some(path) = place::of_runtime_directory()
            && path != Path::new(place::SYSTEM)
        {
            places.push_front((path, None));
        }
    } else if settings.path.is_none() && may_be_system(&state_dir) {
        places.push_back((place::SYSTEM.into(), Some(state_dir)));
    }
    let (mut denied, mut tried) = (None, Vec::new());
    for (path, meant) in places {
        match try_connect(&path) {
            Ok(()) => return Found::Socket { path, meant },
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                denied.get_or_insert_with(|| denial(&path));
            }
            Err(_) => {}
        }
        tried.push(path);
    }
    denied.map_or(Found::Nobody(tried), Found::Denied)
}

/// Says if the daemon of this directory may be the one of the system: it runs, or nobody can tell.
fn may_be_system(state_dir: &Path) -> bool {
    let seen = state_dir.join("lock").metadata();
    is_taken(state_dir) || seen.is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

/// Fails at once unless somebody listens there.
fn try_connect(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        other => other,
    }
}

/// Advice about a socket that may not be opened.
fn denial(path: &Path) -> String {
    let shown = path.display();
    let name_of = |gid| match Group::from_gid(Gid::from_raw(gid)) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    };
    let advice = match path.metadata() {
        Ok(found) if found.mode() & 0o060 == 0o060 => {
            format!("only root and members of the group {} may", name_of(found.gid()))
        }
        Ok(_) => "only its owner and root may; set http.socket.mode and .group to allow others"
            .to_owned(),
        // It cannot even be seen.
        Err(_) => "its directory may not be entered; run this as root or as the daemon's user, or \
                   give the socket another place with http.socket: {path: ..., group: ...}"
            .to_owned(),
    };
    format!("the daemon's socket {shown} may not be opened: {advice}")
}

fn port_of(scheme: &Scheme, authority: &Authority) -> u16 {
    authority.port_u16().unwrap_or(if *scheme == Scheme::HTTPS { 443 } else { 80 })
}

/// Says if a process of this user may be the daemon.
fn is_trusted(uid: u32, socket: &Path, state_dir: &Path) -> bool {
    let owns = |path: &Path| path.metadata().is_ok_and(|found| found.uid() == uid);
    let directory = socket.parent().unwrap_or(Path::new("/"));
    uid == 0
        || uid == rustix::process::geteuid().as_raw()
        || owns(state_dir)
        || owns(directory) && !is_public(directory)
}

/// Says if anybody could have made this directory.
fn is_public(directory: &Path) -> bool {
    let whole = directory.canonicalize();
    let is_open = |path: &Path| path.metadata().is_ok_and(|found| found.mode() & 0o002 != 0);
    whole.map_or(true, |whole| whole.ancestors().any(is_open))
}

/// The address to connect to, for an address to listen on.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_all_is_reached_over_loopback() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(reached("[::]:1"), "[::1]:1");
        assert_eq!(reached("10.0.0.1:1"), "10.0.0.1:1");
    }

    #[test]
    fn a_token_goes_to_its_daemon_alone_and_the_one_that_reads_is_enough_to_read() {
        let secret = |text: &str| Some(Secret::new(text.to_owned()));
        let http = Http {
            listen: "192.0.2.7:4507".parse().ok(),
            token: secret("acts"),
            read_token: secret("reads"),
            hosts: vec!["salt.example.com".to_owned()],
            ..Http::default()
        };
        let mut general = General { http, state_dir: "/nowhere".into(), ..General::default() };
        let shown = |general: &General, host: &str, method: Method| {
            let daemon = Daemon::at(&format!("http://{host}:4507"), general).ok().unwrap();
            let Transport::Address { tokens, .. } = daemon.transport else {
                panic!("it is an address")
            };
            let token = tokens?.shown(&method).cloned();
            token.map(|token| token.expose().to_owned())
        };
        for host in ["localhost", "127.0.0.1", "[::1]", "192.0.2.7", "Salt.Example.com"] {
            assert_eq!(shown(&general, host, Method::GET).as_deref(), Some("reads"), "{host}");
            assert_eq!(shown(&general, host, Method::DELETE).as_deref(), Some("acts"), "{host}");
        }
        for host in ["192.0.2.8", "evil.example", "salt.example.com.evil.example"] {
            assert_eq!(shown(&general, host, Method::GET), None, "{host}");
            assert_eq!(shown(&general, host, Method::DELETE), None, "{host}");
        }
        general.http.read_token = None;
        assert_eq!(shown(&general, "localhost", Method::GET).as_deref(), Some("acts"));
        general.http.listen = "0.0.0.0:4507".parse().ok();
        assert_eq!(shown(&general, "127.0.0.2", Method::GET).as_deref(), Some("acts"));
        assert_eq!(shown(&general, "192.0.2.7", Method::GET), None);
    }

    #[test]
    fn a_stranger_in_a_public_directory_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("http.sock");
        let own = rustix::process::geteuid().as_raw();
        assert!(is_trusted(own, &socket, Path::new("/nowhere")));
        assert!(is_trusted(0, &socket, Path::new("/nowhere")));
        assert!(!is_trusted(own + 12_345, &socket, Path::new("/nowhere")));
        assert!(is_public(folder.path()), "it is under /tmp");
        assert!(!is_public(Path::new("/etc")));
    }
}
