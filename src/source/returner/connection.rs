//! One client: a task that reads its requests, and one for each of these until it is answered.
//!
//! Answers go through a channel with room for every request that is read, so only a client's own
//! task waits for it. A long answer lies in a file and is sent in parts. A client that does not
//! read is cut off.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, WriteHalf, split};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::access::{AccessRules, Peer};
use super::budget::Held;
use super::messages::{Broken, Messages};
use super::requests::{Place, RequestHandler, Share, WAIT, later};
use super::turned_away::{Reason, TurnedAway};
use crate::error::chain;
use crate::event::Authority;
use crate::jobs::spool::{SpoolFile, Spooled};
use crate::source::prefixed::{PrefixError, framed};
use crate::source::returner_wire::{self as wire, Answer, Asked, PART, Request, VERSION};

/// The time that a client may take to read a part of an answer.
const UNREAD: Duration = Duration::from_secs(10);

/// The time that it may take to read a long one as a whole: so long, and one second for so many
/// bytes.
const UNREAD_WHOLE: Duration = Duration::from_secs(30);
const BYTES_A_SECOND: u64 = 256 << 10;

/// The longest message with a token.
const GREETING: usize = 8 << 10;

/// The time that a client that is turned away may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Messages to a client that may wait to be written. There are more than it may have requests, so
/// it also hears that it has too many.
const ANSWERS: usize = 128;

/// The data of a client by which it is judged.
pub(super) struct Client {
    pub(super) peer: Peer,
    /// Its authority when it came: that of a master or not.
    pub(super) kind: Authority,
    pub(super) share: Rc<Share>,
    /// The time of its last message, and whether it ever sent one.
    pub(super) heard: Cell<Instant>,
    pub(super) has_spoken: Cell<bool>,
    /// Cancelled when its place is wanted.
    pub(super) leave: CancellationToken,
}

/// The surroundings of every client's task.
pub(super) struct ConnectionContext {
    pub(super) handler: Rc<RequestHandler>,
    pub(super) access: AccessRules,
    pub(super) turned_away: TurnedAway,
    pub(super) max_frame: usize,
    pub(super) stop: CancellationToken,
}

/// A message that is to be written.
enum Outgoing {
    Wait(u64),
    /// The place of a question is free once its answer is written.
    Answer(u64, Answer, Option<Place>),
}

/// Serves a client until it or the daemon goes.
pub(super) async fn serve<S>(stream: S, client: Rc<Client>, context: Rc<ConnectionContext>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (read, write) = split(stream);
    let longest = match client.peer {
        Peer::User(_) => context.max_frame,
        Peer::Token => GREETING,
    };
    let mut messages = Messages::new(read, longest, client.share.budget.clone());
    let (answers, outgoing) = mpsc::channel(ANSWERS);
    let mut requests = JoinSet::new();
    let reading = async {
        let broken = read_on(&mut messages, answers, &mut requests, &client, &context).await;
        // The tasks of requests end by themselves; the set would end them with it.
        while requests.join_next().await.is_some() {}
        broken
    };
    let writing = write_on(write, outgoing, context.max_frame);
    // Requests of a client that has gone, or does not read, are given up: it sends them again.
    let both = async { tokio::try_join!(writing, async { Ok(reading.await) }) };
    let Some(ended) = client.leave.run_until_cancelled(both).await else { return };
    match ended {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            context.turned_away.note(Reason::Unread, "it does not read its answers");
        }
        Err(error) => debug!(%error, "a client disconnected before it had its answers"),
        Ok(((), None | Some(Broken::Ended | Broken::CutOff | Broken::Read(_)))) => {}
        Ok(((), Some(_))) => {
            // Closing while it still sends could cost it the message with the reason.
            let last = timeout(LAST_WORDS, messages.discard());
            client.leave.run_until_cancelled(last).await;
        }
    }
}

/// Reads requests until there are no more, and returns the reason; `None` when the daemon stops or
/// nobody writes answers any more.
async fn read_on<R: AsyncRead + Unpin>(
    messages: &mut Messages<R>,
    answers: mpsc::Sender<Outgoing>,
    requests: &mut JoinSet<()>,
    client: &Rc<Client>,
    context: &Rc<ConnectionContext>,
) -> Option<Broken> {
    let mut has_shown = client.peer != Peer::Token;
    loop {
        while let Some(ended) = requests.try_join_next() {
            if let Err(error) = ended {
                let why = format!("{}; this is a bug in saltern", chain(&error));
                context.turned_away.note(Reason::Panic, &why);
                return None;
            }
        }
        let reading = async {
            let slot = answers.clone().reserve_owned().await.ok()?;
            Some((slot, messages.next().await))
        };
        let read = tokio::select! {
            biased;
            () = context.stop.cancelled() => return None,
            () = answers.closed() => return None,
            read = reading => read,
        };
        let (slot, message) = read?;
        client.heard.set(Instant::now());
        let (message, held) = match message {
            Ok(message) => message,
            Err(Broken::Prefix(PrefixError::TooLong(_))) if !has_shown => {
                slot.send(Outgoing::Answer(0, without_token(context), None));
                return Some(Broken::Token);
            }
            Err(broken) => {
                if let Some(answer) = last_words(&broken, context) {
                    slot.send(Outgoing::Answer(0, answer, None));
                }
                return Some(broken);
            }
        };
        if !has_shown {
            has_shown =
                wire::token_of(&message).is_some_and(|token| context.access.is_token(token));
            if !has_shown {
                slot.send(Outgoing::Answer(0, without_token(context), None));
                return Some(Broken::Token);
            }
            messages.take_up_to(context.max_frame);
            slot.send(Outgoing::Answer(0, Answer::Done(None), None));
            continue;
        }
        client.has_spoken.set(true);
        match take(&message, held, client, context).await {
            Err((id, answer)) => {
                slot.send(Outgoing::Answer(id, answer, None));
            }
            Ok((id, asked, place)) => {
                let (answers, context) = (answers.downgrade(), Rc::clone(context));
                let authority = context.access.authority(client.peer);
                requests.spawn_local(async move {
                    let mut serving =
                        std::pin::pin!(context.handler.serve(asked, authority, place));
                    let (answer, place) = loop {
                        match timeout(WAIT, &mut serving).await {
                            Ok(done) => break done,
                            // There is no room where the client does not read.
                            Err(_) => {
                                if let Some(answers) = answers.upgrade() {
                                    let _ = answers.try_send(Outgoing::Wait(id));
                                }
                            }
                        }
                    };
                    context.turned_away.note_failure(&answer);
                    // An answer that events are safe is short and needs no place until it is read.
                    slot.send(Outgoing::Answer(id, answer, place.filter(Place::is_of_question)));
                });
            }
        }
    }
}

