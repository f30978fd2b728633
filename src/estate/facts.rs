//! The facts of an event that the estate counts, read in one walk over its payload.

use super::series::OTHER;
use crate::codec::msgpack::{self, Item, Malformed, Walker};
use crate::event::job_return::{JobReturn, Outcome, State, States};

/// The fields of a payload that the estate asks for. One that is missing or of another type is
/// empty.
#[derive(Debug, Default)]
pub(super) struct Facts<'a> {
    /// The functions, and the fields that tell their outcomes.
    job_return: JobReturn<'a>,
    /// `id`.
    pub(super) id: &'a str,
    /// `jid`.
    pub(super) jid: &'a str,
    /// `act`, of authentications and keys.
    pub(super) act: &'a str,
    /// `result`, of authentications and keys.
    pub(super) result: Option<bool>,
    /// `schedule` names the job's schedule.
    pub(super) is_scheduled: bool,
    /// `minions`, the array.
    pub(super) minions: &'a [u8],
    /// `present`, `new` and `lost` of presence events, the arrays.
    pub(super) present: &'a [u8],
    pub(super) new: &'a [u8],
    pub(super) lost: &'a [u8],
    /// `arg` and `fun_args`.
    given: Given<'a>,
    /// The same as arrays of arrays, for a job of several functions: one for each.
    arrays: (&'a [u8], &'a [u8]),
    /// The states of `return`.
    pub(super) runs: Vec<Run<'a>>,
    /// The findings of the walk over `return`.
    states: States,
}

/// States of one file that ended alike.
#[derive(Debug, PartialEq)]
pub(super) struct Run<'a> {
    pub(super) sls: &'a str,
    pub(super) result: Option<bool>,
    pub(super) count: u32,
    /// The time that they took together, in milliseconds.
    pub(super) millis: f64,
}

/// A function that a job runs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Call<'a> {
    /// Its name.
    pub(super) function: &'a str,
    /// The states that it runs: what salt-exporter has in its label `state`.
    pub(super) state: &'a str,
    /// It only says what it would do (`test=True`).
    pub(super) is_test: bool,
    /// It is a mock (`mock=True`).
    pub(super) is_mock: bool,
}

/// Functions of a job that are told apart. The others are one, named `other`.
pub(super) const FUNCTIONS: usize = 32;

/// A function of a job of several.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) call: Call<'a>,
    said: Said<'a>,
}

/// The outcome of a function, or the way to it.
#[derive(Debug)]
enum Said<'a> {
    /// This.
    Alone(JobReturn<'a>),
    /// The same as the part at that place, which has the same name: they share one return.
    With(usize),
    /// The outcome of the functions that are not told apart.
    Others(Outcome),
}

/// The arguments of a function, under the names that a new job and a return have for them.
#[derive(Debug, Default, Clone, Copy)]
struct Given<'a> {
    arg: Arguments<'a>,
    fun_args: Arguments<'a>,
}

/// The arguments of a function.
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

impl<'a> Facts<'a> {
    /// Reads a payload, as far as it is well formed.
    pub(super) fn of(payload: &'a [u8]) -> Self {
        let mut facts = Facts::default();
        // Facts that were read before a fault are kept.
        let _ = facts.read(payload);
        facts
    }

