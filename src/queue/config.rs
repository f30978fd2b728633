//! The configuration of a sink's queue: its size and its place.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::queue::spill::Settings;
use crate::units::{ByteSize, Span};

/// The place where a sink's events wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpillMode {
    /// On disk before the sink is tried, and in memory as long as there is room: a crash loses
    /// nothing that was read more than 10 ms before.
    #[default]
    Durable,
    /// In memory, and on disk when that is full or the daemon stops: a crash loses the events in
    /// memory.
    Overflow,
    /// In memory only: waiting events are lost when the daemon ends.
    Memory,
}

/// The fate of a new event when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Discard the oldest events that wait.
    #[default]
    DropOldest,
    /// Discard the new events.
    DropNewest,
    /// Take no more events until there is room. Holds up every other sink, and in the end the bus.
    Block,
}

/// The time at which written events are made to last through a power failure. A crash of the daemon
/// alone loses nothing in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// At the latest this long after an event was written.
    Interval(Duration),
    /// Before the sink is tried.
    Always,
    /// The kernel chooses.
    Never,
}

impl Serialize for Fsync {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Fsync::Interval(span) => Span(*span).serialize(serializer),
            Fsync::Always => serializer.serialize_str("always"),
            Fsync::Never => serializer.serialize_str("never"),
        }
    }
}

impl<'de> Deserialize<'de> for Fsync {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Word(Word),
            Interval(Span),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Word {
            Always,
            Never,
        }
        let expected =
            "expected `always`, `never` or a length of time such as 500ms, of at most 3650d";
        match Written::deserialize(deserializer) {
            Ok(Written::Word(Word::Always)) => Ok(Fsync::Always),
            Ok(Written::Word(Word::Never)) => Ok(Fsync::Never),
            Ok(Written::Interval(span)) => Ok(Fsync::Interval(span.0)),
            Err(_) => Err(serde::de::Error::custom(expected)),
        }
    }
}

/// The compression of the payload on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpillCompression {
    /// Not at all: cheapest in CPU.
    #[default]
    None,
    /// With zstd, at its fastest level.
    Zstd,
}

/// The size of a sink's queue, and its place.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpillConfig {
    /// The place where events wait.
    pub mode: SpillMode,
    /// Disk that waiting events may take; in `memory` mode a bound on memory besides `memory`.
    pub max_bytes: ByteSize,
    /// The age at which an event that waits on disk is discarded, counted from when it was put
    /// there. A whole segment goes at a time, once its newest event is so old. Default: none.
    pub max_age: Option<Span>,
    /// The fate of a new event when `max_bytes` is reached or the disk is full.
    pub when_full: WhenFull,
    /// The time at which written events are made to last through a power failure: a length of time,
    /// `always` or `never`.
    #[schemars(with = "String")]
    pub fsync: Fsync,
    /// The compression of payloads on disk.
    pub compression: SpillCompression,
    /// Memory that waiting events may take, their JSON included. Default: 16MiB, in `memory` mode
    /// 64MiB.
    pub memory: Option<ByteSize>,
}

impl Default for SpillConfig {
    fn default() -> Self {
        SpillConfig::STORE
    }
}

impl SpillConfig {
    /// For a store that keeps everything.
    pub(crate) const STORE: SpillConfig = SpillConfig {
        mode: SpillMode::Durable,
        max_bytes: ByteSize(4 << 30),
        max_age: None,
        when_full: WhenFull::DropOldest,
        fsync: Fsync::Interval(Duration::from_millis(500)),
        compression: SpillCompression::None,
        memory: None,
    };

    /// The bound on memory, in bytes.
    pub(crate) fn memory_bound(&self) -> usize {
        match (self.memory, self.mode) {
            (Some(memory), SpillMode::Memory) => memory.min(self.max_bytes).as_usize(),
            (None, SpillMode::Memory) => ByteSize::mib(64).min(self.max_bytes).as_usize(),
            (Some(memory), _) => memory.as_usize(),
            (None, _) => ByteSize::mib(16).as_usize(),
        }
    }

    /// The bound on disk, in bytes; 0 without a spill.
    pub(crate) fn disk_bound(&self) -> u64 {
        match self.mode {
            SpillMode::Memory => 0,
            _ => self.settings().max_bytes,
        }
    }

    /// The way in which the spill on disk is kept.
    pub(crate) fn settings(&self) -> Settings {
        let max_bytes = self.max_bytes.0.max(1 << 16);
        Settings {
            segment_bytes: 64 << 20,
            max_bytes,
            compress: self.compression == SpillCompression::Zstd,
        }
    }
}
