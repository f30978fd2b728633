//! What an event says of the estate, read in one walk over its payload.

use crate::msgpack::{Item, Malformed, Walker};

/// What the payload says, as far as it is asked for. What is missing or of another type is empty.
#[derive(Debug, Default)]
pub(super) struct Facts<'a> {
    /// `fun`.
    pub(super) function: &'a str,
    /// `id`.
    pub(super) id: &'a str,
    /// `jid`.
    pub(super) jid: &'a str,
    /// `act`, of authentications and keys.
    pub(super) act: &'a str,
    /// `result`, of authentications and keys.
    pub(super) result: Option<bool>,
    /// `success`.
    pub(super) success: bool,
    /// `retcode` is there and not zero.
    pub(super) has_failed: bool,
    /// `schedule` names the job's schedule.
    pub(super) is_scheduled: bool,
    /// `minions`, the array.
    pub(super) minions: &'a [u8],
    /// `present`, `new` and `lost` of presence events, the arrays.
    pub(super) present: &'a [u8],
    pub(super) new: &'a [u8],
    pub(super) lost: &'a [u8],
    /// `arg`.
    arg: Arguments<'a>,
    /// `fun_args`.
    fun_args: Arguments<'a>,
    /// The states of `return`.
    pub(super) states: Vec<States<'a>>,
    /// Whether all of `return` are states that worked; `None` if not all of it are states.
    pub(super) states_worked: Option<bool>,
}

/// States of one file that ended alike.
#[derive(Debug, PartialEq)]
pub(super) struct States<'a> {
    pub(super) sls: &'a str,
    pub(super) result: Option<bool>,
    pub(super) count: u32,
    /// How long they took together, in milliseconds.
    pub(super) millis: f64,
}

/// The arguments of a job.
#[derive(Debug, Default, Clone, Copy)]
struct Arguments<'a> {
    count: u32,
    /// The first, if it is text.
    first: &'a str,
    /// `mods` and `fun` of the first, if it is keyword arguments.
    mods: &'a str,
    fun: &'a str,
    test: Option<bool>,
    mock: Option<bool>,
}

/// What stands between the parts of a state's key in a return.
const STATE: &[u8] = b"_|-";

impl<'a> Facts<'a> {
    /// Reads a payload, as far as it is well formed.
    pub(super) fn of(payload: &'a [u8]) -> Self {
        let mut facts = Facts::default();
        // What was read before a mistake stands.
        let _ = facts.read(payload);
        facts
    }

