//! Every kind of sink goes through the same life. Its store is absent at the start, killed, slow,
//! hanging, refusing for a while, refusing one event, storing half, behind another password,
//! removed. The daemon is killed in the middle, and drains at the end. After each the store holds
//! every event. The stores are real: files, databases, a full file system, servers.
//!
//! A kind is a file here: a [`Store`], and a `kind!` that names its faults. A fault that it cannot
//! be put through is `none("the reason")` there, and its tests are ignored with that reason. To add
//! a kind, write its file and its `mod` line.
//!
//! Tests of an invariant of the architecture have its number in their names.

use std::fs;
use std::path::Path;

use crate::harness::daemon::saltern;

mod files;
mod lives;

/// The store of a kind under test.
pub(crate) trait Store: Sized {
    /// The number of copies that there may be of an event that was sent twice.
    const COPIES: Copies = Copies::AtLeastOne;

    /// A shell command that runs before the daemon in its mount namespace, where the store is to
    /// refuse events; `FOLDER` is the test's folder.
    const BEFORE: Option<&'static str> = None;

    /// Starts it. Its files, if they are the daemon's to write, are in `store/` of this folder.
    fn start(folder: &Path) -> Self;

    /// The settings under the kind in the configuration.
    fn settings(&self) -> String;

    /// The tags of the events that it holds, in order; `None` if it keeps nothing.
    fn tags(&self) -> Option<Vec<String>>;

    /// From now on [`Store::tags`] tells what the daemon of this pid sees in its mount namespace.
    fn look_inside(&mut self, _pid: u32) {}
}

#[derive(PartialEq)]
pub(crate) enum Copies {
    One,
    AtLeastOne,
}

/// The store of a kind that keeps nothing.
struct Nothing;

impl Store for Nothing {
    fn start(_: &Path) -> Self {
        Nothing
    }

    fn settings(&self) -> String {
        "{}".to_owned()
    }

    fn tags(&self) -> Option<Vec<String>> {
        None
    }
}

/// Breaks the store; of the daemon of this pid, if it has started.
pub(crate) type Fault<S> = fn(&mut S, Option<u32>) -> Repair<S>;

/// Repairs it again.
pub(crate) type Repair<S> = Box<dyn FnOnce(&mut S)>;

/// A fault that needs no repair.
pub(crate) fn for_good<S>() -> Repair<S> {
    Box::new(|_| ())
}

/// A test of a fault of a kind's store.
macro_rules! life {
    ($life:ident, $kind:literal, $store:ty, none($why:literal)) => {
        #[test]
        #[ignore = $why]
        fn $life() {}
    };
    ($life:ident, $kind:literal, $store:ty, $($fault:expr)?) => {
        #[test]
        fn $life() {
            super::lives::$life::<$store>($kind $(, $fault)?);
        }
    };
}

/// The tests of a kind of sink, by the faults of its store:
///
/// * `absent`: it is not there when the daemon starts
/// * `killed`: it ends in the middle of a batch and comes back with its data
/// * `held`: it does not answer
/// * `hangs`: the same, where a write can be broken off
/// * `refusing`: it takes nothing for a while
/// * `rejecting`: it takes no event of number 13
/// * `halving`: it takes a part of a batch and then nothing for a while
/// * `password`: the settings with a wrong password
/// * `removed`: its contents are gone, and later events are stored
///
/// A kind that keeps no event, and so has no store, is `kind! { "NAME" keeps nothing: "why" }`.
macro_rules! kind {
    ($kind:literal keeps nothing: $why:literal) => {
        kind! { $kind in super::Nothing:
            absent: { none($why) }
            killed: { none($why) }
            held: { none($why) }
            hangs: { none($why) }
            refusing: { none($why) }
            rejecting: { none($why) }
            halving: { none($why) }
            password: { none($why) }
            removed: { none($why) }
        }
    };
    ($kind:literal in $store:ty:
        absent: { $($absent:tt)+ }
        killed: { $($killed:tt)+ }
        held: { $($held:tt)+ }
        hangs: { $($hangs:tt)+ }
        refusing: { $($refusing:tt)+ }
        rejecting: { $($rejecting:tt)+ }
        halving: { $($halving:tt)+ }
        password: { $($password:tt)+ }
        removed: { $($removed:tt)+ }
    ) => {
        life!(absent_at_start, $kind, $store, $($absent)+);
        life!(invariant_2_killed_in_mid_batch, $kind, $store, $($killed)+);
        life!(invariant_2_slow, $kind, $store, $($held)+);
        life!(invariant_8_stops_in_time, $kind, $store, $($held)+);
        life!(invariants_2_and_6_back_pressure, $kind, $store, $($held)+);
        life!(invariant_2_hanging, $kind, $store, $($hangs)+);
        life!(invariant_2_refusing, $kind, $store, $($refusing)+);
        life!(invariant_5_rejecting_one, $kind, $store, $($rejecting)+);
        life!(invariant_3_partly_storing, $kind, $store, $($halving)+);
        life!(wrong_password, $kind, $store, $($password)+);
        life!(removed, $kind, $store, $($removed)+);
        life!(invariant_4_killed_and_restarted, $kind, $store,);
        life!(invariant_8_drains, $kind, $store,);
    };
}

mod blackhole;
mod clickhouse;
mod kafka;
mod local;
mod rawfile_json;
mod sqlite3;
mod webhook;

#[test]
fn every_kind_of_sink_is_here() {
    let said = String::from_utf8(saltern(&["sinks"]).stdout).unwrap();
    let sinks = said.split("\n\n").next().unwrap().lines().skip(1);
    let here = include_str!("mod.rs");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/conformance");
    for kind in sinks.map(|line| line.split_whitespace().next().unwrap()) {
        assert!(here.contains(&format!("\nmod {kind};\n")), "{kind}: see the head of {}", file!());
        let file = fs::read_to_string(folder.join(format!("{kind}.rs"))).unwrap();
        let entry = format!("\nkind! {{ \"{kind}\" ");
        assert!(file.contains(&entry), "the entry of {kind} is of another kind");
    }
}
