//! The sink `local`, which keeps nothing that could be looked at.

use std::path::Path;

use super::Store;

struct Local;

impl Store for Local {
    fn start(_: &Path) -> Self {
        Local
    }

    fn settings(&self) -> String {
        "{}".to_owned()
    }

    fn tags(&self) -> Option<Vec<String>> {
        None
    }
}

kind! { "local" in Local:
    absent: { none("it has no store") }
    killed: { none("it has no store") }
    held: { none("it has no store") }
    hangs: { none("it has no store") }
    refusing: { none("it has no store") }
    rejecting: { none("it has no store") }
    halving: { none("it has no store") }
    password: { none("it has no store") }
    removed: { none("it has no store") }
}