    fn read(&mut self, payload: &'a [u8]) -> Result<(), Malformed> {
        let mut walker = Walker::new(payload);
        let Item::Map(pairs) = walker.item()? else { return Ok(()) };
        for _ in 0..pairs {
            let key = walker.key()?;
            let from = walker.offset();
            let since = |end| payload.get(from..end).unwrap_or_default();
            match key {
                b"arg" => {
                    self.given.arg = Arguments::read(&mut walker)?;
                    self.arrays.0 = since(walker.offset());
                }
                b"fun_args" => {
                    self.given.fun_args = Arguments::read(&mut walker)?;
                    self.arrays.1 = since(walker.offset());
                }
                b"return" => {
                    let runs = &mut self.runs;
                    self.states = States::walk(&mut walker, &mut |state| add_state(runs, state))?;
                    self.job_return.take(b"return", since(walker.offset()));
                }
                name => {
                    let value = walker.whole()?;
                    let whole = || since(walker.offset());
                    let text = || value.text().unwrap_or_default();
                    match name {
                        b"id" => self.id = text(),
                        b"jid" => self.jid = text(),
                        b"act" => self.act = text(),
                        b"result" => {
                            self.result =
                                if let Item::Bool(truth) = value { Some(truth) } else { None };
                        }
                        b"schedule" => self.is_scheduled = !text().is_empty(),
                        b"fun" | b"success" | b"retcode" => self.job_return.take(name, whole()),
                        b"minions" => self.minions = whole(),
                        b"present" => self.present = whole(),
                        b"new" => self.new = whole(),
                        b"lost" => self.lost = whole(),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// The outcome of the return, all of its functions together.
    pub(super) fn outcome(&self) -> Outcome {
        self.job_return.verdict_of(self.states).outcome
    }

    /// The function of the job, unless it is one of several.
    pub(super) fn call(&self) -> Option<Call<'a>> {
        match self.job_return.functions.single() {
            Some(function) => Some(self.given.to(function)),
            None if self.is_of_several() => None,
            None => Some(self.given.to("")),
        }
    }

    /// All functions that are named.
    pub(super) fn functions(&self) -> impl Iterator<Item = &'a str> {
        self.job_return.functions.iter()
    }

    fn is_of_several(&self) -> bool {
        self.job_return.functions.listed().next().is_some()
    }

    /// The functions of a job of several; none if it has a single one. Each field is walked over
    /// once, however many functions there are.
    pub(super) fn parts(&self) -> Vec<Part<'a>> {
        let functions = self.job_return.functions.items();
        let names: Vec<_> = functions.clone().take(FUNCTIONS).collect();
        let others = functions.skip(FUNCTIONS);
        let has_others = others.clone().next().is_some();
        let field = |(key, value)| Field::of(key, value, &names, has_others, others.clone());
        let fields = self.job_return.fields().map(field);
        let value = self.job_return.value();
        let is_by_name = matches!(value.and_then(msgpack::scalar), Some(Item::Map(_)));
        let mut places = (msgpack::items(self.arrays.0), msgpack::items(self.arrays.1));
        let mut parts: Vec<Part<'a>> = Vec::new();
        for (place, fun) in names.iter().enumerate() {
            let arguments = |array: Option<&'a [u8]>| {
                let array = array.unwrap_or_default();
                Arguments::read(&mut Walker::new(array)).unwrap_or_default()
            };
            let given =
                Given { arg: arguments(places.0.next()), fun_args: arguments(places.1.next()) };
            let Some(function) = text(fun) else { continue };
            let before = parts.iter().position(|part| part.call.function == function);
            let said = match before.filter(|_| is_by_name) {
                Some(before) => Said::With(before),
                None => Said::Alone(said_at(place, fun, &fields)),
            };
            parts.push(Part { call: given.to(function), said });
        }
        if has_others {
            let call = Call { function: OTHER, ..Call::default() };
            let outcome = fields.iter().fold(Outcome::Unknown, |all, field| all.and(field.others));
            parts.push(Part { call, said: Said::Others(outcome) });
        }
        parts
    }
}

impl<'a> Part<'a> {
    /// The return of this part alone.
    pub(super) fn value(&self) -> Option<&'a [u8]> {
        match &self.said {
            Said::Alone(said) => said.value(),
            Said::With(_) | Said::Others(_) => None,
        }
    }

    /// Its outcome; appends to `runs` the states that it ran. `before` has the outcomes of the
    /// parts before it.
    pub(super) fn judge(&self, before: &[Outcome], runs: &mut Vec<Run<'a>>) -> Outcome {
        runs.clear();
        match &self.said {
            Said::Alone(said) => {
                let mut walker = Walker::new(said.value().unwrap_or_default());
                let states = States::walk(&mut walker, &mut |state| add_state(runs, state));
                said.verdict_of(states.unwrap_or_default()).outcome
            }
            Said::With(place) => before.get(*place).copied().unwrap_or_default(),
            Said::Others(outcome) => *outcome,
        }
    }
}

