//! The rows of events in the tables.
//!
//! Every event is a row of `salt_events`. A published job is also a row of `salt_jobs`, and a
//! return one of `salt_returns`, with a row of `salt_states` for each state that it lists, as do
//! orchestrations. No payload can make this fail: a value of another type than Salt gives it
//! becomes NULL or empty, and bytes that are not UTF-8 become U+FFFD.

use jiff::Timestamp;

use super::body::{Insert, Row, Rows};
use super::features::Features;
use super::states::{self, State};
use super::tables::{EVENTS, JOBS, RETURNS, STATES};
use crate::codec::json;
use crate::codec::msgpack::{self, Item, Walker};
use crate::event::batch::{Batch, Entry};
use crate::event::job_return::Outcome;
use crate::event::{EventKind, Fields};

/// The settings of an INSERT of such rows: names and values.
pub(super) fn settings(features: &Features) -> &'static [(&'static str, &'static str)] {
    if features.json_type {
        // A key `a.b` and a key `b` in `a` are one to the type JSON; else it refuses the row.
        &[
            ("input_format_binary_read_json_as_string", "1"),
            ("type_json_skip_duplicated_paths", "1"),
        ]
    } else {
        &[]
    }
}

/// The rows of a batch, a body for each table that gets any.
pub(super) fn encode(batch: &Batch, features: &Features) -> Vec<Insert> {
    let mut tables = Tables {
        events: Rows::new(&EVENTS, features),
        jobs: Rows::new(&JOBS, features),
        returns: Rows::new(&RETURNS, features),
        states: Rows::new(&STATES, features),
        has_json: features.json_type,
        scratch: Vec::new(),
    };
    batch.entries().for_each(|entry| tables.add(entry));
    let Tables { events, jobs, returns, states, .. } = tables;
    [events, jobs, returns, states].into_iter().filter_map(Rows::finish).collect()
}

struct Tables {
    events: Rows,
    jobs: Rows,
    returns: Rows,
    states: Rows,
    /// Payloads go into a column of the type JSON.
    has_json: bool,
    /// Text while it is made; kept for its memory.
    scratch: Vec<u8>,
}

/// The facts of an event, for all of its rows.
struct Known<'a> {
    entry: Entry<'a>,
    fields: Fields<'a>,
    data: Data<'a>,
    /// Microseconds since 1970.
    time: i64,
    success: Option<bool>,
    outcome: Outcome,
    failed: bool,
    /// The sum of the states' durations, or what the event says, in milliseconds.
    duration: Option<f64>,
    id: [u8; 32],
}

/// Fields of the top level that [`Fields`] does not have, as msgpack.
#[derive(Default)]
struct Data<'a> {
    function: Option<&'a [u8]>,
    arguments: Option<&'a [u8]>,
    target: Option<&'a [u8]>,
    target_type: Option<&'a [u8]>,
    minions: Option<&'a [u8]>,
    missing: Option<&'a [u8]>,
    user: Option<&'a [u8]>,
    act: Option<&'a [u8]>,
    schedule: Option<&'a [u8]>,
    result: Option<&'a [u8]>,
    duration: Option<&'a [u8]>,
    return_value: Option<&'a [u8]>,
}

impl<'a> Data<'a> {
    fn of(payload: &'a [u8]) -> Self {
        let mut data = Data::default();
        for (name, value) in msgpack::pairs(payload) {
            let field = match name {
                b"fun" => &mut data.function,
                b"fun_args" => &mut data.arguments,
                // A scheduled return has both, with the same value.
                b"arg" if data.arguments.is_none() => &mut data.arguments,
                b"tgt" => &mut data.target,
                b"tgt_type" => &mut data.target_type,
                b"minions" => &mut data.minions,
                b"missing" => &mut data.missing,
                b"user" => &mut data.user,
                b"act" => &mut data.act,
                b"schedule" => &mut data.schedule,
                b"result" => &mut data.result,
                b"duration" => &mut data.duration,
                b"return" => &mut data.return_value,
                _ => continue,
            };
            *field = Some(value);
        }
        data
    }
}

/// The last time that a `DateTime` can hold, in microseconds since 1970.
const LAST_TIME: i64 = u32::MAX as i64 * 1_000_000;

