//! A running daemon, as the commands ask it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use reqwest::{Method, StatusCode, Url};

use super::{Failure, load};
use crate::config::{self, Config, ConfigError, Http};
use crate::sink::chain;
use crate::units::Secret;

/// How long a daemon may take to accept the connection and begin its answer.
const ANSWER: Duration = Duration::from_secs(40);

/// A running daemon.
pub(super) struct Daemon {
    url: Url,
    token: Option<Secret>,
}

impl Daemon {
    /// The daemon at `url`, or the one that the configuration describes.
    pub(super) fn find(config: &Path, url: Option<&str>) -> Result<Self, Failure> {
        let http = http_side(config, url.is_some())?;
        let url = match (url, http.listen) {
            (Some(url), _) => url.to_owned(),
            (None, Some(listen)) => format!("http://{}", reachable(listen)),
            (None, None) => {
                let message = "http.listen is null, so the daemon cannot be asked";
                return Err(Failure::Usage(message.to_owned()));
            }
        };
        let wrong = |error: String| Failure::Usage(format!("--url {url}: {error}"));
        let parsed = Url::parse(&url).map_err(|error| wrong(error.to_string()))?;
        if parsed.scheme() != "http" {
            return Err(wrong("the daemon speaks http://HOST:PORT only".to_owned()));
        }
        Ok(Daemon { url: parsed, token: http.token })
    }

    /// Asks for what is under `/api/v1/` at this path, and waits for the beginning of the answer.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<reqwest::Response, Failure> {
        let mut url = self.url.clone();
        url.set_path("/api/v1");
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let client = reqwest::Client::builder()
            .connect_timeout(ANSWER)
            .tcp_keepalive(Duration::from_secs(30))
            .no_proxy()
            .build()
            .map_err(|error| self.failed(&chain(&error)))?;
        let mut request = client.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let answer = tokio::time::timeout(ANSWER, request.send()).await;
        let response = match answer {
            Err(_) => return Err(self.failed("no answer; is this saltern?")),
            Ok(Err(error)) if error.is_connect() => {
                let advice = "is the daemon running, and is this its http.listen?";
                return Err(self.failed(&format!("{}; {advice}", chain(&error))));
            }
            Ok(Err(error)) => return Err(self.failed(&chain(&error))),
            Ok(Ok(response)) => response,
        };
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::UNAUTHORIZED => Err(self.failed(
                "the daemon wants its token; name its configuration with --config, http.token is read from there",
            )),
            status => {
                let body = response.text().await.unwrap_or_default();
                Err(self.failed(&format!("the answer is {status}: {}", body.trim())))
            }
        }
    }

    /// What could not be done, and why.
    pub(super) fn failed(&self, why: &str) -> Failure {
        Failure::Running(format!("cannot ask the daemon at {}: {why}", self.url))
    }
}

/// The HTTP side of the configuration. Where there is no file at the default path, or with `--url`,
/// that of an empty configuration.
fn http_side(config: &Path, has_url: bool) -> Result<Http, Failure> {
    match Config::load(config) {
        Ok(config) => Ok(config.general.http),
        Err(ConfigError::Unreadable { cause, .. })
            if cause.kind() == io::ErrorKind::NotFound
                && (has_url || config == Path::new(config::DEFAULT_PATH)) =>
        {
            Ok(Http::default())
        }
        Err(ConfigError::Unreadable { .. }) if has_url => Ok(Http::default()),
        Err(_) => load(config).map(|config| config.general.http),
    }
}

/// An address to connect to, of one to listen on.
fn reachable(listen: SocketAddr) -> SocketAddr {
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
}