/// A field of the return of a job of several functions, with its part of each.
struct Field<'a> {
    key: &'static str,
    /// The values of the functions that are told apart.
    each: Vec<Option<&'a [u8]>>,
    /// The outcome of the others by this field.
    others: Outcome,
}

impl<'a> Field<'a> {
    /// Reads the value under each name or at its place; a single value is that of all. Names are
    /// msgpack.
    fn of(
        key: &'static str,
        value: Option<&'a [u8]>,
        names: &[&'a [u8]],
        has_others: bool,
        mut others: impl Iterator<Item = &'a [u8]>,
    ) -> Self {
        let mut field = Field { key, each: vec![None; names.len()], others: Outcome::Unknown };
        let Some(value) = value else { return field };
        match msgpack::scalar(value) {
            Some(Item::Map(_)) => {
                for (name, value) in msgpack::raw_pairs(value) {
                    let mut is_among = false;
                    for (place, known) in field.each.iter_mut().zip(names) {
                        if *known == name || text(known) == text(name) {
                            place.get_or_insert(value);
                            is_among = true;
                        }
                    }
                    if !is_among && has_others {
                        field.judge_other(name, value);
                    }
                }
            }
            Some(Item::Array(_)) => {
                let mut values = msgpack::items(value);
                for (place, value) in field.each.iter_mut().zip(values.by_ref()) {
                    *place = Some(value);
                }
                for (name, value) in others.by_ref().zip(values) {
                    field.judge_other(name, value);
                }
            }
            _ => {
                field.each.fill(Some(value));
                if let Some(name) = others.next() {
                    field.judge_other(name, value);
                }
            }
        }
        field
    }

    fn judge_other(&mut self, name: &'a [u8], value: &'a [u8]) {
        let mut said = JobReturn::default();
        said.take(b"fun", name);
        said.take(self.key.as_bytes(), value);
        self.others = self.others.and(said.outcome());
    }
}

/// The return of the function at a place.
fn said_at<'a>(place: usize, fun: &'a [u8], fields: &[Field<'a>]) -> JobReturn<'a> {
    let mut said = JobReturn::default();
    said.take(b"fun", fun);
    for field in fields {
        if let Some(value) = field.each.get(place).copied().flatten() {
            said.take(field.key.as_bytes(), value);
        }
    }
    said
}

fn text(value: &[u8]) -> Option<&str> {
    msgpack::scalar(value)?.text()
}

/// States of a file stand together, mostly.
fn add_state<'a>(runs: &mut Vec<Run<'a>>, state: State<'a>) {
    let State { sls, result, millis } = state;
    // Text that was checked once is not checked again.
    let known = runs.last().map(|last| last.sls).filter(|known| known.as_bytes() == sls);
    let sls = known.unwrap_or_else(|| std::str::from_utf8(sls).unwrap_or_default());
    match runs.last_mut() {
        Some(last) if last.sls == sls && last.result == result => {
            last.count += 1;
            last.millis += millis;
        }
        _ => runs.push(Run { sls, result, count: 1, millis }),
    }
}

impl<'a> Given<'a> {
    /// The call of a function with these arguments.
    fn to(&self, function: &'a str) -> Call<'a> {
        Call {
            function,
            state: self.state(function),
            is_test: self.arg.test.or(self.fun_args.test).unwrap_or(false),
            is_mock: self.arg.mock.or(self.fun_args.mock).unwrap_or(false),
        }
    }

    fn state(&self, function: &str) -> &'a str {
        let arguments = if self.arg.count > 0 { self.arg } else { self.fun_args };
        let keyword = match function {
            "state.highstate" => return "highstate",
            "state.apply" if arguments.count == 0 => return "highstate",
            "state.sls" | "state.apply" => arguments.mods,
            "state.single" => arguments.fun,
            _ => return "",
        };
        if arguments.first.is_empty() { keyword } else { arguments.first }
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
                match (walker.key()?, walker.whole()?) {
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
    msgpack::items(array).filter_map(|item| msgpack::scalar(item).and_then(Item::bytes))
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
            Run { sls: "web", result: Some(true), count: 2, millis: 3.5 },
            Run { sls: "db", result: None, count: 1, millis: 0.0 },
        ];
        assert_eq!(facts.runs, expected);
        let call = Call { function: "state.apply", state: "web", is_test: true, is_mock: false };
        assert_eq!((facts.id, facts.call()), ("web-1", Some(call)));
        assert_eq!(facts.outcome(), Outcome::Failed);
    }

