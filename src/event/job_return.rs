//! The outcome of a return: the one rule, for filters, tables, metrics, the job cache and people.
//!
//! A return says up to three things of itself: `retcode`, `success`, and the data (`return`). A job
//! of several functions says each of them for every function: in a map by name, or in a list in the
//! order of `fun` (`multifunc_ordered`).
//!
//! 1. A return code that is not zero, or a `success` that is false, of any function: *failed*.
//! 2. A state function whose states say `result: false`, or that gives a list of texts in place of
//!    states (the errors of a compile): *failed*. Salt says `success: true` of a scheduled
//!    highstate that failed, and `salt-call` says no `success` at all.
//! 3. Neither `retcode` nor `success`: *unknown*.
//! 4. Else: *worked*. States with `result: None` would change something and were run with
//!    `test=True`: that is worked too, and marked.
//!
//! A runner (and a wheel function) is judged by its `return` too. An orchestration has its return
//! code and its states there, and a load that Salt hands to a job cache the runner's whole event.
//!
//! Values of other types than Salt gives them say nothing. Nothing here recurses without a bound.

use std::borrow::Cow;
use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::msgpack::{self, Item, Malformed, Walker};

/// The outcome of a return.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It reports only success.
    Worked,
    /// Something failed.
    Failed,
    /// It does not say.
    #[default]
    Unknown,
}

impl Outcome {
    /// Its name in filters, tables, headers and answers.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Worked => "worked",
            Outcome::Failed => "failed",
            Outcome::Unknown => "unknown",
        }
    }

    /// The outcome of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let all = [Outcome::Worked, Outcome::Failed, Outcome::Unknown];
        all.into_iter().find(|outcome| outcome.name() == name)
    }

    /// The outcome for "it worked" being true or false.
    pub(crate) fn of_worked(worked: Option<bool>) -> Self {
        match worked {
            Some(true) => Outcome::Worked,
            Some(false) => Outcome::Failed,
            None => Outcome::Unknown,
        }
    }

    /// The outcome of two together.
    pub(crate) fn and(self, other: Outcome) -> Self {
        match (self, other) {
            (Outcome::Failed, _) | (_, Outcome::Failed) => Outcome::Failed,
            (Outcome::Worked, _) | (_, Outcome::Worked) => Outcome::Worked,
            _ => Outcome::Unknown,
        }
    }

    /// True if it worked; `None` if that is unknown.
    pub(crate) fn worked(self) -> Option<bool> {
        match self {
            Outcome::Worked => Some(true),
            Outcome::Failed => Some(false),
            Outcome::Unknown => None,
        }
    }
}

/// The outcome of a return, and whether it was a test.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The outcome.
    pub outcome: Outcome,
    /// A state says what it would change (`test=True`).
    pub test: bool,
}

/// The names under `fun`: one, or those of a job of several functions. Each of them is the job's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Functions<'a> {
    /// The name, if it is a single one. It is read once, and asked for often.
    single: Option<&'a str>,
    /// The value of `fun`, as msgpack.
    fun: &'a [u8],
}

impl<'a> Functions<'a> {
    /// The functions that this msgpack names.
    pub(crate) fn of(fun: &'a [u8]) -> Self {
        Functions { single: msgpack::scalar(fun).and_then(Item::text), fun }
    }

    /// The name, if it is a single one.
    pub(crate) fn single(self) -> Option<&'a str> {
        self.single
    }

    /// All names.
    pub(crate) fn iter(self) -> impl Iterator<Item = &'a str> + Clone {
        self.single().into_iter().chain(self.listed())
    }

    /// The names, if they stand in a list.
    pub(crate) fn listed(self) -> impl Iterator<Item = &'a str> + Clone {
        self.items().filter_map(|item| msgpack::scalar(item).and_then(Item::text))
    }

    /// The items of the list, as msgpack.
    pub(crate) fn items(self) -> impl Iterator<Item = &'a [u8]> + Clone {
        msgpack::items(self.fun)
    }

    /// The names for the eye, with commas between them as on Salt's command line.
    pub(crate) fn shown(self) -> Cow<'a, str> {
        match self.single() {
            Some(name) => Cow::Borrowed(name),
            None => Cow::Owned(self.listed().collect::<Vec<_>>().join(",")),
        }
    }
}

