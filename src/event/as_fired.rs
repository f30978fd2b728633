//! A return as the master has fired it, made from the load that it hands to its job cache a moment
//! later.
//!
//! In between Salt's `fire_ret_load` looks at highstates that failed, and fires an event for each
//! of their states. For that it writes into the states themselves: `retcode` into each of them, and
//! into those that failed `jid`, `id`, `success`, `return`, `fun`, `user` and `_stamp` as well.
//! Without these the two are one event again, which is stored and counted once.

use std::borrow::Cow;

use super::job_return::JobReturn;
use crate::codec::msgpack::{self, MapWriter};

/// The functions for which Salt does so (`salt.utils.event.SUB_EVENT`).
const MARKED: [&str; 2] = ["state.highstate", "state.sls"];

/// The keys that each state gets, and those for failed states alone.
const OF_ALL: [&str; 1] = ["retcode"];
const OF_FAILED: [&str; 8] = ["retcode", "jid", "id", "success", "return", "fun", "user", "_stamp"];

/// The return before the master wrote into its states. A job of several functions is left as it is.
pub(crate) fn as_fired(load: &[u8]) -> Cow<'_, [u8]> {
    match unmarked(load) {
        Some(fired) => Cow::Owned(fired),
        None => Cow::Borrowed(load),
    }
}

fn unmarked(load: &[u8]) -> Option<Vec<u8>> {
    let job_return = JobReturn::of(load);
    let function = job_return.functions.single()?;
    if !MARKED.contains(&function) || job_return.retcode()? == 0 {
        return None;
    }
    let (retcode, jid) = (msgpack::find(load, "retcode")?, msgpack::find(load, "jid")?);
    let mut states = MapWriter::default();
    let mut has_changed = false;
    for (key, state) in msgpack::raw_pairs(job_return.value()?) {
        let Some(unmarked) = state_unmarked(state, retcode, jid) else {
            states.pair(key, state);
            continue;
        };
        has_changed = true;
        states.pair(key, &unmarked);
    }
    if !has_changed {
        return None;
    }
    Some(msgpack::with_value(load, "return", &states.finished()))
}

/// The state without the master's additions; `None` if there are none.
fn state_unmarked(state: &[u8], retcode: &[u8], jid: &[u8]) -> Option<Vec<u8>> {
    if msgpack::find(state, "retcode")? != retcode {
        return None;
    }
    let has_failed = msgpack::find(state, "jid") == Some(jid);
    Some(msgpack::without(state, if has_failed { &OF_FAILED } else { &OF_ALL }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn packed(value: &Value) -> Vec<u8> {
        rmp_serde::to_vec(value).unwrap()
    }

    fn fired(fun: &str, retcode: u32) -> Value {
        json!({"id": "web-1", "jid": "7", "fun": fun, "retcode": retcode, "success": false,
            "return": {
                "a_|-a_|-a_|-b": {"result": true, "name": "a"},
                "c_|-c_|-c_|-d": {"result": false, "name": "c", "changes": {"retcode": 1}},
            }, "user": "root"})
    }

    /// The same after the additions of Salt 3006 to 3008.
    fn marked(fun: &str, retcode: u32) -> Value {
        let mut load = fired(fun, retcode);
        let states = load["return"].as_object_mut().unwrap();
        for state in states.values_mut() {
            state["retcode"] = json!(retcode);
        }
        let failed = states.get_mut("c_|-c_|-c_|-d").unwrap();
        for (key, value) in [
            ("_stamp", "now"),
            ("jid", "7"),
            ("id", "web-1"),
            ("return", "Error: c.d"),
            ("fun", fun),
            ("user", "root"),
        ] {
            failed[key] = json!(value);
        }
        failed["success"] = json!(false);
        load
    }

    #[test]
    fn what_the_master_wrote_into_failed_states_is_taken_out() {
        for fun in MARKED {
            assert_eq!(*as_fired(&packed(&marked(fun, 2))), packed(&fired(fun, 2)));
        }
    }

    #[test]
    fn all_else_is_left_as_it_is() {
        let mut other = fired("state.sls", 2);
        other["return"]["a_|-a_|-a_|-b"]["retcode"] = json!(1);
        for load in [
            fired("state.sls", 2),
            marked("state.apply", 2),
            marked("state.sls", 0),
            other,
            json!({"fun": "state.sls", "retcode": 1, "jid": "7", "return": ["no sls"]}),
            json!([]),
        ] {
            assert_eq!(*as_fired(&packed(&load)), packed(&load), "{load}");
        }
    }
}
