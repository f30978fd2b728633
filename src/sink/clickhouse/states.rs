//! The states that a return lists.
//!
//! `state.apply` and its like return a map from `file_|-ID_|-NAME_|-managed` to the result of that
//! state. An orchestration returns such a map for the master under `return.data`. A value of any
//! other form is no state.

use crate::codec::msgpack::{self, Item};
use crate::event::{Event, EventKind};

/// The most states of one event that get a row: several times what the largest highstates have. A
/// row repeats the job and the minion, so a payload made to hold many small states would else
/// become many times its size.
const MAX_STATES: usize = 10_000;

/// The separator of the parts of a state's key.
const BETWEEN: &[u8] = b"_|-";

/// One state, borrowed from the payload.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct State<'a> {
    /// The minion whose return lists it, if the return has several (an orchestration).
    pub(super) minion: Option<&'a [u8]>,
    /// `__id__`.
    pub(super) id: &'a [u8],
    /// `__sls__`.
    pub(super) sls: &'a [u8],
    /// `file` of `file.managed`.
    pub(super) module: &'a [u8],
    /// `managed` of `file.managed`.
    pub(super) function: &'a [u8],
    /// `name`.
    pub(super) name: &'a [u8],
    /// `result`; `None` is what a state says that would change something.
    pub(super) result: Option<bool>,
    /// The msgpack of `changes`, if there are any.
    pub(super) changes: Option<&'a [u8]>,
    /// Milliseconds.
    pub(super) duration: Option<f64>,
    /// The msgpack of `comment`.
    pub(super) comment: Option<&'a [u8]>,
    /// `__run_num__`.
    pub(super) run: Option<u32>,
}

/// The states that an event lists, in the order of its return.
pub(super) fn of<'a>(event: &'a Event, return_value: Option<&'a [u8]>) -> Vec<State<'a>> {
    let Some(value) = return_value else { return Vec::new() };
    if memchr::memmem::find(value, BETWEEN).is_none() {
        return Vec::new();
    }
    match event.kind() {
        EventKind::JobReturn => in_map(None, value).take(MAX_STATES).collect(),
        EventKind::Run => {
            let data = msgpack::find(value, "data").unwrap_or_default();
            let minions = msgpack::pairs(data);
            minions.flat_map(|(id, map)| in_map(Some(id), map)).take(MAX_STATES).collect()
        }
        _ => Vec::new(),
    }
}

fn in_map<'a>(minion: Option<&'a [u8]>, map: &'a [u8]) -> impl Iterator<Item = State<'a>> {
    msgpack::pairs(map).filter_map(move |(key, value)| state(minion, key, value))
}

fn state<'a>(minion: Option<&'a [u8]>, key: &'a [u8], value: &'a [u8]) -> Option<State<'a>> {
    // An id may hold the separator too; module and function never do.
    let (module, rest) = split_once(key)?;
    let (rest, function) = split_last(rest)?;
    let (id, name) = split_once(rest)?;
    if !matches!(msgpack::scalar(value), Some(Item::Map(_))) {
        return None;
    }
    let mut state = State {
        minion,
        id,
        sls: b"",
        module,
        function,
        name,
        result: None,
        changes: None,
        duration: None,
        comment: None,
        run: None,
    };
    for (field, value) in msgpack::pairs(value) {
        let Some(item) = msgpack::scalar(value) else { continue };
        match field {
            b"__id__" => state.id = item.bytes().unwrap_or(id),
            b"__sls__" => state.sls = item.bytes().unwrap_or_default(),
            b"name" => state.name = item.bytes().unwrap_or(name),
            b"result" => {
                state.result = match item {
                    Item::Bool(result) => Some(result),
                    _ => None,
                }
            }
            b"changes" => state.changes = Some(value).filter(|_| !is_empty(item)),
            b"duration" => state.duration = float(item),
            b"comment" => state.comment = Some(value),
            b"__run_num__" => {
                state.run = match item {
                    Item::Uint(run) => u32::try_from(run).ok(),
                    Item::Int(run) => u32::try_from(run).ok(),
                    _ => None,
                }
            }
            _ => {}
        }
    }
    Some(state)
}

fn split_once(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memmem::find(text, BETWEEN)?;
    Some((text.get(..at)?, text.get(at + BETWEEN.len()..)?))
}

fn split_last(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memmem::rfind(text, BETWEEN)?;
    Some((text.get(..at)?, text.get(at + BETWEEN.len()..)?))
}

/// A value of `changes` says that nothing changed.
fn is_empty(item: Item<'_>) -> bool {
    match item {
        Item::Nil | Item::Bool(false) | Item::Map(0) | Item::Array(0) => true,
        item => item.bytes().is_some_and(<[u8]>::is_empty),
    }
}

/// A number that JSON has.
#[allow(clippy::cast_precision_loss)]
pub(super) fn float(item: Item<'_>) -> Option<f64> {
    match item {
        Item::Float(float) if float.is_finite() => Some(float),
        Item::Int(int) => Some(int as f64),
        Item::Uint(int) => Some(int as f64),
        _ => None,
    }
}