/// The fields of a return that tell its outcome, as msgpack.
#[derive(Debug, Clone, Copy, Default)]
pub struct JobReturn<'a> {
    /// `fun`.
    pub(crate) functions: Functions<'a>,
    retcode: Option<&'a [u8]>,
    success: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
}

/// The depth to which a runner's return may lie in another one: Salt hands one on within a return.
const RUNNERS_DEEP: u8 = 2;

/// State functions that give a list of texts when they work.
const LISTING: [&str; 3] = ["state.running", "state.show_states", "state.list_disabled"];

impl<'a> JobReturn<'a> {
    /// The return that this map is.
    pub fn of(payload: &'a [u8]) -> Self {
        let mut known = JobReturn::default();
        for (name, value) in msgpack::pairs(payload) {
            known.take(name, value);
        }
        known
    }

    /// Takes a field of the payload, if it tells the outcome.
    pub(crate) fn take(&mut self, name: &[u8], value: &'a [u8]) {
        match name {
            b"fun" => self.functions = Functions::of(value),
            b"retcode" => self.retcode = Some(value),
            b"success" => self.success = Some(value),
            b"return" => self.value = Some(value),
            _ => {}
        }
    }

    /// The fields by name, as msgpack.
    pub(crate) fn fields(&self) -> [(&'static str, Option<&'a [u8]>); 3] {
        [("retcode", self.retcode), ("success", self.success), ("return", self.value)]
    }

    /// The value of `return`, as msgpack.
    pub(crate) fn value(&self) -> Option<&'a [u8]> {
        self.value
    }

    /// Salt's own `success`. A job of several functions has true if all of them do.
    pub(crate) fn success(&self) -> Option<bool> {
        all_said(self.success?, truth, |one, other| one && other)
    }

    /// Salt's own `retcode`. A job of several functions has the first that is not zero.
    pub(crate) fn retcode(&self) -> Option<i64> {
        all_said(self.retcode?, code, |one, other| if one == 0 { other } else { one })
    }

    /// True of a return of a runner or a wheel function: the master's word, and no minion's.
    pub(crate) fn is_of_runner(&self) -> bool {
        if let Some(function) = self.functions.single() {
            return is_runner(function);
        }
        let mut functions = self.functions.listed().peekable();
        match functions.peek() {
            Some(_) => functions.all(is_runner),
            // Salt's `store_job` adds the function only after it has handed the load on once.
            None => self.runner_within().is_some(),
        }
    }

    /// The event's data of a runner, if Salt hands the return to a job cache as that of a minion.
    pub(crate) fn runner_within(&self) -> Option<&'a [u8]> {
        let inner = self.value?;
        let function = msgpack::find(inner, "fun").and_then(msgpack::scalar)?.text()?;
        is_runner(function).then_some(inner)
    }

    /// Its outcome.
    pub(crate) fn outcome(&self) -> Outcome {
        self.verdict().outcome
    }

    /// Its outcome, and whether it was a test.
    pub fn verdict(&self) -> Verdict {
        self.signs(RUNNERS_DEEP).verdict()
    }

    /// The same with the result of a walk over the states of `return`.
    pub(crate) fn verdict_of(&self, states: States) -> Verdict {
        match self.functions.single() {
            Some(function) if !is_runner(function) => {
                self.codes().and(states.signs_of(function)).verdict()
            }
            // The states lie deeper.
            _ => self.verdict(),
        }
    }

    fn codes(&self) -> Signs {
        let (code, success) = (self.retcode(), self.success());
        Signs {
            is_bad: code.is_some_and(|code| code != 0) || success == Some(false),
            is_said: code.is_some() || success.is_some(),
            is_test: false,
        }
    }

    fn signs(&self, depth: u8) -> Signs {
        let signs = self.codes();
        let Some(value) = self.value else { return signs };
        if self.is_of_runner() {
            let Some(depth) = depth.checked_sub(1) else { return signs };
            return signs.and(JobReturn::of(value).signs(depth)).and(self.orchestrated());
        }
        if let Some(function) = self.functions.single() {
            return signs.and(signs_of_states(function, value));
        }
        let by_name = msgpack::pairs(value)
            .filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)));
        let in_order = self.functions.listed().zip(msgpack::items(value));
        let functions: HashSet<&str> = self.functions.listed().collect();
        by_name
            .filter(|(name, _)| functions.contains(name))
            .chain(in_order)
            .fold(signs, |signs, (function, value)| signs.and(signs_of_states(function, value)))
    }

    /// The signs of an orchestration's states. They stand under the master's id, and that mostly
    /// under `data` (`state.orchestrate_single` and `orchestrate_high` go without).
    fn orchestrated(&self) -> Signs {
        let function = self.functions.single().unwrap_or_default();
        let Some(value) = self.value.filter(|_| function.starts_with("runner.state.")) else {
            return Signs::default();
        };
        let in_data = msgpack::pairs(msgpack::find(value, "data").unwrap_or_default());
        // Beside the masters stand other fields, whose lists are no errors.
        let is_map = |value: &[u8]| matches!(msgpack::scalar(value), Some(Item::Map(_)));
        let beside = msgpack::pairs(value).filter(|(_, value)| is_map(value));
        in_data.chain(beside).fold(Signs::default(), |signs, (_, value)| {
            signs.and(signs_of_states("state.orchestrate", value))
        })
    }
}

