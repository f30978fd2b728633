//! The pass over a payload that writes it anew where rules replace something.
//!
//! A map or an array keeps its number of values, so only replaced values are written anew, and the
//! rest is copied in large pieces. A payload that no rule touches is not copied at all. The pass
//! keeps one [`Level`] for each map or array that it is in, and calls nothing recursively.
//!
//! Nothing leaves it unsearched. Bytes behind the end of the payload's value, or behind a fault in
//! it, are cut off. Values nested deeper than [`MAX_DEPTH`] are replaced. A payload that would grow
//! beyond all measure is replaced as a whole. Each of these is counted.
//!
//! A key of any type is known by the text of its JSON, both before and after patterns. A key that
//! JSON cuts could be anything, so a rule of keys hides its value.

use std::borrow::Cow;

use crate::codec::json;
use crate::codec::msgpack::{self, Item, Malformed, Walker};
use crate::event::redact::path::Edge;
use crate::event::redact::rules::{Asked, HIDDEN, Rules, hit};

/// The deepest nesting of maps and arrays. Salt's own packer stops at 511.
pub(super) const MAX_DEPTH: usize = 512;

/// The bytes that a payload may grow by beyond twice its size.
const GROWTH: usize = 1 << 20;

/// A payload that was written anew.
#[derive(Debug)]
pub(super) struct Rewritten {
    pub(super) payload: Vec<u8>,
    /// The number of values that each rule has replaced; empty if none has.
    pub(super) hits: Vec<u64>,
    pub(super) cut: Cut,
}

/// The parts that were taken out because they could not be searched, as counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Payloads with something behind their value, or behind a fault in it.
    pub(super) torn: u64,
    /// Values that were nested too deep.
    pub(super) too_deep: u64,
    /// Payloads that would have become too long.
    pub(super) too_long: u64,
}

/// The reason why the pass cannot go on.
#[derive(Debug)]
enum Fault {
    Malformed,
    TooLong,
}

impl From<Malformed> for Fault {
    fn from(_: Malformed) -> Self {
        Fault::Malformed
    }
}

/// The payload with values replaced by the rules; `None` if it stays as it is.
pub(super) fn rewrite(rules: &Rules, asked: &Asked, payload: &[u8]) -> Option<Rewritten> {
    let mut pass = Pass {
        rules,
        asked,
        payload,
        walker: Walker::new(payload),
        levels: Vec::new(),
        places: rules.paths.at_top(|rule| asked.has(rule)),
        out: Vec::new(),
        copied: 0,
        longest: payload.len().saturating_mul(2).saturating_add(GROWTH),
        room: json::MAX_KEY_BYTES,
        hits: Vec::new(),
        cut: Cut::default(),
    };
    let result = pass.run();
    let end = pass.walker.offset();
    let Pass { mut out, copied, hits, mut cut, .. } = pass;
    if let Err(Fault::TooLong) = result {
        out.clear();
        msgpack::write_str(HIDDEN, &mut out);
        cut.too_long = 1;
    } else {
        cut.torn = u64::from(end < payload.len());
        if copied == 0 && cut.torn == 0 {
            return None;
        }
        out.extend_from_slice(payload.get(copied..end).unwrap_or_default());
    }
    Some(Rewritten { payload: out, hits, cut })
}

/// A map or an array that the pass is in.
struct Level<'a> {
    /// Keys and values of a map, or values of an array, that are still to come.
    left: u64,
    kind: Container<'a>,
    /// The place where its places begin (see [`crate::event::redact::path`]); they end where those
    /// of the next level begin.
    places: usize,
}

#[derive(Clone, Copy)]
enum Container<'a> {
    /// With the last key.
    Map(Option<Key<'a>>),
    /// With its length.
    Array(u64),
}

/// A key, of which the head was read.
#[derive(Clone, Copy)]
struct Key<'a> {
    head: Item<'a>,
    /// The place where it begins in the payload.
    from: usize,
    /// The place where it begins in the new payload.
    written_from: usize,
}

