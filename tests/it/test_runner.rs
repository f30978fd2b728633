//! `tests/run.py`, which runs each failed test once more, on a small crate of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Returns from a test if it was here before.
const BEFORE: &str = "fn was_here(name: &str) -> bool {
    let mark = std::path::Path::new(env!(\"CARGO_MANIFEST_DIR\")).join(name);
    mark.exists() || std::fs::write(mark, \"\").is_err()
}
";

/// A crate with these test programs.
fn tried(programs: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let manifest = "[package]\nname = \"tried\"\nedition = \"2024\"\n[workspace]\n";
    fs::write(folder.path().join("Cargo.toml"), manifest).unwrap();
    fs::create_dir_all(folder.path().join("tests")).unwrap();
    fs::create_dir(folder.path().join("src")).unwrap();
    fs::write(folder.path().join("src/lib.rs"), "").unwrap();
    for (name, text) in programs {
        let path = folder.path().join(format!("tests/{name}.rs"));
        fs::write(path, format!("{BEFORE}{text}")).unwrap();
    }
    folder
}

/// The runner's word on the crate: how it ended, and the lines of its summary.
fn run(folder: &Path) -> (bool, Vec<String>) {
    let runner = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/run.py");
    let mut command = Command::new("python3");
    command.args([runner, "--offline", "--quiet"]).current_dir(folder);
    command.env("CARGO", env!("CARGO")).env("CARGO_TARGET_DIR", folder.join("target"));
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8(stdout).unwrap();
    // Indented, so that the runner which runs this test does not take it for its own.
    print!("{}", format!("{said}{}", String::from_utf8_lossy(&stderr)).replace('\n', "\n  | "));
    let summary = fs::read_to_string(folder.join("target/failed-tests/summary"));
    let summary = summary.unwrap_or_default();
    assert!(said.ends_with(&summary), "the summary is the end of what is said");
    (status.success(), summary.lines().map(str::to_owned).collect())
}

#[test]
fn a_test_that_passes_the_second_time_is_a_flake_and_no_failure() {
    let crate_of_flake = tried(&[(
        "flaky",
        "mod inner {
            #[test] fn once() { assert!(crate::was_here(\"once\"), \"failures:\\n    not_this\\n\") }
            #[test] fn always() {}
        }",
    )]);
    let (is_success, summary) = run(crate_of_flake.path());
    assert!(is_success);
    assert_eq!(
        &summary[..2],
        ["Passed alone, the second time; flakes to be found:", "    flaky: inner::once"]
    );
    assert_eq!(summary.last().unwrap(), "2 passed, 0 failed");
    let kept = fs::read_dir(crate_of_flake.path().join("target/failed-tests")).unwrap();
    let kept: Vec<_> = kept.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let said = |ending| kept.iter().filter(|name| name.ends_with(ending)).count();
    assert_eq!((said("inner.once.again.txt"), said(".txt")), (1, 2), "{kept:?}");
    let (is_success, summary) = run(crate_of_flake.path());
    assert!(is_success);
    assert_eq!(summary, ["2 passed, 0 failed"]);
}

#[test]
fn a_test_that_fails_twice_fails_the_run() {
    let broken = "#[test] fn broken() { panic!() } #[test] fn whole() {}
                  #[test] fn once() { assert!(was_here(\"once\")) }";
    let folder = tried(&[("a", broken), ("b", "#[test] fn other() { was_here(\"b\"); }")]);
    let (is_success, summary) = run(folder.path());
    assert!(!is_success);
    assert_eq!(summary[1..4], ["    a: once", "Failed twice:", "    a: broken"]);
    assert_eq!(summary.last().unwrap(), "3 passed, 1 failed");
}

#[test]
fn lanes_run_each_test_once() {
    let tests = "#[test] fn of_kafka() { assert!(crate::was_here(\"of_kafka\")) }
                 #[test] fn of_clickhouse() {} #[test] fn quick() {} #[test] #[ignore] fn not() {}";
    let folder = tried(&[("it", tests)]);
    let (is_success, summary) = run(folder.path());
    assert!(is_success);
    assert_eq!(summary[1], "    it: of_kafka");
    assert_eq!(summary.last().unwrap(), "3 passed, 0 failed");
    let kept = fs::read_dir(folder.path().join("target/failed-tests")).unwrap();
    let kept: Vec<_> = kept.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    // The output of the other lanes is not kept.
    let ends_as = |ending: &str| kept.iter().filter(|name| name.ends_with(ending)).count();
    assert_eq!((ends_as(".kafka.txt"), ends_as(".txt")), (1, 2), "{kept:?}");
}

#[test]
fn a_failure_whose_name_matches_no_test_is_no_flake() {
    // It is the name of no test that the list of failures has.
    let stray = "#[test] fn a_test() { was_here(\"x\");
        let mut out = std::io::stdout();
        std::io::Write::write_all(&mut out, 
            b\"\\nfailures:\\n    no_such_test\\n\\ntest result: FAILED. 0 passed; 1 failed;\\n\").unwrap();
        std::process::exit(101)
    }";
    let folder = tried(&[("a", stray)]);
    let (is_success, summary) = run(folder.path());
    assert!(!is_success);
    assert_eq!(summary[..2], ["Failed twice:", "    a: no_such_test"]);
    assert_eq!(summary.last().unwrap(), "0 passed, 1 failed");
}

#[test]
fn a_program_that_aborts_is_run_again_whole() {
    let once = "#[test] fn once() { if !was_here(\"once\") { std::process::abort() } }";
    let twice = "#[test] fn twice() { was_here(\"x\"); std::process::abort() }";
    let folder = tried(&[("once", once), ("twice", twice)]);
    let (is_success, summary) = run(folder.path());
    assert!(!is_success);
    let expected =
        ["    once (the whole program)", "Failed twice:", "    twice (the whole program)"];
    assert_eq!(summary[1..4], expected);
    assert_eq!(summary.last().unwrap(), "1 passed, 1 failed");
}

#[test]
fn what_does_not_compile_fails_at_once() {
    let folder = tried(&[("a", "#[test] fn a() { was_here(1) }")]);
    assert_eq!(run(folder.path()), (false, Vec::new()));
}
