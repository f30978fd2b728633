//! HTTP connections to ClickHouse servers.

use std::time::Duration;

use clickhouse::Client;
use hyper::rt::Executor;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioTimer;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::tls::TlsConfig;
use crate::sink::contract::WriteError;
use crate::sync::blocking;

/// How long a server may take to accept a connection, at the most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle connections are closed before the server does so, after 3 s unless it is told otherwise.
const IDLE: Duration = Duration::from_secs(2);

/// Owns connections: they end when it is dropped, whatever they were doing.
pub(super) struct Connections {
    _end: DropGuard,
}

impl Connections {
    /// A client without a URL, and the owner of its connections. `tls` is for URLs that want it.
    pub(super) fn new(
        tls: Option<&TlsConfig>,
        timeout: Duration,
    ) -> Result<(Client, Self), WriteError> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_keepalive(Some(Duration::from_secs(60)));
        connector.set_connect_timeout(Some(timeout.min(CONNECT_TIMEOUT)));
        let end = CancellationToken::new();
        let mut pool = HttpClient::builder(UntilEnd(end.clone()));
        pool.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
        let client = match tls {
            None => Client::with_http_client(pool.build(connector)),
            Some(tls) => {
                let tls = blocking(|| tls.client())
                    .map_err(|error| WriteError::fatal("setting up TLS", error))?;
                connector.enforce_http(false);
                let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
                let connector = builder.enable_http1().wrap_connector(connector);
                Client::with_http_client(pool.build(connector))
            }
        };
        Ok((client.with_validation(false), Connections { _end: end.drop_guard() }))
    }
}

/// Runs the tasks of connections until the end of their owner. A server that never answers would
/// else keep them for ever.
#[derive(Clone)]
struct UntilEnd(CancellationToken);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for UntilEnd {
    fn execute(&self, future: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(future));
    }
}
