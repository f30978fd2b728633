//! The page of each kind: `docs/sinks/KIND.md` and `docs/sources/KIND.md`.

use std::collections::BTreeSet;
use std::fs;

use saltern::config::{Config, schema};
use saltern::sink::contract::{Once, SaltForm, SaltReturner, TableWish};
use saltern::sink::registry::{self as sinks, SinkKind};
use saltern::source::registry::{self as sources, SourceKind};
use serde_json::Value;

use super::head::{Head, table_of_failures};
use super::keys::Keys;
use super::{assert_written, in_repository};

const SINKS: &str = "What every sink takes beside its kind is in [Configuration]\
                     (../configuration.md#what-every-sink-takes), what all sinks have in common in \
                     [Sinks](../sinks.md).";
const SOURCES: &str = "What all sources have in common is in [Sources](../sources.md).";

#[test]
fn the_pages_of_sinks_are_what_the_code_says() {
    let schema = schema().to_value();
    let mut pages = BTreeSet::new();
    for kind in sinks::KINDS {
        let path = format!("docs/sinks/{}.md", kind.name);
        assert_written(&path, &page_of_sink(kind, &schema));
        pages.insert(format!("{}.md", kind.name));
    }
    assert_eq!(pages_in("docs/sinks"), pages, "there is a page of no kind, or none of a kind");
}

#[test]
fn the_pages_of_sources_are_what_the_code_says() {
    let schema = schema().to_value();
    let mut pages = BTreeSet::new();
    for kind in sources::KINDS {
        let path = format!("docs/sources/{}.md", kind.name);
        assert_written(&path, &page_of_source(kind, &schema));
        pages.insert(format!("{}.md", kind.name));
    }
    assert_eq!(pages_in("docs/sources"), pages, "there is a page of no kind, or none of a kind");
}

#[test]
fn the_examples_are_complete_configurations() {
    for kind in sinks::KINDS {
        parse_example("sink", kind.name);
    }
    for kind in sources::KINDS {
        parse_example("source", kind.name);
    }
}

#[test]
fn each_key_says_what_it_is_and_what_holds_without_it() {
    let schema = schema().to_value();
    let sinks = sinks::KINDS.iter().map(|kind| ("sinks", kind.name));
    let sources = sources::KINDS.iter().map(|kind| ("sources", kind.name));
    let mut incomplete = Vec::new();
    for (section, kind) in sinks.chain(sources) {
        let keys = Keys::of(&schema, section, kind);
        incomplete.extend(keys.incomplete.iter().map(|why| format!("{section} {kind}: {why}")));
    }
    assert!(incomplete.is_empty(), "{}", incomplete.join("\n"));
}

