//! A load: the map that was published of a job, or that a minion returned, in msgpack.

use thiserror::Error;

use crate::codec::msgpack::{self, Item, NotWhole};

/// The bytes of one whole map. A map that is cut off, or has something behind it, would make every
/// answer with it unreadable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load<'a>(&'a [u8]);

/// The reason why bytes are no load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotALoad {
    /// They are not exactly one value.
    #[error("it is not one whole msgpack value: {0}")]
    NotWhole(#[from] NotWhole),
    /// They are another value.
    #[error("it is no mapping")]
    NotAMap,
}

impl<'a> Load<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Result<Self, NotALoad> {
        msgpack::whole(bytes)?;
        match msgpack::scalar(bytes) {
            Some(Item::Map(_)) => Ok(Load(bytes)),
            _ => Err(NotALoad::NotAMap),
        }
    }

    pub(crate) fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The value under a key, if it is text.
    pub(crate) fn text(self, key: &str) -> Option<&'a str> {
        msgpack::text(self.0, key)
    }
}
