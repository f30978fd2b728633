//! The page for people, of a daemon with a source that is away and a sink that fails.

use crate::harness::daemon::{Daemon, wait_for};

#[test]
fn the_page_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let sections = "sources: {away: {salt_bus: {address: /nowhere/at/all.ipc}}}\n\
                    sinks: {out: {blackhole: {}}}\n";
    let daemon = Daemon::start(folder.path(), sections);
    let page = wait_for("the error on the page", || {
        let page = daemon.get("/");
        page.contains("/nowhere/at/all.ipc").then_some(page)
    });
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    for part in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; style-src 'unsafe-inline'",
        "<html lang=\"en\">",
        "Not all is well: the source away is not connected",
        "<th scope=\"row\">away <small>(salt_bus)</small></th>",
        "<th scope=\"row\">out <small>(blackhole)</small></th>",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    daemon.stop();
}
