//! The settings of the HTTP side.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::files::socket_file::fits_to_listen;
use crate::units::{Mode, Secret};
use crate::yaml::{Node, Problem};

/// The HTTP side: metrics, health, status, events, jobs.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Http {
    /// Address and port; `null` for none. Anybody may read `/metrics`, `/healthz` and `/readyz`
    /// there; everything else wants a token. An address that is not loopback wants a `token` of
    /// yours.
    pub(crate) listen: Option<SocketAddr>,
    /// The unix socket by which commands reach the daemon; `null` for none. No token is wanted
    /// there: root and the daemon's own user may do everything, and any other user that its file
    /// lets in may read.
    pub(crate) socket: Option<HttpSocket>,
    /// The token that reads and acts, sent as `Authorization: Bearer TOKEN`. Default: one that
    /// is made at the first start, in `STATE_DIR/http-token`.
    pub(crate) token: Option<Secret>,
    /// A token that reads and does not act. Default: none.
    pub(crate) read_token: Option<Secret>,
    /// Names by which clients call this machine, without port, beside `localhost` and loopback
    /// addresses. A request to another name is refused, but for `/metrics`, `/healthz` and
    /// `/readyz`.
    pub(crate) hosts: Vec<String>,
    /// TLS for `listen`. Default: none.
    pub(crate) tls: Option<HttpTls>,
}

impl Default for Http {
    fn default() -> Self {
        Http {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 4507))),
            socket: Some(HttpSocket::default()),
            token: None,
            read_token: None,
            hosts: Vec::new(),
            tls: None,
        }
    }
}

/// The unix socket of the HTTP side.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HttpSocket {
    /// Its file. Default: `http.sock` in the runtime directory of the systemd unit, else in
    /// `state_dir`.
    pub(crate) path: Option<PathBuf>,
    /// Permissions of the file, as text in octal.
    pub(crate) mode: Mode,
    /// The group of the file, by name or number; its members may read. Default: that of the daemon.
    pub(crate) group: Option<String>,
}

impl Default for HttpSocket {
    fn default() -> Self {
        HttpSocket { path: None, mode: Mode(0o660), group: None }
    }
}

/// The certificate that the HTTP side shows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpTls {
    /// A file with the certificate and those that vouch for it (PEM).
    pub(crate) cert: PathBuf,
    /// The file with its key (PEM).
    pub(crate) key: PathBuf,
}

impl Http {
    /// Notes what cannot be, of a configuration that is read from `root`.
    pub(crate) fn check(&self, root: &Node, problems: &mut Vec<Problem>) {
        let mut wrong = |key: &str, message: String, help: &str| {
            let place = root.place_of(&["http", key]);
            problems.push(Problem::at(place, message).help(help));
        };
        if let Some(listen) = self.listen
            && !listen.ip().is_loopback()
            && self.token.is_none()
        {
            let message = format!("{listen} is not loopback and there is no token");
            wrong("listen", message, "set http.token, or listen on 127.0.0.1");
        }
        for (key, token) in [("token", &self.token), ("read_token", &self.read_token)] {
            let Some(token) = token else { continue };
            // A header holds nothing else, so no client could send it.
            if token.expose().is_empty() || !token.expose().bytes().all(|b| b.is_ascii_graphic()) {
                let message = format!("http.{key} is empty or has characters that no header holds");
                wrong(key, message, "write letters and digits, as `openssl rand -hex 32` does");
            }
        }
        if self.read_token.is_some() && self.read_token == self.token {
            let message = "http.read_token is the same as http.token".to_owned();
            wrong("read_token", message, "write another token for those who may only read");
        }
        for host in &self.hosts {
            let is_in_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            let is_name = !host.is_empty() && host.chars().all(is_in_name);
            let address = host.trim_start_matches('[').trim_end_matches(']');
            if !is_name && address.parse::<IpAddr>().is_err() {
                let message = format!("`{host}` is no name of a host");
                wrong("hosts", message, "write names without scheme, port and path");
            }
        }
        if let Some(path) = self.socket.as_ref().and_then(|socket| socket.path.as_ref())
            && let Err(error) = fits_to_listen(path)
        {
            wrong("socket", error.to_string(), "leave `path` out for the default place");
        }
    }
}
