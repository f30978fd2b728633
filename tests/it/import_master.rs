//! `saltern import-master` over configurations of masters, through the real binary. Its output is a
//! configuration, has no secret in it, and names every option about events, returns and jobs. The
//! real Salt gives the merged keys of the files.

use crate::harness::daemon::SALTERN;
use crate::harness::salt;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use saltern::import_master::{Master, WITHOUT_MEANING};
use saltern::yaml;
use serde_json::{Value, json};

/// A folder with a master's configuration, and what has to be printed of it.
struct Case {
    folder: &'static str,
    /// Each key that bears on events, returns, jobs or engines, with its line of the page.
    says: &'static [(&'static str, &'static str)],
    /// Keys that bear on none of these, and need not be printed.
    silent: &'static [&'static str],
    /// Words of the page about the files.
    remarks: &'static [&'static str],
    /// True if Salt reads it too: it does not come to an end with files that include each other,
    /// and asks a store for values that begin with `sdb://`.
    is_for_salt: bool,
}

const NOTHING: Case = Case { folder: "", says: &[], silent: &[], remarks: &[], is_for_salt: true };

const CASES: &[Case] = &[
    Case {
        folder: "layered",
        says: &[
            ("id", "master_id: \"salt.example.com\"\n"),
            ("event_return", "\n  \"rawfile_json\":\n    rawfile_json:\n"),
            ("event_return", "\n  # event_return: mysql. "),
            ("event_return_queue", "batch: {max_events: 200, linger: 7s}\n"),
            ("event_return_queue", "#   event_return_queue: 200\n"),
            ("event_return_queue_max_seconds", "#   event_return_queue_max_seconds: 7\n"),
            (
                "event_return_whitelist",
                "filter: {tags: [\"salt/job/*\", \"salt/auth\", \"salt/key\"]}\n",
            ),
            ("event_return_whitelist", "#   event_return_whitelist: [\"salt/job/*\", "),
            ("keep_jobs_seconds", "keep_jobs: 172800s}\n"),
            ("master_job_cache", "# master_job_cache: pgjsonb. "),
            ("mysql", "#   host: \"db2\"\n  #   port: 3306\n  #   pass: (a secret"),
            ("rawfile_json.filename", "filename: \"/var/log/saltern/events.jsonl\"\n"),
            ("returner.pgjsonb.host", "#   host: \"pg.example.com\"\n"),
            ("returner.pgjsonb.pass", "#   pass: (a secret"),
        ],
        ..NOTHING
    },
    Case {
        folder: "nested-globs",
        says: &[
            ("event_return", "# event_return: carbon. "),
            ("event_return", "# event_return: mongo. "),
            ("event_return", "  \"rawfile_json\":\n"),
            ("event_return_blacklist", "filter: {not_tags: [\"salt/job/*/prog/*\"]}\n"),
            ("event_return_blacklist", "#   event_return_blacklist: [\"salt/job/*/prog/*\"]\n"),
            ("rawfile_json.filename", "filename: \"/var/log/saltern/nested.jsonl\"\n"),
            ("carbon.host", "#   host: \"carbon.example.com\"\n"),
            ("mongo.host", "#   host: \"mongo.example.com\"\n"),
            ("presence_events", "# presence_events: true "),
            ("state_events", "# state_events: true "),
        ],
        ..NOTHING
    },
    Case {
        folder: "yaml-1.1",
        says: &[
            ("id", "master_id: \"4711\"\n"),
            ("job_cache", "# job_cache: true "),
            ("presence_events", "# presence_events: true "),
            ("state_events", "# state_events: false "),
            ("auth_events", "# auth_events: false "),
            ("keep_jobs_seconds", "# keep_jobs_seconds: 86400 "),
            ("event_return", "  \"rawfile_json\":\n"),
            ("event_return", "  \"sqlite3\":\n"),
            ("event_return_queue", "batch: {max_events: 100, "),
            ("event_return_queue_max_seconds", "linger: 15s}\n"),
            ("event_return_niceness", "# event_return_niceness: 5 "),
            ("max_event_size", "max_frame: 268435456\n"),
            ("sqlite3.database", "database: \"/var/lib/saltern/salt.db\"\n"),
            ("sqlite3.timeout", "timeout: 5\n"),
            ("mysql", "# `mysql` is configured"),
            ("alternative.mysql", "# alternative.mysql: {\"port\": 3306, \"pass\": (a secret"),
            ("alternative.mysql", "\"host\": \"other\"}"),
            ("rawfile_json.filename", "filename: \"/var/log/saltern/events\"\n"),
            ("event_match_type", "# event_match_type: \"startswith\" "),
            ("syndic_wait", "# syndic_wait: \"1e1\" "),
        ],
        silent: &["ext_job_cache"],
        ..NOTHING
    },
    Case {
        folder: "bom-crlf",
        says: &[
            ("event_return", "  \"rawfile_json\":\n"),
            ("event_return_whitelist", "filter: {tags: [\"salt/job/*\", \"salt/key\"]}\n"),
            ("rawfile_json.filename", "filename: \"/var/log/salt/events\"\n"),
            ("rawfile_json.filename", "`ReadWritePaths=/var/log/salt`"),
            ("keep_jobs", "keep_jobs: 172800s}\n"),
            ("master_job_cache", "# master_job_cache: redis. "),
            ("redis.host", "#   host: \"r.example.com\"\n"),
            ("redis.password", "#   password: (a secret"),
        ],
        silent: &["foo"],
        ..NOTHING
    },
    Case {
        folder: "no-main",
        says: &[
            ("event_return", "  \"rawfile_json\":\n"),
            ("rawfile_json.filename", "filename: \"/home/ops/events.jsonl\"\n"),
            ("rawfile_json.filename", "`BindPaths=/home/ops`"),
            ("job_cache", "# job_cache: false "),
            ("ext_job_cache", "# ext_job_cache: mysql. "),
            ("mysql.host", "#   host: \"db.example.com\"\n"),
            ("mysql.pass", "#   pass: (a secret"),
        ],
        remarks: &["# no-main/master is not there"],
        ..NOTHING
    },
    Case {
        folder: "several-returners",
        says: &[
            ("event_return", "# event_return: elasticsearch. "),
            ("event_return", "  \"kafka\":\n"),
            ("event_return", "# event_return: pgjsonb. "),
            ("event_return", "  \"rawfile_json\":\n"),
            ("event_return", "# event_return: my_returner is none of Salt's own"),
            ("event_return_queue", "batch: {max_events: 250, linger: 2500ms}\n"),
            ("event_return_queue", "#   event_return_queue: 250\n"),
            ("event_return_queue_max_seconds", "#   event_return_queue_max_seconds: 2.5\n"),
            ("event_return_whitelist", "filter: {tags: [\"salt/job/*\", \"salt/beacon/*\"]}\n"),
            ("event_return_blacklist", "is a regular expression, which filters cannot be"),
            ("event_return_blacklist", "#   event_return_blacklist: [\"salt/job/\\\\d+/prog\"]\n"),
            ("elasticsearch", "#   hosts: [(a secret"),
            ("elasticsearch", "\"https://es2.example.com:9200\"]\n"),
            ("elasticsearch", "#   index_date: true\n"),
            ("returner.kafka.bootstrap", "[\"k1.example.com:9092\", \"k2.example.com:9092\"]\n"),
            ("returner.kafka.topic", "topic: \"salt-events\"\n"),
            ("returner.pgjsonb", "#   sslmode: \"require\"\n"),
            ("rawfile_json.filename", "filename: \"/tmp/events.jsonl\"\n"),
            ("rawfile_json.filename", "PrivateTmp=no"),
            ("my_returner.address", "#   my_returner.address: \"store.example.com\"\n"),
            ("returner_dirs", "# returner_dirs: [\"/srv/salt/returners\"] "),
        ],
        ..NOTHING
    },
    Case {
        folder: "secrets",
        says: &[
            ("event_return", "# event_return: mongo. "),
            ("event_return", "# event_return: splunk. "),
            ("event_return", "# event_return: mattermost. "),
            ("event_return", "# event_return: slack_webhook. "),
            ("event_return", "# event_return: elasticsearch. "),
            ("event_return", "# event_return: smtp. "),
            ("event_return", "# event_return: influxdb. "),
            ("event_return", "# event_return: carbon. "),
            ("mongo.uri", "#   uri: (a secret"),
            ("mongo.db", "#   db: \"salt\"\n"),
            ("splunk_http_forwarder", "#   indexer: (a secret"),
            ("mattermost.hook", "#   hook: (a secret"),
            ("mattermost.api_url", "#   api_url: (a secret"),
            ("slack_webhook.webhook", "#   webhook: (a secret"),
            ("slack.api_key", "#   api_key: (a secret"),
            ("elasticsearch", "#   hosts: [{\"host\": \"es.example.com\", "),
            ("smtp.username", "#   username: \"salt\"\n"),
            ("smtp.password", "#   password: (a secret"),
            ("smtp.server", "#   server: (a secret"),
            ("influxdb.url", "#   url: (a secret"),
            ("influxdb.extra", "#   extra: (a secret"),
            ("carbon.host", "#   host: (a secret"),
            ("raven", "#   servers: [(a secret"),
            ("nagios_nrdp.url", "# `nagios_nrdp` is configured"),
            ("nagios_nrdp.token", "#   token: (a secret"),
            ("couchdb.url", "# `couchdb` is configured"),
            ("redis.host", "# `redis` is configured"),
            ("returner.odbc.dsn", "#   dsn: (a secret"),
            ("returner.odbc.connection", "#   connection: (a secret"),
            ("etcd.returner", "#   returner: \"my_etcd\"\n"),
            ("my_etcd", "#   returner my_etcd: {\"etcd.host\": \"etcd.example.com\", "),
            ("alternative.mysql.pass", "# alternative.mysql.pass: (a secret"),
            ("alternative.mysql.host", "# alternative.mysql.host: \"other.example.com\" "),
            ("returner.postgres.passwd", "#   passwd: (a secret"),
            ("returner.postgres.host", "#   host: \"pg.example.com\"\n"),
            ("twilio", "#   sid: (a secret"),
            ("pushover.token", "# `pushover` is configured"),
            ("telegram.token", "# `telegram` is configured"),
            ("xmpp.profile", "#   profile: \"my_xmpp\"\n"),
            ("my_xmpp", "\"xmpp.jid\": \"salt@jabber.example.com\""),
            ("engines", "# engines: `logentries` sends every event"),
            ("engines", "#   endpoint: \"data.logentries.com\"\n"),
            ("engines", "# engines: `http_logstash` posts events"),
            ("engines", "# engines: `slack` puts events onto the bus"),
            ("engines", "# engines: `mine` is none of Salt's own"),
            ("schedule", "\"returner\": \"mysql\""),
            ("my_event_hook", "# my_event_hook: (a secret"),
        ],
        ..NOTHING
    },
    Case {
        folder: "engines",
        says: &[
            ("engines", "# engines: `logstash` sends every event"),
            ("engines", "#   host: \"log.example.com\"\n#   port: 5959\n#   proto: \"tcp\"\n"),
            ("engines", "#   url: (a secret"),
            ("engines", "#   tags: [\"salt/job/*/new\"]\n"),
            ("engines", "#   funs: [\"test.ping\"]\n"),
            ("engines", "# engines: `fluent` hands every event"),
            ("engines", "# engines: `reactor` acts within the master"),
            ("engines", "# engines: `sqs_events` puts events onto the bus"),
            ("engines", "# engines: `second_fluent` hands every event"),
            ("engines", "# engines: `of_our_own` is none of Salt's own"),
            ("engines", "#   api_token: (a secret"),
            ("engines", "# engines: `junos_syslog` puts events onto the bus"),
            ("reactor", "# reactor: [{\"salt/minion/*/start\": "),
            ("reactor_worker_threads", "# reactor_worker_threads: 20 "),
            ("thorium_interval", "# thorium_interval: 1 "),
            ("event_return_whitelist", "# event_return_whitelist: [\"salt/*\"] has a meaning with"),
            ("event_return_queue", "# event_return_queue: 5 "),
        ],
        ..NOTHING
    },
    Case {
        folder: "syndic",
        says: &[
            ("id", "master_id: \"syndic.example.com\"\n"),
            ("order_masters", "# order_masters: true "),
            ("syndic_master", "# syndic_master: [\"mom1.example.com\", "),
            ("syndic_forward_all_events", "# syndic_forward_all_events: true "),
            ("syndic_event_forward_timeout", "# syndic_event_forward_timeout: 0.5 "),
            ("syndic_jid_forward_cache_hwm", "# syndic_jid_forward_cache_hwm: 100 "),
            ("state_events", "# state_events: true "),
            ("presence_events", "# presence_events: true "),
            ("runner_returns", "# runner_returns: false "),
            ("minion_data_cache_events", "# minion_data_cache_events: false "),
            ("event_publisher_niceness", "# event_publisher_niceness: -5 "),
            ("event_match_type", "# event_match_type: \"fnmatch\" "),
            ("ipc_write_buffer", "# ipc_write_buffer: \"dynamic\" "),
            ("master_stats", "# master_stats: true "),
            ("master_stats_event_iter", "# master_stats_event_iter: 60 "),
            ("job_cache", "# job_cache: true "),
            ("archive_jobs", "# archive_jobs: true "),
            ("keep_jobs", "# keep_jobs: 72 "),
            ("event_return", "# event_return: syslog. "),
            ("event_return", "# Salt's `syslog` cannot store events"),
            ("event_return_blacklist", "#   event_return_blacklist: [\"salt/auth\"]\n"),
            ("event_archive_days", "# event_archive_days: 30 is none of Salt's own options"),
        ],
        silent: &["ret_port", "gather_job_timeout"],
        ..NOTHING
    },
    Case {
        folder: "job-caches",
        says: &[
            ("ext_job_cache", "# ext_job_cache: redis. "),
            ("redis.host", "#   host: \"redis.example.com\"\n"),
            ("redis.password", "#   password: (a secret"),
            ("master_job_cache", "  \"sqlite3-master-job-cache\":\n"),
            ("sqlite3.database", "database: \"/var/lib/salt.db\"\n"),
            ("sqlite3.database", "`ReadWritePaths=/var/lib`"),
            ("keep_jobs", "keep_jobs: 172800s}\n"),
            ("keep_jobs_seconds", "# keep_jobs_seconds: 86400 "),
            ("job_cache_store_endtime", "# job_cache_store_endtime: true "),
            ("backup.mysql.host", "# backup.mysql.host: \"db.example.com\" "),
            ("backup.mysql.pass", "# backup.mysql.pass: (a secret"),
            ("sock_dir", "address: \"/srv/run/master/master_event_pub.ipc\"\n"),
        ],
        // A returner without a name is none.
        silent: &["event_return", "root_dir"],
        ..NOTHING
    },
    Case {
        folder: "broken-includes",
        says: &[
            ("event_return", "  \"rawfile_json\":\n"),
            ("rawfile_json.filename", "filename: \"/var/log/saltern/events\"\n"),
            ("state_events", "# state_events: true "),
            ("presence_events", "# presence_events: true "),
        ],
        remarks: &[
            "10-twice.conf:2:1 is left out, as by Salt: the key `event_return` is here twice",
            "20-tabs.conf:2:2 is left out",
            "30-list.conf:1:1 is left out",
            "40-tag.conf:1:47 is left out",
            "50-two.conf:3:1 is left out",
            "60-jinja.conf:1:2 is left out",
            "70-password.conf:1:13 is left out",
            "includes broken-includes/nowhere/*.conf, which matches no file",
            "includes broken-includes/missing.conf, which matches no file",
        ],
        ..NOTHING
    },
    Case {
        folder: "kafka-secret",
        says: &[
            ("ipc_mode", "address: \"tcp://127.0.0.1:14512\"\n"),
            ("tcp_master_pub_port", "14512"),
            ("max_event_size", "max_frame: 104857600\n"),
            ("event_return", "  \"kafka\":\n"),
            (
                "returner.kafka.bootstrap",
                "[\"${SALTERN_KAFKA_BROKER_1}\", \"k2.example.com:9092\"]\n",
            ),
            (
                "returner.kafka.bootstrap",
                "# Set the environment variable SALTERN_KAFKA_BROKER_1 to ",
            ),
            ("returner.kafka.topic", "topic: \"salt\"\n"),
            ("master_job_cache", "  \"sqlite3-master-job-cache\":\n"),
            ("sqlite3.database", "database: \"${SALTERN_SQLITE3_DATABASE}\"\n"),
            ("sqlite3.timeout", "timeout: 5\n"),
        ],
        is_for_salt: false,
        ..NOTHING
    },
    Case {
        folder: "loop",
        says: &[
            ("event_return", "  \"rawfile_json\":\n"),
            ("rawfile_json.filename", "filename: \"/var/log/saltern/events\"\n"),
            ("state_events", "# state_events: true "),
            ("presence_events", "# presence_events: true "),
        ],
        remarks: &[
            "loop/b.conf includes loop/a.conf, which includes it in turn",
            "loop/b.conf includes loop/master, which includes it in turn",
            "loop/. cannot be read: it is a directory",
        ],
        is_for_salt: false,
        ..NOTHING
    },
];