    #[test]
    fn the_state_of_a_job_is_found_where_salt_exporter_finds_it() {
        let state = |data: serde_json::Value| {
            let payload = rmp_serde::to_vec(&data).unwrap();
            Facts::of(&payload).call().unwrap().state.to_owned()
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
    fn each_of_several_functions_has_its_arguments_its_outcome_and_its_states() {
        let states =
            json!({"x_|-a_|-a_|-nop": {"__sls__": "web", "result": false, "duration": 2.0}});
        let data = json!({
            "fun": ["test.ping", "state.apply"], "fun_args": [[], ["web", {"test": true}]],
            "retcode": {"test.ping": 0, "state.apply": 2},
            "return": {"test.ping": true, "state.apply": states},
        });
        let payload = rmp_serde::to_vec(&data).unwrap();
        let facts = Facts::of(&payload);
        let ping = Call { function: "test.ping", ..Call::default() };
        let apply = Call { function: "state.apply", state: "web", is_test: true, is_mock: false };
        let run = Run { sls: "web", result: Some(false), count: 1, millis: 2.0 };
        assert_eq!((facts.call(), facts.outcome()), (None, Outcome::Failed));
        assert_eq!(
            calls(&facts),
            [(ping, Outcome::Worked, vec![]), (apply, Outcome::Failed, vec![run])]
        );
    }

    /// The parts, with the outcome of each and the states that it ran.
    fn calls<'a>(facts: &Facts<'a>) -> Vec<(Call<'a>, Outcome, Vec<Run<'a>>)> {
        let (mut outcomes, mut calls) = (Vec::new(), Vec::new());
        for part in facts.parts() {
            let mut runs = Vec::new();
            let outcome = part.judge(&outcomes, &mut runs);
            outcomes.push(outcome);
            calls.push((part.call, outcome, runs));
        }
        calls
    }

    #[test]
    fn each_of_several_functions_is_judged_by_its_part() {
        use Outcome::{Failed, Unknown, Worked};
        let both = json!(["test.ping", "state.sls", "cmd.run"]);
        let failed = json!({"test_|-a_|-a_|-nop": {"result": true}, "test_|-b_|-b_|-nop": {"result": false}});
        for (data, expected) in [
            (
                json!({"fun": both, "retcode": {"test.ping": 0, "state.sls": 0, "cmd.run": 1},
                "return": {"test.ping": true, "state.sls": failed}}),
                [Worked, Failed, Failed],
            ),
            (
                json!({"fun": both, "retcode": [0, 0], "success": [true, true, true],
                "return": [true, failed, ""]}),
                [Worked, Failed, Worked],
            ),
            (
                json!({"fun": both, "retcode": 0, "success": {"cmd.run": false}}),
                [Worked, Worked, Failed],
            ),
            (json!({"fun": both, "retcode": {"test.ping": 0}}), [Worked, Unknown, Unknown]),
        ] {
            let payload = rmp_serde::to_vec(&data).unwrap();
            let outcomes: Vec<_> =
                calls(&Facts::of(&payload)).into_iter().map(|(_, outcome, _)| outcome).collect();
            assert_eq!(outcomes, expected, "{data}");
        }
        let single = rmp_serde::to_vec(&json!({"fun": "test.ping", "retcode": 0})).unwrap();
        assert_eq!(Facts::of(&single).parts().len(), 0);
    }

    #[test]
    fn invariant_6_a_name_that_stands_many_times_is_judged_once() {
        let states = json!({"x_|-a_|-a_|-nop": {"__sls__": "web", "result": false}});
        let of = |returned: serde_json::Value| {
            let names = vec!["state.apply"; FUNCTIONS];
            let data = json!({"fun": names, "retcode": 0, "return": returned});
            rmp_serde::to_vec(&data).unwrap()
        };
        let (by_name, in_order) =
            (of(json!({"state.apply": states})), of(json!(vec![states; FUNCTIONS])));
        for (payload, expected) in [(by_name, 1), (in_order, FUNCTIONS)] {
            let calls = calls(&Facts::of(&payload));
            assert_eq!(calls.iter().map(|(.., runs)| runs.len()).sum::<usize>(), expected);
            assert_eq!(calls.len(), FUNCTIONS);
            assert!(calls.iter().all(|(_, outcome, _)| *outcome == Outcome::Failed));
        }
    }

    #[test]
    fn the_functions_that_are_not_told_apart_are_judged_by_themselves() {
        let names: Vec<_> = (0..FUNCTIONS + 8).map(|number| format!("state.f{number}")).collect();
        let (first, last) = (&names[0], &names[FUNCTIONS]);
        let states = json!({"x_|-a_|-a_|-nop": {"result": false}});
        let at = |failed: usize, good: serde_json::Value, bad: serde_json::Value| -> Vec<_> {
            (0..names.len()).map(|n| if n == failed { bad.clone() } else { good.clone() }).collect()
        };
        for (data, expected) in [
            (json!({"retcode": {first: 1, last: 0}}), [Outcome::Failed, Outcome::Worked]),
            (json!({"retcode": {first: 0, last: 1}}), [Outcome::Worked, Outcome::Failed]),
            (
                json!({"success": at(0, json!(true), json!(false))}),
                [Outcome::Failed, Outcome::Worked],
            ),
            (
                json!({"retcode": at(FUNCTIONS + 3, json!(0), json!(1))}),
                [Outcome::Worked, Outcome::Failed],
            ),
            (json!({"retcode": 0, "return": {last: states}}), [Outcome::Worked, Outcome::Failed]),
            (json!({"retcode": 0, "return": {first: states}}), [Outcome::Failed, Outcome::Worked]),
            (
                json!({"retcode": 0, "return": at(FUNCTIONS, json!({}), states.clone())}),
                [Outcome::Worked, Outcome::Failed],
            ),
            (json!({"retcode": 0}), [Outcome::Worked, Outcome::Worked]),
            (json!({}), [Outcome::Unknown, Outcome::Unknown]),
        ] {
            let mut data = data;
            data["fun"] = json!(names);
            let payload = rmp_serde::to_vec(&data).unwrap();
            let calls = calls(&Facts::of(&payload));
            let found = [calls[0].1, calls[FUNCTIONS].1];
            assert_eq!((found, calls[FUNCTIONS].0.function), (expected, OTHER), "{data}");
        }
    }

    #[test]
    fn a_minion_that_names_many_functions_is_read_to_an_end() {
        let functions: Vec<_> = (0..10_000).map(|number| format!("test.f{number}")).collect();
        let payload = rmp_serde::to_vec(&json!({"fun": functions, "retcode": 0})).unwrap();
        let calls = calls(&Facts::of(&payload));
        assert_eq!(calls.len(), FUNCTIONS + 1);
        let others = Call { function: OTHER, ..Call::default() };
        assert_eq!(calls.last(), Some(&(others, Outcome::Worked, vec![])));
    }

    #[test]
    fn any_bytes_can_be_read() {
        let payload = rmp_serde::to_vec(
            &json!({"id": "a", "arg": [{"mods": ["x"]}], "return": {"a_|-b": {"result": {}}}, "fun": ["a"]}),
        );
        let payload = payload.unwrap();
        for end in 0..payload.len() {
            let facts = Facts::of(&payload[..end]);
            let _ = (facts.call(), calls(&facts), facts.outcome());
        }
        assert_eq!(Facts::of(&payload).runs.len(), 1);
        assert_eq!(texts(b"\x93\xa1a\x01\xa1b").collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(texts(b"\xdd\xff\xff\xff\xff").count(), 0);
    }
}
