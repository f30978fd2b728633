//! A share on its way into the queue of one sink, with its claim and its encoding.
//!
//! A [`Share`] is a view of events and can be copied at will. Two things travel beside it: the
//! sink's own part of the claim, and the encoding for the spill, which holds memory until it is
//! used. Neither may be copied or lost unseen, so a parcel has no `Clone`.

use std::sync::Arc;

use crate::event::chunk::Share;
use crate::queue::spill::record::{Body, Encoded, TooLarge};
use crate::sync::receipt::Claim;

/// A share with its claim and its encoding.
#[derive(Debug)]
pub struct Parcel {
    share: Share,
    /// The encoding for the spill, shared with the other sinks that want the same events.
    encoded: Option<Arc<Encoded>>,
    /// The sink's part in keeping the events safe, for a source that waits for that.
    claim: Option<Claim>,
}

impl From<Share> for Parcel {
    fn from(share: Share) -> Self {
        Parcel { share, encoded: None, claim: None }
    }
}

impl Parcel {
    /// The share that it carries.
    pub(crate) fn share(&self) -> &Share {
        &self.share
    }

    /// The same parcel, which shares its encoding for the spill with others of the same events.
    pub(crate) fn encoded_with(self, encoded: &Arc<Encoded>) -> Self {
        Parcel { encoded: Some(Arc::clone(encoded)), ..self }
    }

    /// The same parcel with a claim on a receipt.
    pub(crate) fn claimed(self, claim: Option<Claim>) -> Self {
        Parcel { claim, ..self }
    }

    /// The same parcel with other events in place of its own.
    pub(crate) fn with_share(self, share: Share) -> Self {
        Parcel { share, encoded: None, ..self }
    }

    /// The events' source waits until they are safe, and so can wait for room too.
    pub(crate) fn can_wait(&self) -> bool {
        self.claim.is_some()
    }

    /// Takes the claim off the parcel, for the keeper of the events.
    pub(crate) fn take_claim(&mut self) -> Option<Claim> {
        self.claim.take()
    }

    /// Drops the shared encoding, which then holds no memory for this sink.
    pub(crate) fn forget_encoding(&mut self) {
        self.encoded = None;
    }

    /// The events as the body of a record of the spill. The shared encoding is dropped.
    pub(crate) fn encode(&mut self, compress: bool) -> Result<Arc<Body>, TooLarge> {
        match self.encoded.take() {
            Some(encoded) => encoded.body(&self.share, compress),
            None => Body::encode(&self.share, compress).map(Arc::new),
        }
    }

    /// The events alone. A claim that was not taken off says that they are not kept.
    pub(crate) fn unpack(self) -> Share {
        self.share
    }
}