/// The answer to a client that has no token, which is also noted.
fn without_token(context: &ConnectionContext) -> Answer {
    let why = "the token is missing or wrong: `saltern.token_file` on Salt's side and `token_file` of \
               the source have to hold the same";
    context.turned_away.note(Reason::Token, why);
    later(why)
}

/// A request and its place, or the number of one that is refused, and the answer.
async fn take(
    message: &Bytes,
    held: Option<Held>,
    client: &Client,
    context: &ConnectionContext,
) -> Result<(u64, Asked, Place), (u64, Answer)> {
    let refuse = |answer: Answer| {
        context.handler.sender.state.bad_frames.add(1);
        context.turned_away.note_failure(&answer);
        answer
    };
    let read = context.handler.read(message, held).await;
    let (Request { id, asked }, held) =
        read.map_err(|refusal| (refusal.id, refuse(refusal.into())))?;
    let place = context.handler.place(&client.share, &asked, message.len(), held);
    let place = place.map_err(|answer| (id, answer))?;
    Ok((id, asked, place))
}

/// The last answer to a client that is cut off, which is also noted; none if it has gone by itself.
fn last_words(broken: &Broken, context: &ConnectionContext) -> Option<Answer> {
    let why = broken.to_string();
    let (reason, answer) = match broken {
        Broken::Ended | Broken::Read(_) | Broken::Token => return None,
        Broken::CutOff => {
            debug!("a client closed its connection within a message");
            return None;
        }
        Broken::Silent => (Reason::Silent, None),
        Broken::Slow => (Reason::Slow, Some(later(&why))),
        Broken::NoRoom => (Reason::NoRoom, Some(later(&why))),
        Broken::Prefix(PrefixError::ZeroMq) => (Reason::ZeroMq, None),
        Broken::Prefix(PrefixError::TooLong(length)) => {
            context.handler.sender.state.bad_frames.add(1);
            let why = wire::over_max_frame(u64::from(*length), context.max_frame);
            (Reason::TooLong, Some(Answer::Refused { why, later: false }))
        }
    };
    let told = match broken {
        Broken::Prefix(PrefixError::ZeroMq) => {
            "it speaks ZeroMQ: upgrade the package saltext-saltern on Salt's side, or until then \
             add a source `returner_zeromq` on a path of its own"
        }
        _ => &why,
    };
    context.turned_away.note(reason, told);
    answer
}

/// Writes messages until no more can come.
async fn write_on<W: AsyncWrite>(
    mut write: WriteHalf<W>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    max_frame: usize,
) -> io::Result<()> {
    put(&mut write, &wire::greeting(max_frame)).await?;
    while let Some(next) = outgoing.recv().await {
        match next {
            Outgoing::Wait(id) => put(&mut write, &wire::wait(id, VERSION)).await?,
            Outgoing::Answer(id, Answer::Done(Some(Spooled::File(file))), _place) => {
                let whole = UNREAD_WHOLE + Duration::from_secs(file.length() / BYTES_A_SECOND);
                timeout(whole, put_parts(&mut write, id, file)).await??;
            }
            Outgoing::Answer(id, answer, _place) => {
                put(&mut write, &answer.message(id, VERSION)).await?;
            }
        }
    }
    write.shutdown().await
}

async fn put<W: AsyncWrite>(write: &mut WriteHalf<W>, message: &[u8]) -> io::Result<()> {
    let Some(framed) = framed(message) else { return Err(io::ErrorKind::FileTooLarge.into()) };
    timeout(UNREAD, write.write_all(&framed)).await?
}

/// Sends a long answer part by part; one part is in memory at a time.
async fn put_parts<W: AsyncWrite>(
    write: &mut WriteHalf<W>,
    id: u64,
    mut file: SpoolFile,
) -> io::Result<()> {
    let mut left = file.length();
    loop {
        // A slow disk must not hold up the other sources.
        let read = spawn_blocking(move || {
            let mut part = vec![0; PART.min(usize::try_from(left).unwrap_or(PART))];
            file.file().read_exact(&mut part).map(|()| (file, part))
        });
        let part;
        (file, part) = match read.await.map_err(io::Error::other)? {
            Ok(read) => read,
            Err(error) => {
                warn!(%error, "a long answer cannot be read from its file");
                let why = format!("reading a long answer from its file: {error}");
                return put(write, &wire::refused(id, VERSION, &why, true)).await;
            }
        };
        left -= part.len() as u64;
        if left == 0 {
            return put(write, &wire::done(id, VERSION, Some(&part))).await;
        }
        put(write, &wire::part(id, VERSION, &part)).await?;
    }
}