impl<'a> Known<'a> {
    fn of(entry: Entry<'a>) -> (Self, Vec<State<'a>>) {
        let event = entry.event;
        let (fields, data) = (event.fields(), Data::of(event.payload()));
        let states = states::of(event, data.return_value);
        let stamped = fields.stamped().map(Timestamp::as_microsecond);
        let (said, outcome) = (fields.job_return.success(), fields.job_return.outcome());
        // Logins and keys are no returns, and have their outcomes elsewhere.
        let success = match event.kind() {
            EventKind::Auth | EventKind::Key => said.or_else(|| boolean(data.result)),
            _ => said,
        };
        let known = Known {
            time: stamped
                .filter(|time| (0..=LAST_TIME).contains(time))
                .unwrap_or_else(|| received(entry)),
            success,
            outcome,
            failed: outcome == Outcome::Failed || success == Some(false),
            duration: match states.as_slice() {
                [] => data.duration.and_then(msgpack::scalar).and_then(states::float),
                states => Some(states.iter().filter_map(|state| state.duration).sum()),
            },
            id: event.id().digits(),
            entry,
            fields,
            data,
        };
        (known, states)
    }

    /// Writes the columns that all tables begin with.
    fn begin(&self, row: &mut Row<'_>) {
        row.time(self.time);
        row.time(received(self.entry));
        row.text(self.entry.origin.master_id.as_bytes());
        row.text(self.entry.origin.source.as_bytes());
    }

    fn jid(&self) -> &'a [u8] {
        self.fields.jid.unwrap_or_default().as_bytes()
    }

    fn functions(&self) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.fields.job_return.functions.iter().map(str::as_bytes)
    }

    fn minion(&self) -> &'a [u8] {
        self.fields.minion.unwrap_or_default().as_bytes()
    }
}

impl Tables {
    fn add(&mut self, entry: Entry<'_>) {
        let (known, states) = Known::of(entry);
        self.event(&known);
        match entry.event.kind() {
            EventKind::JobNew => self.job(&known),
            EventKind::JobReturn => self.returned(&known, states.len()),
            _ => {}
        }
        for (position, state) in states.iter().enumerate() {
            self.state(&known, position, state);
        }
    }

    fn event(&mut self, known: &Known<'_>) {
        let event = known.entry.event;
        let mut row = self.events.row();
        known.begin(&mut row);
        row.text(event.tag().as_bytes());
        row.text(event.kind().name().as_bytes());
        row.text(known.jid());
        row.text(known.minion());
        row.text(text(known.data.function, &mut self.scratch));
        row.maybe_flag(known.success);
        row.maybe_int(known.fields.job_return.retcode());
        row.flag(known.failed);
        row.maybe_float(known.duration);
        let is_map = matches!(msgpack::scalar(event.payload()), Some(Item::Map(_)));
        self.scratch.clear();
        if self.has_json && !is_map {
            // The type JSON takes objects only.
            self.scratch.extend_from_slice(b"{\"value\": ");
            event.write_json(&mut self.scratch);
            self.scratch.push(b'}');
        } else {
            event.write_json(&mut self.scratch);
        }
        row.json(&self.scratch);
        row.id(&known.id);
        row.text(text(known.data.user, &mut self.scratch));
        row.text(text(known.data.act, &mut self.scratch));
        row.text(known.outcome.name().as_bytes());
        row.end();
    }

    fn job(&mut self, known: &Known<'_>) {
        let data = &known.data;
        let mut row = self.jobs.row();
        known.begin(&mut row);
        row.text(known.jid());
        row.text(text(data.user, &mut self.scratch));
        row.text(text(data.function, &mut self.scratch));
        row.json(json(data.arguments, &mut self.scratch));
        row.text(text(data.target, &mut self.scratch));
        row.text(text(data.target_type, &mut self.scratch));
        row.texts(list(data.minions));
        row.texts(list(data.missing));
        row.id(&known.id);
        row.texts(known.functions());
        row.end();
    }

    fn returned(&mut self, known: &Known<'_>, states: usize) {
        let data = &known.data;
        let mut row = self.returns.row();
        known.begin(&mut row);
        row.text(known.jid());
        row.text(known.minion());
        row.text(text(data.function, &mut self.scratch));
        row.json(json(data.arguments, &mut self.scratch));
        row.text(text(data.user, &mut self.scratch));
        row.text(text(data.schedule, &mut self.scratch));
        row.maybe_flag(known.success);
        row.maybe_int(known.fields.job_return.retcode());
        row.flag(known.failed);
        row.maybe_float(known.duration.filter(|_| states > 0));
        row.count(u32::try_from(states).unwrap_or(u32::MAX));
        row.json(json(data.return_value, &mut self.scratch));
        row.id(&known.id);
        row.text(known.outcome.name().as_bytes());
        row.texts(known.functions());
        row.end();
    }