fn masters() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/masters")
}

fn saltern(folder: &Path, arguments: &[&str], variables: &[String]) -> Output {
    let mut command = Command::new(SALTERN);
    command.args(arguments).current_dir(folder).env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    command.envs(variables.iter().map(|name| (name, "k1.example.com:9092")));
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn imported(folder: &Path, file: &str) -> String {
    let printed = saltern(folder, &["import-master", file], &[]);
    assert!(printed.status.success(), "{file}: {}", text(&printed.stderr));
    text(&printed.stdout)
}

/// The variables that a page asks for.
fn variables(page: &str) -> Vec<String> {
    let behind = page.split("environment variable ").skip(1);
    behind.map(|text| text.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn each_folder_has_a_case() {
    let folders = std::fs::read_dir(masters()).unwrap().map(|entry| entry.unwrap());
    let folders = folders.filter(|entry| entry.file_type().unwrap().is_dir());
    let folders: BTreeSet<_> = folders.map(|entry| entry.file_name()).collect();
    let cases: BTreeSet<_> = CASES.iter().map(|case| case.folder.into()).collect();
    assert_eq!(folders, cases);
}

#[test]
fn what_it_prints_is_a_configuration_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    for Case { folder: name, .. } in CASES {
        let page = imported(&masters(), &format!("{name}/master"));
        assert!(!page.contains("hunter2"), "{name}: {page}");
        std::fs::write(folder.path().join("saltern.yaml"), &page).unwrap();
        let checked =
            saltern(folder.path(), &["check", "--config", "saltern.yaml"], &variables(&page));
        assert!(checked.status.success(), "{name}: {}\n{page}", text(&checked.stderr));
    }
}

#[test]
fn nothing_that_bears_on_events_is_lost_without_a_word() {
    for Case { folder: name, says, silent, remarks, .. } in CASES {
        let page = imported(&masters(), &format!("{name}/master"));
        for (key, expected) in *says {
            assert!(page.contains(expected), "{name}, {key}: {expected}\n{page}");
        }
        for remark in *remarks {
            assert!(page.contains(remark), "{name}: {remark}\n{page}");
        }
        // The table has every key of the files.
        let known: BTreeSet<_> =
            says.iter().map(|(key, _)| *key).chain(silent.iter().copied()).collect();
        let master = Master::read(&masters().join(name).join("master")).unwrap();
        let keys: BTreeSet<_> = master.keys().map(|(key, _)| key).collect();
        assert_eq!(known, keys, "{name}");
    }
}

/// Options that Salt knows, and whose names are about events, returns, jobs or engines.
const OPTIONS: &str = r#"
import json
import salt.config
words = {"event", "events", "job", "jobs", "ret", "return", "returner", "returners", "returns", "engines", "syndic",
         "reactor", "thorium", "thoriumenv"}
print(json.dumps([key for key in salt.config.VALID_OPTS if words & set(key.split("_"))]))
"#;

#[test]
fn each_option_of_salt_about_events_is_spoken_of() {
    let folder = tempfile::tempdir().unwrap();
    for version in ["3006.28", "3007.15", "3008.3"] {
        let mut ask = Command::new(salt::program(version, "python"));
        let options = salt::said(ask.arg("-c").arg(OPTIONS));
        let options: Vec<String> = serde_json::from_str(options.lines().last().unwrap()).unwrap();
        assert!(options.len() > 30, "{options:?}");
        let lines: Vec<_> = options.iter().map(|name| format!("{name}: 7\n")).collect();
        std::fs::write(folder.path().join("master"), lines.concat()).unwrap();
        let page = imported(folder.path(), "master");
        for name in &options {
            let is_said = page.contains(&format!(" {name}: "))
                || name == "keep_jobs_seconds" && page.contains("keep_jobs: 7s");
            let is_silent = WITHOUT_MEANING.contains(&name.as_str());
            assert!(is_said != is_silent, "{version}: {name}\n{page}");
        }
        assert!(!page.contains("is none of Salt's own options"), "{version}\n{page}");
    }
}

#[test]
fn mistakes_are_said_with_their_place_and_without_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("master");
    for (text, place) in [
        ("a: 1\nmattermost.hook: hunter2: x\n", "master:2:"),
        ("a: [hunter2\n", "master:"),
        ("hunter2", "master:1:1: "),
        ("a: 1\nb: 2\na: hunter2\n", "master:3:1: the key `a` is here twice"),
        ("http://u:hunter2@h: 1\nhttp://u:hunter2@h: 1\n", "master:2:1: "),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = saltern(folder.path(), &["import-master", "master"], &[]);
        let error = self::text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(place) && !error.contains("hunter2"), "{text}: {error}");
        assert!(output.stdout.is_empty());
    }
    let output = saltern(folder.path(), &["import-master", "."], &[]);
    assert_eq!(output.status.code(), Some(2), "{}", self::text(&output.stderr));
}

