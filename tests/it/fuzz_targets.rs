//! The fuzz targets on the stable compiler, with generated input.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use saltern::jobs::Jobs;

#[path = "../../fuzz/targets.rs"]
mod targets;

#[path = "../../fuzz/spill.rs"]
mod spill;

/// Bytes with many msgpack markers, short lengths and parts of frames, so that most inputs get past
/// the first few bytes.
fn nearly_msgpack() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"\x82\xa4head\x80\xa4body".to_vec()),
        2 => Just(b"\x81\xa4body\xc4\x05tag\n\n".to_vec()),
        1 => Just(vec![0, 0, 0]),
        8 => (0x80..=0x84_u8).prop_map(|map| vec![map]),
        8 => (0x90..=0x94_u8).prop_map(|array| vec![array]),
        6 => (0xa0..=0xa6_u8).prop_map(|text| vec![text]),
        6 => (0xc0..=0xdf_u8).prop_map(|marker| vec![marker]),
        6 => (0..0x20_u8).prop_map(|number| vec![number]),
        2 => prop_oneof![Just(b'"'), Just(b'\\'), Just(0xff)].prop_map(|byte| vec![0xa1, byte]),
        2 => any::<u8>().prop_map(|byte| vec![byte]),
        1 => (0..300_usize).prop_map(|depth| vec![0x91; depth]),
        1 => (0..300_usize).prop_map(|depth| vec![0x81; depth]),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// Text with much JSON in it, and much that Python takes for JSON.
fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "NaN",
        "-Infinity",
        "1e400",
        "-9223372036854775809",
        "0.1",
        "12",
        "-",
        "null",
        "true",
        ",",
        ", ",
        "\"a\": ",
        "\"a\"",
        "\"\\ud800\"",
        "\"\\ud83d\\ude00\"",
        "\"\\",
        "\"",
        "[",
        "[",
        "]",
        "{",
        "}",
        " ",
    ];
    let piece = prop_oneof![
        20 => prop::sample::select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
        1 => (0..300_usize).prop_map(|depth| vec![b'['; depth]),
        1 => (0..300_usize).prop_map(|depth| vec![b']'; depth]),
    ];
    proptest::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