    fn state(&mut self, known: &Known<'_>, position: usize, state: &State<'_>) {
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        let mut row = self.states.row();
        known.begin(&mut row);
        row.text(cut(known.jid()));
        row.text(cut(state.minion.unwrap_or(known.minion())));
        row.text(cut(text(known.data.function, &mut self.scratch)));
        row.count(position);
        row.count(state.run.unwrap_or(position));
        row.text(state.id);
        row.text(state.sls);
        self.scratch.clear();
        self.scratch.extend_from_slice(state.module);
        self.scratch.push(b'.');
        self.scratch.extend_from_slice(state.function);
        row.text(&self.scratch);
        row.text(state.name);
        row.maybe_flag(state.result);
        row.flag(state.changes.is_some() && state.result.is_some());
        row.maybe_float(state.duration);
        row.text(text(state.comment, &mut self.scratch));
        row.json(json(state.changes, &mut self.scratch));
        row.id(&known.id);
        row.end();
    }
}

/// The bytes of a job id, a minion id or a function in a row of a state, where they are repeated
/// for each state. No real one has more.
const LONGEST_NAME: usize = 255;

fn cut(name: &[u8]) -> &[u8] {
    name.get(..LONGEST_NAME).unwrap_or(name)
}

fn received(entry: Entry<'_>) -> i64 {
    i64::try_from(entry.received).unwrap_or(LAST_TIME).min(LAST_TIME)
}

fn boolean(value: Option<&[u8]>) -> Option<bool> {
    match msgpack::scalar(value?)? {
        Item::Bool(boolean) => Some(boolean),
        _ => None,
    }
}

/// The value where it is text; nothing of nil; the JSON of anything else, such as a list of
/// minions.
fn text<'t>(value: Option<&'t [u8]>, scratch: &'t mut Vec<u8>) -> &'t [u8] {
    match value.and_then(msgpack::scalar) {
        None | Some(Item::Nil) => b"",
        Some(Item::Str(bytes) | Item::Bin(bytes)) => bytes,
        Some(_) => json(value, scratch),
    }
}

/// The JSON of the value; empty if there is none.
fn json<'t>(value: Option<&[u8]>, scratch: &'t mut Vec<u8>) -> &'t [u8] {
    scratch.clear();
    if let Some(value) = value {
        json::write(value, scratch);
    }
    scratch
}