#[test]
fn files_that_may_not_be_read_are_said() {
    let folder = tempfile::Builder::new().prefix("st").tempdir_in("/tmp").unwrap();
    let included = folder.path().join("master.d");
    std::fs::create_dir(&included).unwrap();
    std::fs::write(included.join("a.conf"), "state_events: true\n").unwrap();
    std::os::unix::fs::symlink("nowhere", included.join("b.conf")).unwrap();
    let printed = imported(folder.path(), "master");
    assert!(printed.contains("# master.d/b.conf cannot be read: "), "{printed}");
    assert!(printed.contains("# state_events: true "), "{printed}");
}

/// Asks Salt for its reading of each of the files, and for the keys that differ from the defaults.
const ASK: &str = r#"
import json, logging, sys
import salt.config
logging.disable(logging.CRITICAL)
defaults = salt.config.apply_master_config({"id": "x"})
answers = []
for path in sys.argv[1:]:
    opts = salt.config.master_config(path)
    changed = [key for key in opts if key not in defaults or opts[key] != defaults[key]]
    answers.append({key: opts[key] for key in changed})
print(json.dumps(answers, default=str))
"#;

/// Keys that Salt itself adds, computes or passes over.
const COMPUTED: &[&str] = &[
    "autosign_grains_dir",
    "cachedir",
    "conf_file",
    "default_include",
    "extension_modules",
    "id",
    "include",
    "key_logfile",
    "log_file",
    "pidfile",
    "pki_dir",
    "sock_dir",
    "sqlite_queue_dir",
    "ssh_log_file",
    "syndic_dir",
    "token_dir",
    "utils_dirs",
    "ipc_write_buffer",
    "root_dir",
    "hash_id",
];