/// Messages with their lengths before them, of which some are wrong.
fn nearly_prefixed() -> impl Strategy<Value = Vec<u8>> {
    let message = proptest::collection::vec(any::<u8>(), 0..40);
    let piece = prop_oneof![
        8 => message.prop_map(|message| {
            let length = u32::try_from(message.len()).unwrap_or_default();
            [&length.to_be_bytes(), &message[..]].concat()
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..8),
        1 => Just(vec![0xff, 0, 0, 0]),
        1 => Just(vec![0xff; 4]),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn framing(data in nearly_msgpack(), pace: u8, limit: u8) {
        targets::framing(&[&[pace, limit], &data[..]].concat());
    }

    #[test]
    fn framing_of_noise(data in proptest::collection::vec(any::<u8>(), 0..500)) {
        targets::framing(&data);
    }

    #[test]
    fn prefixed(data in nearly_prefixed(), pace: u8, limit: u8) {
        targets::prefixed(&[&[pace, limit], &data[..]].concat());
    }

    #[test]
    fn lenient_json(data in nearly_json()) {
        targets::lenient_json(&data);
    }

    #[test]
    fn walker(data in nearly_msgpack()) {
        targets::walker(&data);
    }

    #[test]
    fn transcoder(data in nearly_msgpack()) {
        targets::transcoder(&data);
    }

    #[test]
    fn transcoder_of_noise(data in proptest::collection::vec(any::<u8>(), 0..500)) {
        targets::transcoder(&data);
    }
}

/// Text of pieces that mostly mean something to its reader.
fn text_of(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        12 => prop::sample::select(pieces).prop_map(str::to_owned),
        2 => "[ -~\n]{0,4}",
        1 => "\\PC{0,2}",
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

const YAML: &[&str] = &[
    "sinks:",
    "sources:",
    "http:",
    "jobs:",
    "bus",
    "store",
    "salt_bus",
    "clickhouse",
    "kafka",
    "spill",
    "password: x",
    "token",
    "redact",
    "filter",
    "batch",
    "retry",
    "listen",
    "event_return",
    "mysql.host",
    "ext_job_cache",
    "master_job_cache",
    "rawfile_json",
    "sqlite3",
    "id",
    "root_dir",
    ": ",
    ":\n",
    "\n",
    "\n  ",
    "\n    ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "'",
    "\"",
    "${X}",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
    "|\n",
    ">-\n",
    "#",
    "~",
    "1",
    "-1",
    "1e9",
    "99999999999999999999",
    "1h",
    "4MiB",
    "\t",
    "\u{feff}",
];

const QUERY: &[&str] = &[
    "tag=",
    "function=",
    "minion=",
    "user=",
    "outcome=ok",
    "since=",
    "until=",
    "find_job=true",
    "limit=",
    "cursor=",
    "sink=",
    "before=",
    "2026-11-21T23:00:00Z",
    "salt/*",
    "[",
    "]",
    "{a,b}",
    "*",
    "?",
    "!",
    "&",
    "%",
    "%ff",
    "%00",
    "+",
    "1",
    "1001",
    "'",
    "\"",
    ";",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn config(data in text_of(YAML)) {
        targets::config(&data);
    }

    #[test]
    fn import_master(data in text_of(YAML)) {
        targets::import_master(&data);
    }
}

#[test]
fn query() {
    let (_folder, jobs) = jobs();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) };
    proptest!(config, |(route: u8, data in text_of(QUERY))| {
        targets::query(&[&[route], &data[..]].concat(), &jobs);
    });
}

/// The seeds of the targets, and their earlier finds.
#[test]
fn seeds_of_all_targets_hold() {
    let (_folder, jobs) = jobs();
    for (name, target) in [
        ("framing", &targets::framing as &dyn Fn(&[u8])),
        ("prefixed", &targets::prefixed),
        ("lenient_json", &targets::lenient_json),
        ("walker", &targets::walker),
        ("transcoder", &targets::transcoder),
        ("config", &targets::config),
        ("import_master", &targets::import_master),
        ("query", &|data| targets::query(data, &jobs)),
    ] {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for (_, seed) in seeds {
            target(&seed);
        }
    }
}

/// The Salt side's journal is Python, and so is what fuzzes it.
#[test]
fn journal_of_salts_side() {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut python = std::process::Command::new("python3");
    python.arg(format!("{root}/salt/tests/fuzz_journal.py")).args(["--rounds", "500"]);
    python.env("PYTHONPATH", format!("{root}/salt/src")).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = python.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The seeds of a target, by name.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = format!("{}/fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let files = files.map(|file| file.unwrap().path());
    let mut seeds: Vec<_> =
        files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    seeds.sort();
    seeds
}

fn jobs() -> (tempfile::TempDir, Jobs) {
    let folder = tempfile::tempdir().unwrap();
    let jobs = Jobs::new(folder.path());
    jobs.keep(Some(Duration::from_secs(3600)));
    (folder, jobs)
}

/// A request of which some bytes are others, or more, or gone.
fn nearly_request() -> impl Strategy<Value = Vec<u8>> {
    let seeds: Vec<_> = seeds("request").into_iter().map(|(_, seed)| seed).collect();
    let wound = (any::<prop::sample::Index>(), nearly_msgpack(), 0..4_usize);
    (prop::sample::select(seeds), proptest::collection::vec(wound, 0..4)).prop_map(
        |(mut request, wounds)| {
            for (at, mut with, gone) in wounds {
                let at = at.index(request.len() + 1);
                with.truncate(8);
                request.splice(at..(at + gone).min(request.len()), with);
            }
            request
        },
    )
}

/// One job cache for all questions in a row, as in a daemon.
#[test]
fn requests() {
    let (_folder, jobs) = jobs();
    for (path, seed) in seeds("request") {
        assert!(targets::request(&seed, &jobs), "{} is refused", path.display());
    }
    assert_eq!(seeds("request").len(), 13, "a request of each sort");
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) };
    let inputs = prop_oneof![4 => nearly_request(), 1 => nearly_msgpack()];
    let done = AtomicUsize::new(0);
    proptest!(config, |(data in inputs)| {
        done.fetch_add(targets::request(&data, &jobs).into(), Ordering::Relaxed);
    });
    let done = done.into_inner();
    assert!((200..1800).contains(&done), "{done} of 2000 were done");
    for (path, seed) in seeds("request") {
        assert!(targets::request(&seed, &jobs), "{} is refused afterwards", path.display());
    }
}

/// Bytes, many of them small, so that they choose the next action.
fn life_of_a_spill() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![3 => any::<u8>(), 2 => 0..8_u8], 0..500)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn spills(data in life_of_a_spill()) {
        spill::spill(&data, tempfile::tempdir().unwrap().path());
    }
}

#[test]
fn spills_of_the_corpus() {
    let seeds = seeds("spill");
    assert!(!seeds.is_empty(), "there are no spills");
    for (_, seed) in seeds {
        spill::spill(&seed, tempfile::tempdir().unwrap().path());
    }
}

#[test]
fn captures() {
    for release in ["3006.28", "3007.15", "3008.3"] {
        let path = format!("{}/tests/captures/salt-{release}.bus", env!("CARGO_MANIFEST_DIR"));
        let capture = std::fs::read(path).unwrap();
        targets::framing(&[&[200, 11], &capture[..20_000]].concat());
        let after_prefix = if capture[0] == 0 { &capture[4..] } else { &capture[..] };
        targets::walker(after_prefix);
        targets::transcoder(after_prefix);
    }
}