/// True of the functions that the master runs itself.
fn is_runner(function: &str) -> bool {
    function.starts_with("runner.") || function.starts_with("wheel.")
}

fn signs_of_states(function: &str, value: &[u8]) -> Signs {
    if !is_of_states(function) {
        return Signs::default();
    }
    let mut walker = Walker::new(value);
    States::walk(&mut walker, &mut |_| ()).unwrap_or_default().signs_of(function)
}

fn is_of_states(function: &str) -> bool {
    function.starts_with("state.") || function.starts_with("transactional_update.")
}

/// The signs of a return, good and bad.
#[derive(Debug, Clone, Copy, Default)]
struct Signs {
    is_bad: bool,
    /// A return code or a `success` is there.
    is_said: bool,
    is_test: bool,
}

impl Signs {
    fn and(self, other: Signs) -> Signs {
        Signs {
            is_bad: self.is_bad || other.is_bad,
            is_said: self.is_said || other.is_said,
            is_test: self.is_test || other.is_test,
        }
    }

    fn verdict(self) -> Verdict {
        let outcome = match (self.is_bad, self.is_said) {
            (true, _) => Outcome::Failed,
            (false, true) => Outcome::Worked,
            (false, false) => Outcome::Unknown,
        };
        Verdict { outcome, test: self.is_test }
    }
}

/// The facts of a state that bear on the outcome of its return.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct State<'a> {
    /// `__sls__`, the file that it stands in, as bytes; empty if it does not say. States of a file
    /// stand together, so that one of them is enough to check for being UTF-8.
    pub(crate) sls: &'a [u8],
    /// `result`; `None` is what a state says that would change something.
    pub(crate) result: Option<bool>,
    /// `duration` in milliseconds, 0 or more.
    pub(crate) millis: f64,
}

/// The result of a walk over `return`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct States {
    has_failed: bool,
    is_test: bool,
    /// There are texts in place of states, and nothing else.
    is_texts: bool,
}

