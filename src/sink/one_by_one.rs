//! Writing a batch event by event, to a store that takes no more at once.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::contract::{Again, Cause, Partly, Refusal, WriteError};

/// The outcomes of the events of a batch. The write ends at the first event that may be accepted
/// later.
pub(super) struct OneByOne {
    doing: &'static str,
    events: usize,
    began: Instant,
    /// The time after which no further event is begun.
    begins_for: Duration,
    refused: Vec<Refusal>,
}

impl OneByOne {
    /// For a batch of so many events.
    pub(super) fn new(doing: &'static str, events: usize, begins_for: Duration) -> Self {
        OneByOne { doing, events, began: Instant::now(), begins_for, refused: Vec::new() }
    }

    /// Ends the write if there is no time for the event at `place` and those behind it.
    pub(super) fn begin(&mut self, place: usize) -> Result<(), WriteError> {
        match place > 0 && self.began.elapsed() >= self.begins_for {
            true => Err(self.ended_at(place, None, None)),
            false => Ok(()),
        }
    }

    /// Notes the result of the event at `place`. An error ends the write. An error that ends the
    /// sink for good ends the next write, at its first event: the events that this one stored are
    /// settled first.
    pub(super) fn note(
        &mut self,
        place: usize,
        sent: Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let (cause, after) = match sent {
            Ok(()) => return Ok(()),
            Err(WriteError::Reject { cause, .. }) => {
                self.refused.push(Refusal { place, cause });
                return Ok(());
            }
            Err(other) if place == 0 => return Err(other),
            Err(WriteError::Retry { cause, after, .. }) => (cause, after),
            Err(WriteError::Reconnect { cause, .. } | WriteError::Fatal { cause, .. }) => {
                (cause, None)
            }
            Err(other @ WriteError::Partly(_)) => return Err(other),
        };
        Err(self.ended_at(place, Some(cause), after))
    }

    /// The write ends in front of the event at `place`.
    fn ended_at(
        &mut self,
        place: usize,
        cause: Option<Cause>,
        after: Option<Duration>,
    ) -> WriteError {
        let places: BTreeSet<_> = (place..self.events).collect();
        let again = Some(Again { places, cause, after });
        let refused = std::mem::take(&mut self.refused);
        WriteError::Partly(Partly { doing: self.doing.into(), refused, again })
    }

    /// Ends the write when all events were tried.
    pub(super) fn end(self) -> Result<(), WriteError> {
        match self.refused.is_empty() {
            true => Ok(()),
            false => Err(WriteError::refused(self.doing, self.refused)),
        }
    }
}