fn as_json(node: &yaml::Node) -> Value {
    match &node.value {
        yaml::Value::Null | yaml::Value::Nothing => Value::Null,
        yaml::Value::Bool(value) => json!(value),
        yaml::Value::Int(value) => json!(value),
        yaml::Value::Uint(value) => json!(value),
        yaml::Value::Float(value) if value.is_infinite() => json!(value.to_string()),
        yaml::Value::Float(value) => json!(value),
        yaml::Value::Text(text) | yaml::Value::Replaced { text, .. } => json!(text),
        yaml::Value::List(nodes) => nodes.iter().map(as_json).collect(),
        yaml::Value::Map(pairs) => {
            pairs.iter().map(|(key, node)| (key.name.clone(), as_json(node))).collect()
        }
    }
}

#[test]
fn the_files_come_to_what_salt_makes_of_them() {
    let cases: Vec<_> = CASES.iter().filter(|case| case.is_for_salt).collect();
    let files: Vec<_> =
        cases.iter().map(|case| masters().join(case.folder).join("master")).collect();
    for version in ["3006.28", "3007.15", "3008.3"] {
        let mut ask = Command::new(salt::program(version, "python"));
        let answers = salt::said(ask.arg("-c").arg(ASK).args(&files));
        let answers: Vec<BTreeMap<String, Value>> =
            serde_json::from_str(answers.lines().last().unwrap()).unwrap();
        assert_eq!(answers.len(), cases.len());
        for ((case, file), answer) in cases.iter().zip(&files).zip(&answers) {
            let master = Master::read(file).unwrap();
            let ours: BTreeMap<_, _> =
                master.keys().map(|(key, node)| (key.to_owned(), as_json(node))).collect();
            let is_compared = |key: &str| !COMPUTED.contains(&key);
            for (key, value) in answer.iter().filter(|(key, _)| is_compared(key)) {
                assert_eq!(ours.get(key), Some(value), "{version}, {}, {key}", case.folder);
            }
            // A key that Salt does not name has its default.
            for (key, value) in ours.iter().filter(|(key, _)| is_compared(key)) {
                let is_default = DEFAULTS.contains(&(key.as_str(), value.to_string().as_str()));
                let is_same = is_default || answer.get(key) == Some(value);
                assert!(is_same, "{version}, {}, {key}: {value}", case.folder);
            }
            if let Some(Value::String(folder)) = answer.get("sock_dir") {
                let page = imported(&masters(), &format!("{}/master", case.folder));
                let address = format!("address: \"{folder}/master_event_pub.ipc\"\n");
                assert!(page.contains(&address), "{version}, {}: {address}\n{page}", case.folder);
            }
        }
    }
}