fn pages_in(folder: &str) -> BTreeSet<String> {
    let files = fs::read_dir(in_repository(folder)).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

/// The example in the head of a kind's file: the whole of a configuration, in which the kind is.
fn parse_example(folder: &str, kind: &str) {
    let mut head = Head::of(folder, kind);
    let example = head.need("Example");
    let yaml = example.split("```yaml\n").nth(1).and_then(|text| text.split("```").next());
    let yaml = yaml.unwrap_or_else(|| panic!("{}: the example has no block ```yaml", head.file));
    // Variables and files of secrets are not there.
    let plain = yaml.replace("${", "$${");
    if let Err(problems) = Config::parse(&plain) {
        panic!("{}: the example is no configuration: {problems:?}", head.file);
    }
    let key = format!("{kind}:");
    assert!(yaml.contains(&key), "{}: there is no {kind} in its example", head.file);
}

fn page_of_sink(kind: &SinkKind, schema: &Value) -> String {
    let mut head = Head::of("sink", kind.name);
    let mut page = beginning(kind.name, kind.about, &head);
    section(&mut page, "Example", &head.need("Example"));
    section(&mut page, "Keys", &(table_of_keys(&Keys::of(schema, "sinks", kind.name)) + SINKS));
    section(&mut page, "Defaults of its own", &own_defaults(kind, schema));
    section(&mut page, "What is stored", &stored(kind, &mut head));
    let guarantee = head.take("Guarantee").unwrap_or_default();
    let failures = head.need("Failures");
    let failures = table_of_failures(&head.file, &failures);
    let (differs, moving) = (head.take("Differences"), head.take("Moving"));
    for (title, text) in head.rest() {
        section(&mut page, &title, &text);
    }
    let guarantee = format!("{}\n\n{guarantee}", once(kind));
    section(&mut page, "Guarantee", &guarantee);
    section(&mut page, "Failures", &failures);
    section(&mut page, "Salt's returner", &returner(kind, differs.as_deref()));
    section(&mut page, "Moving there", &moves(kind, moving.as_deref()));
    page
}

fn page_of_source(kind: &SourceKind, schema: &Value) -> String {
    let mut head = Head::of("source", kind.name);
    let mut page = beginning(kind.name, kind.about, &head);
    section(&mut page, "Example", &head.need("Example"));
    let keys = Keys::of(schema, "sources", kind.name);
    section(&mut page, "Keys", &(table_of_keys(&keys) + SOURCES));
    let guarantee = head.need("Guarantee");
    let failures = head.need("Failures");
    let failures = table_of_failures(&head.file, &failures);
    for (title, text) in head.rest() {
        section(&mut page, &title, &text);
    }
    section(&mut page, "Guarantee", &guarantee);
    section(&mut page, "Failures", &failures);
    page
}

fn beginning(kind: &str, about: &str, head: &Head) -> String {
    let Head { file, intro, .. } = head;
    let intro = intro.strip_prefix(&format!("`{kind}`: ")).unwrap_or(intro);
    format!(
        "<!-- Made from {file}: change that. -->\n\n# {kind}\n\n*{about}*\n\n{}\n",
        large(intro)
    )
}

fn section(page: &mut String, title: &str, text: &str) {
    if !text.trim().is_empty() {
        page.push_str(&format!("\n## {title}\n\n{}\n", text.trim()));
    }
}

/// A sentence with a large letter in front.
fn large(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
    first + letters.as_str()
}

fn table_of_keys(keys: &Keys<'_>) -> String {
    if keys.found.is_empty() {
        return "It has no keys of its own.\n\n".to_owned();
    }
    let mut table = String::from("| key | is | default | meaning |\n|---|---|---|---|\n");
    for key in &keys.found {
        let default = key.default.as_deref().unwrap_or("**needed**");
        let meaning = key.meaning.replace('|', "\\|");
        table.push_str(&format!("| `{}` | {} | {default} | {meaning} |\n", key.name, key.form));
    }
    table + "\n"
}

/// The defaults of the kind that are not the general ones. Batches have none that are general.
fn own_defaults(kind: &SinkKind, schema: &Value) -> String {
    let entry = &schema["properties"]["sinks"]["additionalProperties"]["properties"];
    let own = kind.defaults_as_written();
    let mut lines = Vec::new();
    for group in ["batch", "retry", "spill", "filter"] {
        let options = &entry[group]["properties"];
        let options =
            if options.is_null() { &entry[group]["anyOf"][0]["properties"] } else { options };
        for (key, value) in own[group].as_object().into_iter().flatten() {
            let general = &options[key]["default"];
            let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if general != value && !(general.is_null() && is_empty) {
                lines.push(format!("| `{group}.{key}` | `{}` |", plain(value)));
            }
        }
    }
    if !own["rate_limit"].is_null() {
        lines.push(format!("| `rate_limit` | `{}` |", plain(&own["rate_limit"])));
    }
    if own["writers"] != 64 {
        lines.push(format!("| `writers`, the most | `{}` |", own["writers"]));
    }
    format!("| key | default |\n|---|---|\n{}\n", lines.join("\n"))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn stored(kind: &SinkKind, head: &mut Head) -> String {
    let prose = head.need("Stored");
    let Some(tables) = (kind.tables)(&TableWish::default()) else { return prose };
    let (name, tables) = (kind.name, tables.trim());
    format!(
        "{prose}\n\n<details><summary>The statements that make it, as <code>saltern schema {name}</code> prints \
         them</summary>\n\n```sql\n{tables}\n```\n\n</details>"
    )
}

/// A sentence on an event that is written twice.
pub(super) fn once(kind: &SinkKind) -> &'static str {
    match kind.once {
        Once::ByEvent => "At least once, and one copy of each event: the store knows it by its id.",
        Once::ByBatch => {
            "At least once, and one copy of each batch: the store knows it by its id, over a crash too."
        }
        Once::No => {
            "At least once: what was being written at a crash, or when an answer was lost, may be \
             there twice."
        }
        Once::NothingKept => "Nothing is kept, so nothing is there twice.",
    }
}

fn returner(kind: &SinkKind, differs: Option<&str>) -> String {
    let differs = differs.unwrap_or_default();
    let Some(salt) = &kind.salt else {
        return match differs {
            "" => "Salt has none that this kind stands for.".to_owned(),
            differs => differs.to_owned(),
        };
    };
    let mut text = format!("It stands for {}", listed(salt.names));
    if !salt.stores_events {
        text.push_str(", which takes returns alone (`event_return` cannot name it)");
    }
    text.push_str(".\n\n");
    text.push_str(&options(salt));
    if !differs.is_empty() {
        text.push_str(&format!("**What differs.** {differs}\n"));
    } else if let Some(note) = salt.note {
        text.push_str(&format!("**What differs.** {note}\n"));
    }
    text
}

fn options(salt: &SaltReturner) -> String {
    if salt.options.is_empty() && salt.fixed.is_empty() {
        return String::new();
    }
    let mut table = String::from("| Salt's option | key here | |\n|---|---|---|\n");
    let section = salt.sections.first().map(|section| format!("{section}.")).unwrap_or_default();
    for option in salt.options {
        let form = match option.form {
            SaltForm::Path => "a path".to_owned(),
            SaltForm::Seconds => "seconds".to_owned(),
            SaltForm::Servers { port, .. } => {
                format!("servers; the port is {port} if none is named")
            }
            SaltForm::Name { longest } => format!("a name of at most {longest} characters"),
        };
        let needed = if option.is_needed { "; needed" } else { "" };
        let (name, setting) = (option.name, option.setting);
        table.push_str(&format!("| `{section}{name}` | `{setting}` | {form}{needed} |\n"));
    }
    for (setting, value) in salt.fixed {
        let why = "so that it stores what the returner does";
        table.push_str(&format!("| | `{setting}: {value}` | {why} |\n"));
    }
    table + "\n"
}

fn moves(kind: &SinkKind, moving: Option<&str>) -> String {
    let Some(salt) = &kind.salt else { return moving.unwrap_or_default().to_owned() };
    let first = salt.names.first().unwrap();
    let stands_in = match salt.stores_events {
        true => "`event_return`, `return`, `master_job_cache` or `ext_job_cache`",
        false => "`return`, `master_job_cache` or `ext_job_cache`",
    };
    let steps = format!(
        "1. `saltern import-master /etc/salt/master > saltern.yaml` writes a sink of this kind with \
         these options, and comments for what it cannot carry over.\n\
         2. `saltern check --connect` says whether all can be reached. Start saltern beside Salt's \
         own returner and compare.\n\
         3. Take `{first}` out of {stands_in} of the master, or put `saltern` in its place \
         ([Salt's returner](../returner.md)), and restart the master.\n"
    );
    format!("{steps}\n{}", moving.unwrap_or_default())
}

/// Names in code, with commas between.
pub(super) fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