impl States {
    /// Walks over a `return` and shows each state in it. Other values are passed over.
    pub(crate) fn walk<'a>(
        walker: &mut Walker<'a>,
        see: &mut dyn FnMut(State<'a>),
    ) -> Result<States, Malformed> {
        let mut states = States::default();
        let head = walker.item()?;
        if let Item::Array(items) = head {
            states.is_texts = items > 0;
            for _ in 0..items {
                states.is_texts &= walker.whole()?.bytes().is_some();
            }
            return Ok(states);
        }
        let Item::Map(pairs) = head else {
            walker.skip_content(head)?;
            return Ok(states);
        };
        for _ in 0..pairs {
            let key = walker.key()?;
            let value = walker.item()?;
            let Item::Map(fields) = value else {
                walker.skip_content(value)?;
                continue;
            };
            if !is_of_state(key) {
                walker.skip_content(value)?;
                continue;
            }
            let mut state = State { sls: b"", result: None, millis: 0.0 };
            for _ in 0..fields {
                let key = walker.key()?;
                // By length first: most fields are stepped over without a look at their names.
                match key.len() {
                    6 if key == b"result" => match walker.whole()? {
                        Item::Nil => states.is_test = true,
                        value => state.result = truth(value),
                    },
                    7 if key == b"__sls__" => {
                        state.sls = walker.whole()?.bytes().unwrap_or_default();
                    }
                    8 if key == b"duration" => {
                        if let Item::Float(millis) = walker.whole()?
                            && millis.is_finite()
                        {
                            state.millis = millis.max(0.0);
                        }
                    }
                    _ => {
                        walker.skip()?;
                    }
                }
            }
            states.has_failed |= state.result == Some(false);
            see(state);
        }
        Ok(states)
    }

    fn signs_of(self, function: &str) -> Signs {
        if !is_of_states(function) {
            return Signs::default();
        }
        let has_not_compiled = self.is_texts && !LISTING.contains(&function);
        Signs { is_bad: self.has_failed || has_not_compiled, is_said: false, is_test: self.is_test }
    }
}