struct Pass<'a> {
    rules: &'a Rules,
    asked: &'a Asked,
    payload: &'a [u8],
    walker: Walker<'a>,
    levels: Vec<Level<'a>>,
    /// The steps that the paths have reached, level by level.
    places: Vec<usize>,
    out: Vec<u8>,
    /// The number of the payload's bytes that are in `out`, or that `out` replaces.
    copied: usize,
    longest: usize,
    /// Bytes that keys which are arrays or maps may still take. JSON has room for no more of them,
    /// and they bound the cost of recognising keys within keys.
    room: usize,
    hits: Vec<u64>,
    cut: Cut,
}

impl<'a> Pass<'a> {
    fn run(&mut self) -> Result<(), Fault> {
        self.value(0)?;
        while let Some(level) = self.levels.last_mut() {
            let Some(left) = level.left.checked_sub(1) else {
                self.places.truncate(level.places);
                self.levels.pop();
                continue;
            };
            level.left = left;
            match level.kind {
                // The key of a pair comes first, and its value is still to come.
                Container::Map(_) if left % 2 == 1 => self.key()?,
                _ => self.child()?,
            }
        }
        Ok(())
    }

    fn key(&mut self) -> Result<(), Fault> {
        let from = self.walker.offset();
        let head = self.walker.item()?;
        let written_from = self.out.len() + (from - self.copied);
        if let Some(Level { kind: Container::Map(last), .. }) = self.levels.last_mut() {
            *last = Some(Key { head, from, written_from });
        }
        // No path leads into a key.
        self.item(from, head, self.places.len())
    }

    fn child(&mut self) -> Result<(), Fault> {
        let Some(level) = self.levels.last() else { return Ok(()) };
        let (kind, beginning, left) = (level.kind, level.places, level.left);
        let places = self.places.len();
        let (by_path, by_key) = match kind {
            Container::Array(len) => (self.follow(beginning, Edge::Index(len - left - 1)), None),
            Container::Map(None) => (self.follow(beginning, Edge::Unnamed), None),
            Container::Map(Some(key)) => self.rules_of_key(key, beginning),
        };
        match by_key.into_iter().chain(by_path).min() {
            None => self.value(places),
            Some(rule) => {
                self.places.truncate(places);
                self.hide(rule)
            }
        }
    }

    fn follow(&mut self, beginning: usize, edge: Edge<'_>) -> Option<usize> {
        self.rules.paths.follow(&mut self.places, beginning, edge)
    }

    /// The first rule for the value under a key that was just passed, by its path and by the key.
    fn rules_of_key(&mut self, key: Key<'a>, beginning: usize) -> (Option<usize>, Option<usize>) {
        let (rules, asked, depth) = (self.rules, self.asked, self.levels.len());
        let rule_of = |text: &[u8]| rules.rule_of_key(text, asked);
        let is_as_it_came = self.copied <= key.from;
        let mut digits = itoa::Buffer::new();
        if is_as_it_came && let Some(text) = plain_text_of(key.head, &mut digits) {
            return (self.follow(beginning, Edge::Name(text)), rule_of(text));
        }
        let came = self.payload.get(key.from..self.walker.offset()).unwrap_or_default();
        let written = match is_as_it_came {
            true => Cow::Borrowed(came),
            false => Cow::Owned(self.written(key)),
        };
        let has_room = self.makes_room(key.head, came.len().max(written.len()));
        let text_of = |key| if has_room { json::key_text(key, depth) } else { None };
        let texts = [text_of(came), text_of(&written)];
        let bytes = [came, &*written].map(|key| msgpack::scalar(key).and_then(Item::bytes));
        let by_key = match texts.iter().any(Option::is_none) {
            true => rules.first_of_keys(asked),
            false => {
                let texts = texts.iter().flatten().map(|text| &**text);
                texts.chain(bytes.into_iter().flatten()).filter_map(rule_of).min()
            }
        };
        let [as_it_came, _] = &texts;
        // A path says bytes where the key has them and is text, though it be damaged.
        let [raw, _] = bytes;
        let name = match key.head {
            Item::Str(_) | Item::Bin(_) => raw,
            _ => as_it_came.as_deref(),
        };
        (self.follow(beginning, name.map_or(Edge::Unnamed, Edge::Name)), by_key)
    }

    /// The msgpack that a key, which was just passed, has become.
    fn written(&self, key: Key<'a>) -> Vec<u8> {
        let put = self.out.get(key.written_from..).unwrap_or_default();
        let rest = self.payload.get(self.copied..self.walker.offset()).unwrap_or_default();
        [put, rest].concat()
    }

