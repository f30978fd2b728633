//! Clients that are turned away or cut off: counted by reason, and said once each time the reason
//! changes.

use std::sync::Arc;

use tracing::warn;

use crate::observe::metrics::{self, Tally};
use crate::observe::state::SourceState;
use crate::source::returner_wire::Answer;

/// The reason why a client is turned away or cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    NotAllowed,
    Token,
    Full,
    ZeroMq,
    Silent,
    Slow,
    NoRoom,
    Unread,
    TooLong,
    Panic,
}

impl Reason {
    const ALL: [(Reason, &'static str); 10] = [
        (Reason::NotAllowed, "not_allowed"),
        (Reason::Token, "token"),
        (Reason::Full, "full"),
        (Reason::ZeroMq, "zeromq"),
        (Reason::Silent, "silent"),
        (Reason::Slow, "slow"),
        (Reason::NoRoom, "no_room"),
        (Reason::Unread, "unread"),
        (Reason::TooLong, "too_long"),
        (Reason::Panic, "panic"),
    ];
}

/// The counts.
pub(super) struct TurnedAway {
    state: Arc<SourceState>,
    counts: Vec<(Reason, Tally)>,
}

impl TurnedAway {
    pub(super) fn new(state: Arc<SourceState>) -> Self {
        let tally = |name: &str| Tally::new(metrics::SOURCE_CLIENTS_CUT_OFF, &[&state.name, name]);
        let counts = Reason::ALL.iter().map(|(reason, name)| (*reason, tally(name))).collect();
        TurnedAway { state, counts }
    }

    /// A client is turned away for this reason, which these words say.
    pub(super) fn note(&self, reason: Reason, why: &str) {
        if let Some((_, count)) = self.counts.iter().find(|(counted, _)| *counted == reason) {
            count.add(1);
        }
        if self.state.failed(why) {
            warn!(source = self.state.name, reason = why, "a client was turned away");
        }
    }

    /// A request was not done.
    pub(super) fn note_failure(&self, answer: &Answer) {
        if let Answer::Refused { why, .. } = answer
            && self.state.failed(why)
        {
            warn!(source = self.state.name, reason = why, "a request was refused");
        }
    }
}
