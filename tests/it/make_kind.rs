//! `make kind KIND=…`: it knows the kinds, and the servers that the tests of each need have its
//! name in the list of `tests/servers/install.sh`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Words of that list that are no kinds.
const GROUPS: [&str; 7] = ["tests", "full", "lint", "peers", "salt", "prometheus", "grafana"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All kinds: each has a page.
fn kinds() -> BTreeSet<String> {
    let pages = ["docs/sinks", "docs/sources"].map(|folder| fs::read_dir(root().join(folder)));
    let pages = pages.into_iter().flat_map(Result::unwrap).map(|page| page.unwrap().path());
    pages.map(|page| page.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// The folders that servers are installed in, each with its words.
fn servers() -> Vec<(String, BTreeSet<String>)> {
    let script = fs::read_to_string(root().join("tests/servers/install.sh")).unwrap();
    let lines = script.lines().filter_map(|line| line.strip_prefix("server '"));
    let server = |line: &str| {
        let (words, rest) = line.split_once('\'').unwrap();
        let words = words.split_whitespace().map(str::to_owned).collect();
        (rest.split_whitespace().next().unwrap().to_owned(), words)
    };
    lines.map(server).collect()
}

/// The files of the tests of the whole program.
fn files(folder: PathBuf) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(path) } else { vec![path] }).collect()
}

/// A file's tests by their paths in `cargo test`, each with its own code and with the file's code
/// outside of tests. A file without tests is one itself.
fn tests(module: &str, text: &str) -> Vec<(String, String)> {
    let mut parts = text.split("test]\n");
    let mut shared = parts.next().unwrap_or_default().to_owned();
    let mut tests = Vec::new();
    for part in parts {
        let (test, behind) = part.split_once("\n}\n").unwrap_or((part, ""));
        let name = test.split_once("fn ").and_then(|(_, name)| name.split('(').next());
        tests.push((format!("{module}::{}", name.unwrap_or_default()), test));
        shared += behind;
    }
    if tests.is_empty() {
        tests.push((module.to_owned(), ""));
    }
    tests.into_iter().map(|(path, test)| (path, format!("{shared}{test}"))).collect()
}

#[test]
fn words_are_kinds_or_groups_and_never_both() {
    let kinds = kinds();
    let both: Vec<_> = GROUPS.iter().filter(|word| kinds.contains(**word)).collect();
    assert!(both.is_empty(), "{both:?} are kinds, and words of install.sh for something else");
    for (server, words) in servers() {
        let is_known = |word: &&String| kinds.contains(*word) || GROUPS.contains(&word.as_str());
        let unknown: Vec<_> = words.iter().filter(|word| !is_known(word)).collect();
        assert!(
            unknown.is_empty(),
            "install.sh installs {server} for {unknown:?}, which is nothing"
        );
    }
}

#[test]
fn a_kind_has_the_servers_that_its_tests_name() {
    let (kinds, servers) = (kinds(), servers());
    let folder = root().join("tests/it");
    for file in files(folder.clone()) {
        let text = fs::read_to_string(&file).unwrap();
        let module = file.strip_prefix(&folder).unwrap().with_extension("");
        let module = module.to_str().unwrap().replace('/', "::");
        for (path, code) in tests(&module, &text) {
            for (server, words) in servers.iter().filter(|(_, words)| words.contains("tests")) {
                let (program, release) = server.split_once('-').unwrap_or((server, ""));
                let is_named = code.contains(&format!("\"{server}\""))
                    || code.contains(&format!("harness::{program}"))
                        && code.contains(&format!("\"{release}\""));
                for kind in kinds.iter().filter(|kind| is_named && path.contains(kind.as_str())) {
                    assert!(
                        words.contains(kind),
                        "{path} is a test of `{kind}` and starts {server}: add the word to install.sh"
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_no_kind_is_said_before_anything_is_built() {
    for kind in ["", "tests", "kafak"] {
        let mut make = Command::new("make");
        make.args(["--no-print-directory", "CARGO=true", "CC=true", "kind"]);
        let output = make.arg(format!("KIND={kind}")).current_dir(root()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("make kind: which one?") && said.contains(" sqlite3 "), "{said}");
    }
}
