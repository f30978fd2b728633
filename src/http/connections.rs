//! Accepting connections at one listener, with limits: no client can hold up memory or the
//! shutdown.
//!
//! A listener has [`PLACES`] at a time. [`super::connection_slots`] chooses who leaves when they
//! are taken. A client has [`HEADERS`] to send a request. It is cut off when it reads nothing of an
//! answer for [`UNREAD`], or of the live tail for [`PAUSED`]. When the daemon stops, answers under
//! way have [`GOODBYE`] to end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::authorize::Peer;
use super::connection_slots::{Slot, Slots};
use super::listen::{Accepted, Listening};
use crate::error::chain;
use crate::observe::state::State;

/// The signals that the HTTP side gets while it serves.
#[derive(Clone)]
pub(crate) struct News {
    /// To read files again, when it changes.
    pub(crate) reopen: watch::Receiver<u64>,
    /// To put back removed files, when it changes: `state_dir` is known to be this daemon's.
    pub(crate) look: watch::Receiver<()>,
}

/// Connections at a time at one listener.
const PLACES: usize = 128;

/// The time that a client has for the head of a request, and that it may be idle between two.
const HEADERS: Duration = Duration::from_secs(30);

/// The time in which a client has to agree on a key.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The time that a client may leave sent bytes unread.
const UNREAD: Duration = Duration::from_secs(30);

/// The same of the live tail: long enough for a person who pauses it.
const PAUSED: Duration = Duration::from_mins(5);

/// The longest head of a request, and the bytes of an answer that are gathered before they are
/// sent.
const BUFFER: usize = 64 << 10;

/// The time that answers under way have once the daemon stops.
const GOODBYE: Duration = Duration::from_secs(1);

/// The wait before the next look if all places are taken.
const PLACE_AGAIN: Duration = Duration::from_millis(50);

/// The wait after an accept failed, as it does when file descriptors run out.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Accepts and serves until `stop` is cancelled.
pub(super) async fn serve(
    mut listener: Listening,
    routes: Router,
    state: Arc<State>,
    mut told: News,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let mut slots = Slots::new(PLACES);
    loop {
        let has_room = slots.have_room(Instant::now());
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            Ok(()) = told.look.changed() => listener.look(&state),
            Ok(()) = told.reopen.changed() => listener.reload(),
            () = sleep(PLACE_AGAIN), if !has_room => {}
            accepted = listener.accept(), if has_room => match accepted {
                Ok(accepted) => {
                    // The connection that was to go may have asked something by now; then this one
                    // goes.
                    if let Some(slot) = slots.take(Instant::now()) {
                        connections.spawn(attend(accepted, routes.clone(), slot, stop.clone()));
                    }
                }
                Err(error) => {
                    warn!(%error, "the HTTP side cannot accept a connection");
                    if is_out_of_files(&error) {
                        slots.free_one(Instant::now());
                    }
                    if stop.run_until_cancelled(sleep(ACCEPT_AGAIN)).await.is_none() {
                        break;
                    }
                }
            },
        }
    }
    listener.close();
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(GOODBYE, ended).await.is_err() {
        connections.shutdown().await;
    }
}

/// Says if the end of another connection would let the next in.
fn is_out_of_files(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Serves one connection until it ends, or its place is wanted.
async fn attend(accepted: Accepted, routes: Router, slot: Slot, stop: CancellationToken) {
    let attending = async {
        match accepted {
            Accepted::User { stream, uid } => {
                answer(stream, Peer::User(uid), routes, &slot, &stop).await;
            }
            Accepted::Address { stream, address, tls: None } => {
                answer(stream, Peer::Address(address), routes, &slot, &stop).await;
            }
            Accepted::Address { stream, address, tls: Some(tls) } => {
                match timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        answer(stream, Peer::Address(address), routes, &slot, &stop).await;
                    }
                    Ok(Err(error)) => debug!(%address, %error, "a client does not speak TLS"),
                    Err(_) => debug!(%address, "a client took too long for the TLS handshake"),
                }
            }
        }
    };
    // A connection that has to leave is cut off where it is.
    tokio::select! {
        () = attending => {}
        () = slot.asked_to_leave() => {}
    }
}

/// Answers the requests of one connection.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: Peer,
    routes: Router,
    slot: &Slot,
    stop: &CancellationToken,
) {
    let io = TokioIo::new(Reader { stream, slot: slot.clone(), unread: None });
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(slot.clone());
        routes.call(request)
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .max_buf_size(BUFFER)
            .serve_connection(io, service)
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

/// A connection that fails once its client has read nothing for too long.
struct Reader<S> {
    stream: S,
    slot: Slot,
    unread: Option<Pin<Box<Sleep>>>,
}

impl<S> Reader<S> {
    fn in_time<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.unread.take().is_some() {
                self.slot.reads(true);
            }
            return written;
        }
        let slot = &self.slot;
        let unread = self.unread.get_or_insert_with(|| {
            slot.reads(false);
            Box::pin(sleep(if slot.may_pause() { PAUSED } else { UNREAD }))
        });
        unread.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Reader<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Reader<S> {
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
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.in_time(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