/// The texts of an array; other values are left out.
fn list(value: Option<&[u8]>) -> impl Iterator<Item = &[u8]> + Clone {
    let mut walker = Walker::new(value.unwrap_or_default());
    let mut left = match walker.item() {
        Ok(Item::Array(len)) => len,
        _ => 0,
    };
    let walk = move || {
        left = left.checked_sub(1)?;
        walker.skip().ok()
    };
    std::iter::from_fn(walk).filter_map(|value| msgpack::scalar(value).and_then(Item::bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use bytes::BytesMut;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::super::features::Format;
    use super::*;
    use crate::event::Event;
    use crate::sink::testing::{READ, batch};
    use crate::source::framing::{Frame, Framer};

    const OLD: (u32, u32) = (18, 16);
    const NEW: (u32, u32) = (26, 9);

    fn event(tag: &str, data: &Value) -> Event {
        Event::new(tag, &rmp_serde::to_vec(data).unwrap())
    }

    type Tables = BTreeMap<&'static str, Vec<Map<String, Value>>>;

    /// The rows that a server of this version reads, by table.
    fn read(events: Vec<Event>, version: (u32, u32)) -> Tables {
        let inserts = encode(&batch(events), &Features::of(version));
        inserts
            .into_iter()
            .map(|insert| {
                let rows: Vec<_> = match insert.format {
                    Format::JsonEachRow => insert
                        .body
                        .split(|byte| *byte == b'\n')
                        .filter(|line| !line.is_empty())
                        .map(|line| serde_json::from_slice(line).unwrap())
                        .collect(),
                    Format::RowBinary => Binary(&insert.body).rows(),
                };
                assert!(!rows.is_empty());
                for row in &rows {
                    let columns: Vec<_> = row.keys().map(String::as_str).collect();
                    assert_eq!(columns.join(", "), insert.columns);
                }
                (insert.table, rows)
            })
            .collect()
    }

    /// Reads `RowBinaryWithNamesAndTypes` as the server does.
    struct Binary<'a>(&'a [u8]);

    impl Binary<'_> {
        fn rows(mut self) -> Vec<Map<String, Value>> {
            let columns = self.length();
            let names: Vec<_> = (0..columns).map(|_| self.string()).collect();
            let types: Vec<_> = (0..columns).map(|_| self.string()).collect();
            let mut rows = Vec::new();
            while !self.0.is_empty() {
                let values: Vec<_> = types.iter().map(|kind| self.value(kind)).collect();
                rows.push(names.iter().cloned().zip(values).collect());
            }
            rows
        }

        fn take<const N: usize>(&mut self) -> [u8; N] {
            let (taken, rest) = self.0.split_first_chunk().unwrap();
            self.0 = rest;
            *taken
        }

        fn length(&mut self) -> usize {
            let [byte] = self.take();
            let low = usize::from(byte & 0x7f);
            if byte < 0x80 { low } else { low | self.length() << 7 }
        }

        fn string(&mut self) -> String {
            let length = self.length();
            let (taken, rest) = self.0.split_at(length);
            self.0 = rest;
            String::from_utf8(taken.to_vec()).unwrap()
        }

        fn value(&mut self, kind: &str) -> Value {
            if let Some(inner) = kind.strip_prefix("Nullable(").and_then(|k| k.strip_suffix(')')) {
                return if self.take() == [1] { Value::Null } else { self.value(inner) };
            }
            match kind {
                "String" | "LowCardinality(String)" | "JSON(max_dynamic_paths=128)" => {
                    self.string().into()
                }
                "FixedString(32)" => String::from_utf8(self.take::<32>().to_vec()).unwrap().into(),
                "UInt8" => u8::from_le_bytes(self.take()).into(),
                "UInt32" => u32::from_le_bytes(self.take()).into(),
                "Int64" | "DateTime64(6, 'UTC')" => i64::from_le_bytes(self.take()).into(),
                "Float64" => f64::from_le_bytes(self.take()).into(),
                "Array(String)" => {
                    let length = self.length();
                    (0..length).map(|_| self.string()).collect()
                }
                kind => panic!("what is {kind}?"),
            }
        }
    }

    /// The rows of a new server in the form of an old one.
    fn aged(mut tables: Tables) -> Tables {
        for row in tables.values_mut().flatten() {
            let received = row["received"].as_i64().unwrap();
            let time = row["time"].as_i64().unwrap();
            row["received"] = (received / 1_000_000).into();
            row["time"] = (time / 1_000_000).into();
            row.insert("time_us".into(), (time % 1_000_000).into());
        }
        tables
    }

    /// serde_json reads floats without their last digit.
    fn rounded(value: Value) -> Value {
        match value.as_f64() {
            Some(float) if value.is_f64() => format!("{float:.12e}").into(),
            _ => value,
        }
    }

    fn same(old: Tables, new: Tables) {
        let unordered = |tables: Tables| {
            let of = |row: Map<String, Value>| {
                row.into_iter().map(|(column, value)| (column, rounded(value))).collect()
            };
            let rows = |rows: Vec<_>| -> Vec<BTreeMap<_, _>> { rows.into_iter().map(of).collect() };
            tables.into_iter().map(|(name, all)| (name, rows(all))).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(unordered(old), unordered(aged(new)));
    }

    fn captured(release: &str) -> Vec<Event> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
        let stream = std::fs::read(folder.join(format!("salt-{release}.bus"))).unwrap();
        let (mut framer, mut stream) = (Framer::new(1 << 20), BytesMut::from(&stream[..]));
        let mut events = Vec::new();
        while let Some(frame) = framer.next(&mut stream).unwrap() {
            if let Frame::Body(body) = frame {
                events.push(Event::parse(body).unwrap());
            }
        }
        events
    }

    #[test]
    fn captures_become_the_same_rows_in_both_formats() {
        for (release, events) in [("3006.28", 159), ("3007.15", 177), ("3008.3", 169)] {
            let old = read(captured(release), OLD);
            assert_eq!(old["salt_events"].len(), events, "{release}");
            assert_eq!(old["salt_jobs"].len(), 17, "{release}");
            // Two minions, five states each; 25 twice; an orchestration of two steps.
            assert_eq!(old["salt_states"].len(), 2 * 5 + 25 + 25 + 2, "{release}");
            same(old, read(captured(release), NEW));
        }
    }

    #[test]
    fn a_highstate_has_its_states() {
        let data = json!({
            "id": "web-1", "fun": "state.apply", "fun_args": ["app"], "retcode": 2, "success": true,
            "jid": "20261121233617130881", "_stamp": "2026-11-21T23:36:17.781248",
            "return": {
                "file_|-/etc/a_|-/etc/a_|-managed": {
                    "changes": {"diff": "New"}, "comment": "updated", "name": "/etc/a",
                    "result": true, "__sls__": "app", "__run_num__": 1, "duration": 25.5,
                    "__id__": "/etc/a"
                },
                "test_|-a_|-b_|-c_|-nop": {"result": null, "changes": {"x": 1}, "duration": 2},
                "cmd_|-bad_|-bad_|-run": ["not a map"],
                "none": {"result": true}
            }
        });
        let tables = read(vec![event("salt/job/20261121233617130881/ret/web-1", &data)], OLD);
        let returned = &tables["salt_returns"][0];
        assert_eq!(returned["states"], 2);
        assert_eq!(returned["duration"], 27.5);
        assert_eq!((&returned["success"], &returned["failed"]), (&json!(1), &json!(1)));
        assert_eq!(returned["time"], 1_795_304_177);
        assert_eq!(returned["time_us"], 781_248);
        let mut states = tables["salt_states"].clone();
        for state in &mut states {
            for shared in ["time", "time_us", "received", "master", "source", "jid", "event_id"] {
                assert_eq!(state.remove(shared), returned.get(shared).cloned());
            }
        }
        assert_eq!(
            Value::from_iter(states),
            json!([
                {
                    "minion": "web-1", "function": "state.apply", "position": 0, "run": 1,
                    "id": "/etc/a", "sls": "app", "state": "file.managed", "name": "/etc/a",
                    "result": 1, "changed": 1, "duration": 25.5, "comment": "updated",
                    "changes": "{\"diff\": \"New\"}"
                },
                {
                    "minion": "web-1", "function": "state.apply", "position": 1, "run": 1,
                    "id": "a", "sls": "", "state": "test.nop", "name": "b_|-c",
                    "result": null, "changed": 0, "duration": 2.0, "comment": "",
                    "changes": "{\"x\": 1}"
                }
            ])
        );
    }

    #[test]
    fn what_is_not_as_salt_makes_it_is_null_or_empty() {
        let data = json!({
            "id": 5, "fun": ["test.ping", "cmd.run"], "retcode": {"a": 1}, "success": "yes",
            "_stamp": "9999-01-01T00:00:00", "tgt": ["a", "b"], "minions": ["a", 1, null, "b"],
            "missing": "x", "user": null, "arg": 1e300, "jid": []
        });
        let tag = "salt/job/20261121233617130881/new";
        let tables = read(vec![event(tag, &data)], OLD);
        let row = &tables["salt_jobs"][0];
        assert_eq!(row["time"], READ / 1_000_000);
        assert_eq!(row["jid"], "20261121233617130881");
        assert_eq!(row["function"], "[\"test.ping\", \"cmd.run\"]");
        assert_eq!(row["target"], "[\"a\", \"b\"]");
        assert_eq!(row["minions"], json!(["a", "b"]));
        assert_eq!(row["missing"], json!([]));
        assert_eq!(row["user"], "");
        assert_eq!(row["arguments"], "1e+300");
        let row = &tables["salt_events"][0];
        assert_eq!([&row["success"], &row["duration"]], [&Value::Null; 2]);
        assert_eq!([&row["retcode"], &row["failed"]], [1, 1]);
    }

    #[test]
    fn each_function_of_a_job_is_the_jobs_function_and_counts() {
        let data = json!({
            "id": "web-1", "fun": ["test.ping", "cmd.run"], "retcode": {"test.ping": 0, "cmd.run": 3},
            "success": {"test.ping": true, "cmd.run": false}, "return": {"test.ping": true, "cmd.run": ""},
        });
        let tables = read(vec![event("salt/job/20261121233617130881/ret/web-1", &data)], OLD);
        let row = &tables["salt_returns"][0];
        assert_eq!(row["functions"], json!(["test.ping", "cmd.run"]));
        let judged = ["success", "retcode", "failed", "outcome"].map(|column| row[column].clone());
        assert_eq!(judged, [json!(0), json!(3), json!(1), json!("failed")]);
        let data = json!({"fun": "test.ping", "arg": [], "minions": ["web-1"]});
        let tables = read(vec![event("salt/job/20261121233617130881/new", &data)], NEW);
        assert_eq!(tables["salt_jobs"][0]["functions"], json!(["test.ping"]));
        assert_eq!(tables["salt_events"][0]["outcome"], "unknown");
    }

    #[test]
    fn a_refused_login_failed() {
        let data = json!({"result": false, "act": "denied", "id": "web-1"});
        let row = &read(vec![event("salt/auth", &data)], OLD)["salt_events"][0];
        assert_eq!((&row["success"], &row["failed"]), (&json!(0), &json!(1)));
    }

    #[test]
    fn a_payload_that_is_no_map_is_an_object_to_the_type_json() {
        let events = || vec![event("a", &json!([1, "\u{0}"])), event("b", &json!({}))];
        let payloads = |version| {
            let tables = read(events(), version);
            tables["salt_events"].iter().map(|row| row["payload"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(payloads(OLD), ["[1, \"\\u0000\"]", "{}"]);
        assert_eq!(payloads(NEW), ["{\"value\": [1, \"\\u0000\"]}", "{}"]);
    }

    #[test]
    fn many_small_states_and_long_names_stay_bounded() {
        let states: Map<_, _> =
            (0..20_000).map(|n| (format!("a_|-{n}_|-b_|-c"), json!({}))).collect();
        let data =
            json!({"fun": "x".repeat(100_000), "jid": "y".repeat(100_000), "return": states});
        let events = || vec![event("salt/job/20261121233617130881/ret/web-1", &data)];
        assert_eq!(read(events(), NEW)["salt_states"].len(), 10_000);
        let tables = encode(&batch(events()), &Features::of(NEW));
        let states = tables.iter().find(|insert| insert.table == "salt_states").unwrap();
        assert!(states.body.len() < 10_000 * 700, "{}", states.body.len());
    }

    proptest! {
        #[test]
        fn no_payload_is_too_strange(
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            tag in prop_oneof![
                Just("salt/job/20261121233617130881/ret/web-1"), Just("salt/auth"),
                Just("salt/job/20261121233617130881/new"), Just("salt/run/1/ret"),
            ],
        ) {
            let events = || vec![Event::new(tag, &payload)];
            let (mut old, new) = (read(events(), OLD), aged(read(events(), NEW)));
            for (table, rows) in new {
                for (new, mut old) in rows.into_iter().zip(old.remove(table).unwrap()) {
                    // Wrapped for the type JSON.
                    old.remove("payload");
                    for (column, value) in old {
                        prop_assert_eq!(rounded(new[&column].clone()), rounded(value));
                    }
                }
            }
            prop_assert!(old.is_empty());
        }

        #[test]
        fn no_state_is_too_strange(
            key in "[a-z]{0,3}(_\\|-[a-zä]{0,3}){0,5}",
            value in proptest::collection::vec(any::<u8>(), 0..100),
            fields in proptest::collection::vec(
                (prop_oneof![
                    Just("name"), Just("result"), Just("changes"), Just("duration"),
                    Just("comment"), Just("__run_num__"), Just("__sls__"), Just("__id__"),
                ], any::<i64>(), any::<f64>(), 0..4_u8),
                0..8,
            ),
        ) {
            let fields = fields.into_iter().map(|(name, int, float, which)| {
                let value = match which {
                    0 => rmpv::Value::from(int),
                    1 => rmpv::Value::from(float),
                    2 => rmpv::Value::Binary(value.clone()),
                    _ => rmpv::Value::Array(vec![int.into()]),
                };
                (name.into(), value)
            });
            let state = rmpv::Value::Map(fields.collect());
            let data = rmpv::Value::Map(vec![(
                "return".into(), rmpv::Value::Map(vec![(key.as_str().into(), state)]),
            )]);
            let mut payload = Vec::new();
            rmpv::encode::write_value(&mut payload, &data).unwrap();
            let tag = "salt/job/20261121233617130881/ret/web-1";
            let tables = || vec![Event::new(tag, &payload)];
            let (old, new) = (read(tables(), OLD), read(tables(), NEW));
            prop_assert_eq!(old.contains_key("salt_states"), key.matches("_|-").count() >= 3);
            same(old, new);
        }
    }
}