    fn read(&mut self, payload: &'a [u8]) -> Result<(), Malformed> {
        let mut walker = Walker::new(payload);
        let Item::Map(pairs) = walker.item()? else { return Ok(()) };
        for _ in 0..pairs {
            let key = walker.item()?;
            walker.skip_content(key)?;
            let from = walker.offset();
            let rest = || payload.get(from..).unwrap_or_default();
            match key.bytes().unwrap_or_default() {
                b"arg" => self.arg = Arguments::read(&mut walker)?,
                b"fun_args" => self.fun_args = Arguments::read(&mut walker)?,
                b"return" => self.read_return(&mut walker)?,
                name => {
                    let value = walker.item()?;
                    walker.skip_content(value)?;
                    let truth = if let Item::Bool(truth) = value { Some(truth) } else { None };
                    let text = || value.text().unwrap_or_default();
                    match name {
                        b"fun" => self.function = text(),
                        b"id" => self.id = text(),
                        b"jid" => self.jid = text(),
                        b"act" => self.act = text(),
                        b"result" => self.result = truth,
                        b"success" => self.success = truth == Some(true),
                        b"schedule" => self.is_scheduled = !text().is_empty(),
                        b"retcode" => {
                            let zero = [Item::Uint(0), Item::Int(0), Item::Bool(false), Item::Nil];
                            self.has_failed = !zero.contains(&value);
                        }
                        b"minions" => self.minions = rest(),
                        b"present" => self.present = rest(),
                        b"new" => self.new = rest(),
                        b"lost" => self.lost = rest(),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    fn read_return(&mut self, walker: &mut Walker<'a>) -> Result<(), Malformed> {
        let head = walker.item()?;
        let Item::Map(pairs) = head else { return walker.skip_content(head) };
        let mut have_worked = Some(true);
        for _ in 0..pairs {
            let key = walker.item()?;
            walker.skip_content(key)?;
            let value = walker.item()?;
            let is_state = |key: &[u8]| memchr::memmem::find(key, STATE).is_some();
            let Item::Map(pairs) = value else {
                walker.skip_content(value)?;
                have_worked = None;
                continue;
            };
            if !is_state(key.bytes().unwrap_or_default()) {
                walker.skip_content(value)?;
                have_worked = None;
                continue;
            }
            let (mut sls, mut result, mut millis) = ("", Item::Nil, 0.0);
            for _ in 0..pairs {
                let key = walker.item()?;
                walker.skip_content(key)?;
                let value = walker.item()?;
                walker.skip_content(value)?;
                match (key.bytes().unwrap_or_default(), value) {
                    (b"__sls__", value) => sls = value.text().unwrap_or_default(),
                    (b"result", value) => result = value,
                    (b"duration", Item::Float(duration)) if duration.is_finite() => {
                        millis = duration.max(0.0);
                    }
                    _ => {}
                }
            }
            let result = if let Item::Bool(result) = result { Some(result) } else { None };
            have_worked = have_worked.and_then(|worked| Some(worked & result?));
            self.count_state(sls, result, millis);
        }
        self.states_worked = have_worked;
        Ok(())
    }

    /// States of a file stand together, mostly.
    fn count_state(&mut self, sls: &'a str, result: Option<bool>, millis: f64) {
        match self.states.last_mut() {
            Some(last) if last.sls == sls && last.result == result => {
                last.count += 1;
                last.millis += millis;
            }
            _ => self.states.push(States { sls, result, count: 1, millis }),
        }
    }

    /// The states that a job runs: what salt-exporter has in its label `state`.
    pub(super) fn state(&self) -> &'a str {
        let arguments = if self.arg.count > 0 { self.arg } else { self.fun_args };
        let keyword = match self.function {
            "state.highstate" => return "highstate",
            "state.apply" if arguments.count == 0 => return "highstate",
            "state.sls" | "state.apply" => arguments.mods,
            "state.single" => arguments.fun,
            _ => return "",
        };
        if arguments.first.is_empty() { keyword } else { arguments.first }
    }

    /// Whether the job only says what it would do (`test=True`).
    pub(super) fn is_test(&self) -> bool {
        self.arg.test.or(self.fun_args.test).unwrap_or(false)
    }

    /// Whether the job is a mock (`mock=True`).
    pub(super) fn is_mock(&self) -> bool {
        self.arg.mock.or(self.fun_args.mock).unwrap_or(false)
    }
}

impl<'a> Arguments<'a> {
    fn read(walker: &mut Walker<'a>) -> Result<Self, Malformed> {
        let mut arguments = Arguments::default();
        let head = walker.item()?;
        let Item::Array(count) = head else {
            walker.skip_content(head)?;
            return Ok(arguments);
        };
        arguments.count = count;
        for place in 0..count {
            let argument = walker.item()?;
            let Item::Map(pairs) = argument else {
                walker.skip_content(argument)?;
                if place == 0 {
                    arguments.first = argument.text().unwrap_or_default();
                }
                continue;
            };
            for _ in 0..pairs {
                let key = walker.item()?;
                walker.skip_content(key)?;
                let value = walker.item()?;
                walker.skip_content(value)?;
                match (key.bytes().unwrap_or_default(), value) {
                    (b"mods", value) if place == 0 => {
                        arguments.mods = value.text().unwrap_or_default();
                    }
                    (b"fun", value) if place == 0 => {
                        arguments.fun = value.text().unwrap_or_default();
                    }
                    (b"test", Item::Bool(test)) => arguments.test = arguments.test.or(Some(test)),
                    (b"mock", Item::Bool(mock)) => arguments.mock = arguments.mock.or(Some(mock)),
                    _ => {}
                }
            }
        }
        Ok(arguments)
    }
}

/// The texts of an array.
pub(super) fn texts(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut walker = Walker::new(array);
    let mut left = match walker.item() {
        Ok(Item::Array(count)) => count,
        _ => 0,
    };
    std::iter::from_fn(move || {
        left = left.checked_sub(1)?;
        let item = walker.item().ok()?;
        walker.skip_content(item).ok()?;
        Some(item.bytes())
    })
    .flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn states_are_read_in_passing() {
        let payload = rmp_serde::to_vec(&json!({
            "cmd": "_return", "id": "web-1", "return": {
                "pkg_|-a_|-a_|-installed": {"__sls__": "web", "result": true, "duration": 1.5, "changes": {"a": [1]}},
                "pkg_|-b_|-b_|-installed": {"duration": 2.0, "result": true, "__sls__": "web"},
                "cmd_|-c_|-c_|-run": {"__sls__": "db", "result": null, "duration": "3 ms"},
            }, "retcode": 2, "fun_args": ["web", {"test": true, "mock": 1}], "fun": "state.apply",
        }));
        let payload = payload.unwrap();
        let facts = Facts::of(&payload);
        let expected = [
            States { sls: "web", result: Some(true), count: 2, millis: 3.5 },
            States { sls: "db", result: None, count: 1, millis: 0.0 },
        ];
        assert_eq!(facts.states, expected);
        assert_eq!((facts.id, facts.function, facts.state()), ("web-1", "state.apply", "web"));
        assert!(facts.is_test() && !facts.is_mock() && facts.has_failed && !facts.success);
        assert_eq!(facts.states_worked, None);
    }

    #[test]
    fn the_state_of_a_job_is_found_where_salt_exporter_finds_it() {
        let state = |data: serde_json::Value| {
            let payload = rmp_serde::to_vec(&data).unwrap();
            Facts::of(&payload).state().to_owned()
        };
        for (data, expected) in [
            (json!({"fun": "state.apply", "arg": []}), "highstate"),
            (json!({"fun": "state.apply"}), "highstate"),
            (json!({"fun": "state.sls", "arg": []}), ""),
            (json!({"fun": "state.apply", "arg": ["a,b"]}), "a,b"),
            (json!({"fun": "state.sls", "arg": [], "fun_args": [{"mods": "x"}]}), "x"),
            (json!({"fun": "state.apply", "arg": [{"__kwarg__": true, "test": true}]}), ""),
            (json!({"fun": "state.single", "arg": ["test.nop", "name=x"]}), "test.nop"),
            (json!({"fun": "state.single", "fun_args": [{"fun": "test.nop"}]}), "test.nop"),
            (json!({"fun": "state.highstate", "arg": ["x"]}), "highstate"),
            (json!({"fun": "test.ping", "arg": ["x"]}), ""),
        ] {
            assert_eq!(state(data.clone()), expected, "{data}");
        }
    }

    #[test]
    fn any_bytes_can_be_read() {
        let payload = rmp_serde::to_vec(
            &json!({"id": "a", "arg": [{"mods": ["x"]}], "return": {"a_|-b": {"result": {}}}}),
        );
        let payload = payload.unwrap();
        for end in 0..payload.len() {
            let _ = Facts::of(&payload[..end]);
        }
        assert_eq!(Facts::of(&payload).states.len(), 1);
        assert_eq!(texts(b"\x93\xa1a\x01\xa1b").collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(texts(b"\xdd\xff\xff\xff\xff").count(), 0);
    }
}