/// Values of the fixtures that are Salt's defaults.
const DEFAULTS: &[(&str, &str)] = &[
    ("keep_jobs_seconds", "86400"),
    ("job_cache", "true"),
    ("presence_events", "false"),
    ("state_events", "false"),
    ("event_match_type", "\"startswith\""),
    ("syndic_event_forward_timeout", "0.5"),
    ("syndic_jid_forward_cache_hwm", "100"),
    ("master_stats_event_iter", "60"),
    ("ret_port", "4506"),
    ("gather_job_timeout", "10"),
    ("event_return", "\"\""),
];

/// Has Salt read texts, each as a file of its configuration; a text that it does not take is null.
const READ: &str = r#"
import json, logging, sys, tempfile
import salt.config
logging.disable(logging.CRITICAL)
answers = []
for text in json.load(open(sys.argv[1])):
    with tempfile.NamedTemporaryFile("w", suffix=".conf", newline="") as file:
        file.write(text)
        file.flush()
        try:
            answers.append(salt.config._read_conf_file(file.name))
        except Exception:
            answers.append(None)
# JSON has no infinity.
print(json.dumps(answers).replace("-Infinity", '"-inf"').replace("Infinity", '"inf"'))
"#;

#[test]
fn yaml_is_read_as_salt_reads_it() {
    let scalars = [
        "yes",
        "No",
        "ON",
        "off",
        "y",
        "n",
        "true",
        "TRUE",
        "tRUE",
        "~",
        "null",
        "Null",
        "nULL",
        "0",
        "00",
        "0644",
        "-0644",
        "+0644",
        "0o644",
        "089",
        "0_7",
        "1_000",
        "_1",
        "1_",
        "-1",
        "+1",
        "--1",
        "0x1f",
        "0X1F",
        "0xg",
        "-0x10",
        "0b101",
        "0b2",
        "1:30",
        "01:30",
        "1:60",
        "1:3:4",
        "-1:30",
        "190:20:30",
        "1:30.5",
        "1.",
        ".5",
        "-.5",
        "+.5",
        "1.5",
        "1_0.5",
        "1e3",
        "1.e3",
        "1.5e3",
        "1.5e+3",
        "1.5E-3",
        ".inf",
        "-.INF",
        "+.inf",
        "inf",
        "2026-01-02",
        "2026-01-02 03:04:05",
        "'1'",
        "\"yes\"",
        "!!str 5",
        "!!int '5'",
        "!!float 5",
        "!!bool yes",
        "!!int x",
        "! 5",
        "!x 5",
        "!!python/name:os.system",
        "18446744073709551615",
        "-9223372036854775808",
        "=",
        "a: b",
        "a #b",
        "a#b",
        "[a, b]",
        "{a: b}",
        "[a, [b]]",
        "{a, b: }",
        "&a b",
        "*a",
        "@a",
        "`a`",
        "%a",
        "- a",
        "'a''b'",
        "\"\\u00e9\"",
        "\"a\\\n  b\"",
        "|\n a\n  b",
        ">\n a\n b",
        "|-\n a",
        "a\n  b",
        "{a: 1, a: 2}",
        "{1: a, 2: b}",
        "\n  b: 1\n  b: 2",
        "\n- 1\n- 2",
        "\n  - 1",
    ];
    let mut texts: Vec<String> = scalars.iter().map(|scalar| format!("key: {scalar}\n")).collect();
    texts.extend(
        [
            "",
            "\n",
            "# a\n",
            "---\n",
            "--- {}\n",
            "[]",
            "''",
            "0",
            "false",
            "a",
            "- a",
            "a: 1\n---\nb: 1\n",
            "a: 1\n...\n",
            "\u{feff}a: 1\n",
            "a: 1\r\nb: 2\r\n",
            "a: |\r\n  b\r\n",
            "a:\n\t- b\n",
            "a:\t1\n",
            "a: 1\n\t\nb: 2\n",
            "a: 1\n  \t# b\n",
            "a: |\n  b\n  \tc\n",
            ": 1\n",
            "a: 011:0.0\n",
            "a: 1\n b: 2\n",
            "%YAML 1.1\n---\na: yes\n",
            "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n",
            "a: &a {x: 1}\nb: &b {x: 2, z: 3}\nc: {<<: [*a, *b]}\n",
            "a: &a {x: 1}\nb: &b {z: 3}\nc: {<<: [*a, *b], w: 1}\n",
            "a: &a [1]\nb: *a\n",
            "a: {<<: 1}\n",
            "<<: {a: 1}\nb: 2\n",
            "'<<': 1\n",
            "yes: 1\n",
            "1: a\n1.5: b\n",
            "a: {% b %}\n",
            "{{ a }}: b\n",
            "{% if a %}\nb: 1\n{% endif %}\n",
            "? a\n: b\n",
            "? [a]\n: b\n",
            "a: b: c\n",
            "a: 'b\n",
            "a: [b\n",
            "a : 1\n",
            "\"a\": 1\n",
            "a: 1\n\n\n# end",
        ]
        .map(str::to_owned),
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("texts.json");
    std::fs::write(&file, json!(texts).to_string()).unwrap();
    for version in ["3006.28", "3007.15", "3008.3"] {
        let mut ask = Command::new(salt::program(version, "python"));
        let answers = salt::said(ask.arg("-c").arg(READ).arg(&file));
        let answers: Vec<Option<Value>> =
            serde_json::from_str(answers.lines().last().unwrap()).unwrap();
        let mut wrong = Vec::new();
        for (text, salts) in texts.iter().zip(&answers) {
            let ours = Master::parse(text).ok().map(|master| {
                master.keys().map(|(key, node)| (key.to_owned(), as_json(node))).collect::<Value>()
            });
            if ours != *salts {
                wrong.push(format!("{text:?}: {ours:?}, Salt: {salts:?}"));
            }
        }
        assert!(wrong.is_empty(), "{version}\n{}", wrong.join("\n"));
    }
}
