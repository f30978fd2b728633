//! Accepting connections, with limits: no client can hold memory or the shutdown up.
//!
//! There are at most [`CONNECTIONS`] at a time, and the next ones wait. A client has [`HEADERS`] to
//! send a request, and is cut off when it takes nothing of an answer for [`UNREAD`]. When the
//! daemon stops, answers under way have [`GOODBYE`] to end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::sink::chain;

/// Connections at a time.
const CONNECTIONS: usize = 128;

/// How long a client may take to send the head of a request, and stay idle between two.
const HEADERS: Duration = Duration::from_secs(30);

/// How long a client may leave what was sent to it unread: long enough for a person who pauses the
/// live tail.
const UNREAD: Duration = Duration::from_mins(5);

/// How long answers under way may take once the daemon stops.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long to wait after an accept failed, as it does when file descriptors run out.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Accepts and serves until `stop` is cancelled.
pub(super) async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let has_room = connections.len() < CONNECTIONS;
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(answer(stream, routes.clone(), stop.clone()));
                }
                Err(error) => {
                    warn!(%error, "the HTTP side cannot accept a connection");
                    sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(GOODBYE, ended).await.is_err() {
        connections.shutdown().await;
    }
}

/// Answers the requests of one connection.
async fn answer(stream: TcpStream, routes: Router, stop: CancellationToken) {
    let io = TokioIo::new(Reader { stream, unread: None });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .serve_connection(io, TowerToHyperService::new(routes))
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(error = chain(&error), "an HTTP connection has ended");
    }
}

/// A connection that fails once its client has read nothing for [`UNREAD`].
struct Reader {
    stream: TcpStream,
    unread: Option<Pin<Box<Sleep>>>,
}

impl Reader {
    fn in_time<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let unread = self.unread.get_or_insert_with(|| Box::pin(sleep(UNREAD)));
        unread.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Reader {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