/// The word of the value, or of the values of a map or list.
fn all_said<T>(value: &[u8], read: fn(Item<'_>) -> Option<T>, join: fn(T, T) -> T) -> Option<T> {
    let said = |value| msgpack::scalar(value).and_then(read);
    match msgpack::scalar(value)? {
        Item::Array(_) => msgpack::items(value).filter_map(said).reduce(join),
        Item::Map(_) => msgpack::raw_pairs(value).filter_map(|(_, value)| said(value)).reduce(join),
        item => read(item),
    }
}

/// True of the key of a state in a return: `file_|-ID_|-NAME_|-managed`. The first part of it is a
/// few bytes long, so that comparing them one by one is over before a search has begun.
fn is_of_state(key: &[u8]) -> bool {
    key.windows(3).any(|part| matches!(part, b"_|-"))
}

fn truth(item: Item<'_>) -> Option<bool> {
    match item {
        Item::Bool(truth) => Some(truth),
        _ => None,
    }
}

fn code(item: Item<'_>) -> Option<i64> {
    match item {
        Item::Int(code) => Some(code),
        Item::Uint(code) => Some(i64::try_from(code).unwrap_or(i64::MAX)),
        Item::Bool(code) => Some(i64::from(code)),
        Item::Float(code) => Some(i64::from(code != 0.0)),
        // Text that is a number, as JSON of others may have it.
        item => item.text()?.trim().parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn verdict(data: &Value) -> (Outcome, bool) {
        let payload = rmp_serde::to_vec(data).unwrap();
        let judged = JobReturn::of(&payload);
        let verdict = judged.verdict();
        // The result is the same with a walk that was done before.
        let mut walker = Walker::new(judged.value().unwrap_or_default());
        let states = States::walk(&mut walker, &mut |_| ()).unwrap_or_default();
        assert_eq!(judged.verdict_of(states), verdict, "{data}");
        (verdict.outcome, verdict.test)
    }

    fn state(result: Value) -> Value {
        json!({"test_|-a_|-a_|-nop": {"result": true}, "test_|-b_|-b_|-nop": {"result": result}})
    }

    #[test]
    fn the_rule() {
        use Outcome::{Failed, Unknown, Worked};
        let states = |fun: &str, result: Value| json!({"fun": fun, "retcode": 0, "success": true, "return": state(result)});
        let both = json!(["test.ping", "cmd.run"]);
        for (data, expected) in [
            // Return codes and `success`.
            (json!({}), Unknown),
            (json!({"retcode": null, "success": null, "return": true}), Unknown),
            (json!({"retcode": 0}), Worked),
            (json!({"retcode": -1}), Failed),
            (json!({"retcode": u64::MAX, "success": true}), Failed),
            (json!({"success": true}), Worked),
            (json!({"success": false, "retcode": 0}), Failed),
            (json!({"success": "yes", "retcode": "none"}), Unknown),
            (json!({"success": true, "retcode": "1"}), Failed),
            (json!({"success": true, "retcode": 0.5}), Failed),
            (json!({"retcode": 0.0}), Worked),
            // Several functions, by name and in order.
            (
                json!({"fun": both, "retcode": {"test.ping": 0, "cmd.run": 1},
                "success": {"test.ping": true, "cmd.run": false}}),
                Failed,
            ),
            (json!({"fun": both, "retcode": [0, 1], "success": [true, true]}), Failed),
            (json!({"fun": both, "retcode": [0, 0], "success": [true, false]}), Failed),
            (
                json!({"fun": both, "retcode": {"test.ping": 0, "cmd.run": 0},
                "success": {"test.ping": true, "cmd.run": true}}),
                Worked,
            ),
            (json!({"fun": both, "retcode": {}, "success": []}), Unknown),
            (
                json!({"fun": ["test.ping", "state.sls"], "retcode": [0, 0],
                "return": [true, state(json!(false))]}),
                Failed,
            ),
            (
                json!({"fun": ["test.ping", "state.sls"], "retcode": {"state.sls": 0},
                "return": {"test.ping": true, "state.sls": state(json!(false))}}),
                Failed,
            ),
            // A scheduled job says of its states that they succeeded, in any case.
            (states("state.apply", json!(true)), Worked),
            (states("state.apply", json!(false)), Failed),
            (states("transactional_update.apply", json!(false)), Failed),
            (states("mine.get", json!(false)), Worked),
            (json!({"fun": "state.sls", "retcode": 0, "return": ["No matching sls"]}), Failed),
            (json!({"fun": "state.sls", "retcode": 0, "return": []}), Worked),
            (json!({"fun": "state.show_low_sls", "retcode": 0, "return": [{}]}), Worked),
            (json!({"fun": "state.show_states", "retcode": 0, "return": ["a"]}), Worked),
            (json!({"fun": "cmd.run", "retcode": 0, "return": ["a"]}), Worked),
            (json!({"fun": "state.sls", "return": state(json!(true))}), Unknown),
            // `salt-call` returned this.
            (json!({"fun": "state.highstate", "retcode": 0, "return": state(json!(true))}), Worked),
        ] {
            assert_eq!(verdict(&data), (expected, false), "{data}");
        }
        assert_eq!(verdict(&states("state.apply", json!(null))), (Worked, true));
    }

    #[test]
    fn a_runner_is_judged_by_what_is_inside_its_return() {
        use Outcome::{Failed, Unknown, Worked};
        let orchestrated = |retcode: u32, result: bool| {
            json!({"fun": "runner.state.orchestrate", "success": true, "fun_args": ["orch"], "return": {
                "retcode": retcode, "outputter": "highstate",
                "data": {"m": {"salt_|-a_|-a_|-state": {"result": result}}}}})
        };
        let handed_on = |inner: &Value| json!({"id": "m", "jid": "1", "return": inner});
        for (inner, expected) in [
            (orchestrated(0, true), Worked),
            (orchestrated(1, true), Failed),
            (orchestrated(0, false), Failed),
            (json!({"fun": "runner.saltutil.sync_all", "success": true, "return": {}}), Worked),
            (json!({"fun": "runner.a.b", "success": false, "return": "Exception"}), Failed),
            (json!({"fun": "wheel.key.list_all", "success": true, "return": {"a": []}}), Worked),
            (json!({"fun": "runner.a.b", "return": {"up": []}}), Unknown),
            (json!({"fun": "runner.a.b", "success": true, "return": {"success": false}}), Failed),
            (
                json!({"fun": "runner.state.orchestrate_single", "success": true,
                "return": {"m": {"test_|-a_|-a_|-nop": {"result": false}}}}),
                Failed,
            ),
            (
                json!({"fun": "runner.state.orch", "success": true,
                "return": {"data": {"m": ["no sls"]}}}),
                Failed,
            ),
        ] {
            assert_eq!(verdict(&inner).0, expected, "{inner}");
            assert_eq!(verdict(&handed_on(&inner)).0, expected, "{inner}");
            let mut named = handed_on(&inner);
            named["fun"] = inner["fun"].clone();
            assert_eq!(verdict(&named).0, expected, "{named}");
        }
        // A minion's return is no runner's, with any contents.
        let data = json!({"fun": "x.y", "retcode": 0, "return": {"fun": "a", "retcode": 1}});
        assert_eq!(verdict(&data).0, Worked);
    }

    #[test]
    fn many_functions_are_judged_in_one_go() {
        let names: Vec<_> = (0..50_000).map(|number| format!("test.f{number}")).collect();
        let returns: serde_json::Map<_, _> =
            names.iter().rev().map(|name| (name.clone(), json!(true))).collect();
        let data = json!({"fun": names, "retcode": 0, "return": returns});
        let payload = rmp_serde::to_vec(&data).unwrap();
        let since = std::time::Instant::now();
        assert_eq!(JobReturn::of(&payload).outcome(), Outcome::Worked);
        // Looking for each name among all of them took minutes.
        assert!(since.elapsed() < std::time::Duration::from_secs(20), "{:?}", since.elapsed());
    }

    #[test]
    fn what_salt_says_of_several_functions_is_one_value_in_a_column() {
        let said = |data: Value| {
            let payload = rmp_serde::to_vec(&data).unwrap();
            let judged = JobReturn::of(&payload);
            (judged.success(), judged.retcode(), judged.functions.shown().into_owned())
        };
        let (yes, no) = (Some(true), Some(false));
        for (data, expected) in [
            (json!({"fun": "a.b", "success": true, "retcode": 2}), (yes, Some(2), "a.b")),
            (
                json!({"fun": ["a.b", "c.d"], "success": {"a.b": true, "c.d": false},
                "retcode": {"a.b": 0, "c.d": 3}}),
                (no, Some(3), "a.b,c.d"),
            ),
            (
                json!({"fun": ["a.b", 5], "success": [true, true], "retcode": [0, 0]}),
                (yes, Some(0), "a.b"),
            ),
            (json!({"fun": null, "success": {}, "retcode": "x"}), (None, None, "")),
        ] {
            let (success, retcode, shown) = expected;
            assert_eq!(said(data.clone()), (success, retcode, shown.to_owned()), "{data}");
        }
    }

    #[test]
    fn states_are_shown_in_passing() {
        let data = json!({
            "pkg_|-a_|-a_|-installed":
                {"__sls__": "web", "result": true, "duration": 1.5, "changes": {"a": [1]}},
            "no state": {"result": false},
            "cmd_|-c_|-c_|-run": {"duration": "3 ms", "result": null, "__sls__": "db"},
        });
        let payload = rmp_serde::to_vec(&data).unwrap();
        let mut seen = Vec::new();
        let states = States::walk(&mut Walker::new(&payload), &mut |state| seen.push(state));
        let expected = [
            State { sls: b"web", result: Some(true), millis: 1.5 },
            State { sls: b"db", result: None, millis: 0.0 },
        ];
        assert_eq!(seen, expected);
        assert_eq!(states, Ok(States { is_test: true, ..States::default() }));
    }

    #[test]
    fn any_bytes_are_judged() {
        let data = json!({"fun": ["state.sls"], "retcode": [0], "return": [state(json!(false))]});
        let payload = rmp_serde::to_vec(&data).unwrap();
        for end in 0..=payload.len() {
            let _ = JobReturn::of(&payload[..end]).verdict();
        }
        let mut payload = Vec::new();
        rmpv::encode::write_value(&mut payload, &nest(1000)).unwrap();
        assert_eq!(JobReturn::of(&payload).outcome(), Outcome::Unknown);
    }

    /// Returns of runners, each in the return of another one.
    fn nest(depth: usize) -> rmpv::Value {
        (0..depth).fold(rmpv::Value::Nil, |inner, _| {
            rmpv::Value::Map(vec![("fun".into(), "runner.a".into()), ("return".into(), inner)])
        })
    }
}