    /// There is room for a key of so many bytes. After the first for which there is none there is
    /// no more, since JSON might have none either.
    fn makes_room(&mut self, head: Item<'_>, len: usize) -> bool {
        if !matches!(head, Item::Array(_) | Item::Map(_)) {
            return true;
        }
        let left = self.room.checked_sub(len);
        self.room = left.unwrap_or_default();
        left.is_some()
    }

    /// A value that no rule replaces as a whole; its places are those from `places` on.
    fn value(&mut self, places: usize) -> Result<(), Fault> {
        let from = self.walker.offset();
        let item = self.walker.item()?;
        self.item(from, item, places)
    }

    fn item(&mut self, from: usize, item: Item<'a>, places: usize) -> Result<(), Fault> {
        let (kind, left) = match item {
            Item::Map(pairs) => (Container::Map(None), u64::from(pairs) * 2),
            Item::Array(len) => (Container::Array(len.into()), u64::from(len)),
            _ => {
                self.places.truncate(places);
                return self.scalar(from, item);
            }
        };
        if self.levels.len() < MAX_DEPTH {
            self.levels.push(Level { left, kind, places });
            return Ok(());
        }
        self.places.truncate(places);
        self.cut.too_deep += 1;
        let skipped = self.walker.skip_content(item);
        self.put(from, |out| msgpack::write_str(HIDDEN, out))?;
        self.rest_is_hidden_unless(skipped)
    }

    fn scalar(&mut self, from: usize, item: Item<'_>) -> Result<(), Fault> {
        let (Item::Str(bytes) | Item::Bin(bytes) | Item::Ext(_, bytes)) = item else {
            return Ok(());
        };
        let (asked, hits) = (self.asked, &mut self.hits);
        let Some(text) = self.rules.text(bytes, asked, hits, self.longest) else { return Ok(()) };
        if text.len() > self.longest {
            return Err(Fault::TooLong);
        }
        self.put(from, |out| match item {
            Item::Bin(_) => msgpack::write_bin(&text, out),
            Item::Ext(kind, _) => msgpack::write_ext(kind, &text, out),
            _ => msgpack::write_text(&text, out),
        })
    }

    /// Replaces the next value, of any type.
    fn hide(&mut self, rule: usize) -> Result<(), Fault> {
        let from = self.walker.offset();
        if from >= self.payload.len() {
            return Err(Fault::Malformed);
        }
        let with = self.rules.with(rule);
        let skipped = self.walker.skip();
        let is_hidden = skipped.is_ok_and(|value| {
            msgpack::scalar(value).and_then(Item::bytes) == Some(with.as_bytes())
        });
        if !is_hidden {
            hit(&mut self.hits, rule);
            self.put(from, |out| msgpack::write_str(with, out))?;
        }
        self.rest_is_hidden_unless(skipped.map(|_| ()))
    }

    /// Writes something in place of the payload from `from` to where the walker is.
    fn put(&mut self, from: usize, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Fault> {
        self.out.extend_from_slice(self.payload.get(self.copied..from).unwrap_or_default());
        write(&mut self.out);
        self.copied = self.walker.offset();
        if self.out.len() > self.longest { Err(Fault::TooLong) } else { Ok(()) }
    }

    /// After a fault in a value that was replaced, what stands before the fault is part of it.
    fn rest_is_hidden_unless(&mut self, skipped: Result<(), Malformed>) -> Result<(), Fault> {
        if skipped.is_err() {
            self.copied = self.payload.len();
        }
        Ok(skipped?)
    }
}

/// The text of a key's JSON, if the key shows it without more ado.
fn plain_text_of<'t>(key: Item<'t>, digits: &'t mut itoa::Buffer) -> Option<&'t [u8]> {
    match key {
        Item::Str(bytes) | Item::Bin(bytes) => bytes.is_ascii().then_some(bytes),
        Item::Uint(number) => Some(digits.format(number).as_bytes()),
        Item::Int(number) => Some(digits.format(number).as_bytes()),
        Item::Bool(true) => Some(b"true"),
        Item::Bool(false) => Some(b"false"),
        Item::Nil => Some(b"null"),
        Item::Float(_) | Item::Ext(..) | Item::Array(_) | Item::Map(_) => None,
    }
}
