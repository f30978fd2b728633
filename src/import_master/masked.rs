//! A value of the master's configuration as it may be printed: without secrets.
//!
//! The names and looks of secrets are those of saltern's own configuration ([`hide`]), with those
//! of Salt's returners besides. A value is not printed at all if a part of it may be a secret.

use super::page::quoted;
use super::python::{is_false, scalar};
use crate::yaml::hide;
use crate::yaml::{Node, Value};

/// The longest value that is printed, in bytes.
const LONGEST: usize = 2000;

/// The words in place of a secret.
pub(super) const HIDDEN: &str = "(a secret; it stays in the master's file)";

/// The value of an option on one line of YAML, unless it is a secret.
pub(super) fn masked(option: &str, node: &Node) -> String {
    let masked = in_full(option, node);
    let entries = match &node.value {
        Value::List(nodes) => nodes.len(),
        Value::Map(pairs) => pairs.len(),
        _ => 1,
    };
    match masked.len() {
        0..=LONGEST => masked,
        length if entries == 1 => format!("(a text of {length} bytes)"),
        _ => format!("({entries} entries)"),
    }
}

fn in_full(option: &str, node: &Node) -> String {
    if is_secret(option) {
        return match is_false(node) {
            true => "(empty)".to_owned(),
            false => HIDDEN.to_owned(),
        };
    }
    match &node.value {
        Value::Text(text) | Value::Replaced { text, .. } if !is_open(text) => HIDDEN.to_owned(),
        Value::Text(text) | Value::Replaced { text, .. } => quoted(text),
        Value::List(nodes) => {
            // A list of pairs may be one of names and their values: `[password, abc]`.
            let names_one =
                nodes.iter().any(|node| scalar(node).is_some_and(|text| hide::is_secret(&text)));
            if names_one {
                return HIDDEN.to_owned();
            }
            // The word behind an option of a command belongs to it: `[--key, abc]`.
            let is_option = |node: &Node| scalar(node).is_some_and(|text| text.starts_with('-'));
            let before = std::iter::once(false).chain(nodes.iter().map(is_option));
            let items = nodes.iter().zip(before).map(|(node, is_behind)| match is_behind {
                true => HIDDEN.to_owned(),
                false => in_full("", node),
            });
            format!("[{}]", items.collect::<Vec<_>>().join(", "))
        }
        Value::Map(pairs) => {
            // So may a mapping: `{name: password, value: abc}`.
            let names_one = pairs
                .iter()
                .any(|(_, node)| scalar(node).is_some_and(|text| hide::is_secret(&text)));
            if names_one {
                return HIDDEN.to_owned();
            }
            let pairs = pairs.iter().map(|(key, node)| {
                format!("{}: {}", quoted(name(&key.name)), in_full(&key.name, node))
            });
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        _ => scalar(node).unwrap_or_else(|| "null".to_owned()),
    }
}

/// The name of an option, which may be a secret if somebody took a value for a name.
pub(super) fn name(option: &str) -> &str {
    if hide::may_be_secret(option) { HIDDEN } else { option }
}

/// True if the value of an option of this name is a secret.
pub(super) fn is_secret(option: &str) -> bool {
    let letters: String = option.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
    letters.contains("key") || letters.ends_with("sid") || hide::is_secret(option)
}

/// True if nothing in a text looks like a secret: it is one plain word, a path, an address without
/// anything besides its host, a glob.
pub(super) fn is_open(text: &str) -> bool {
    !hide::may_be_secret(text) && is_plain(text) && !has_token(text) && {
        // A text with an `@` is shown only if it is an address of mail.
        text.split_once('@').is_none_or(|(_, host)| !host.contains([':', '/', '@']))
    }
}

/// True if nothing in a text separates the words of a command or joins a name with its value. A
/// path may have spaces.
fn is_plain(text: &str) -> bool {
    let is_path = text.starts_with('/') && !text.contains(" -");
    text.chars().all(|c| {
        c.is_alphanumeric() || "_./:*?[],{}~^$|()+-#@!\\".contains(c) || c == ' ' && is_path
    })
}

/// The length from which on letters and digits together are taken for a token.
const TOKEN: usize = 16;

/// True if a word in the text looks made up by a machine: a UUID, a key in base 32 or 64, a token
/// of Slack.
fn has_token(text: &str) -> bool {
    let is_path = text.starts_with(['/', '~', '.']);
    let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '+' || c == '/' && !is_path);
    let is_mixed = |word: &str| {
        word.len() >= TOKEN
            && word.bytes().any(|byte| byte.is_ascii_digit())
            && word.bytes().any(|byte| byte.is_ascii_alphabetic())
            // The tag of an event has a job's id in it.
            && !word.split('/').any(|part| part.len() >= TOKEN && part.bytes().all(|b| b.is_ascii_digit()))
    };
    let is_uuid = |word: &str| {
        let lengths = word.split('-').map(|part| (part.len(), part));
        let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
        lengths.clone().map(|(length, _)| length).eq([8, 4, 4, 4, 12])
            && lengths.map(|(_, part)| part).all(is_hex)
    };
    text.starts_with("xox")
        || text.split(ends).any(is_mixed)
        || text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(is_uuid)
}

#[cfg(test)]
mod tests {
    use super::super::master::Master;
    use super::*;

    #[test]
    fn secrets_are_not_shown_however_they_stand_there() {
        for text in [
            "pass: hunter2",
            "api_token: hunter2",
            "hosts: ['http://u:hunter2@es:9200']",
            "hosts: 'http://a:9200,http://u:hunter2@es:9200'",
            "uri: mongodb://u:hunter2@h/db",
            "uri: mongodb+srv://u:hunter2@h",
            "url: http://h/nrdp/?token=hunter2",
            "url: http://h/?x=hunter2",
            "url: https://h/hooks/hunter2",
            "url: h.example.com/hooks/hunter2",
            "url: redis://:hunter2@h",
            "url: salt/hunter2@//h:1521/x",
            "url: u:hunter2@h",
            "url: u:hunter2@tcp(h:3306)/db",
            "servers: [{url: 'https://a:hunter2@h/1'}]",
            "x: 'host=h password=hunter2'",
            "x: 'Server=h;UID=sa;PWD=hunter2'",
            "x: 'Server=h;Password = hunter2;'",
            "x: 'token:hunter2'",
            "x: 'Authorization: Basic hunter2'",
            "headers: {Authorization: hunter2}",
            "headers: [[X-Api-Key, hunter2]]",
            "headers: [{name: password, value: hunter2}]",
            "x: {a: [{b: {secret: [hunter2]}}]}",
            "x: {'http://u:hunter2@h': 1}",
            "x: sdb://vault/hunter2",
            "x: '-----BEGIN KEY hunter2'",
            "webhook: T0/B0/hunter2",
            "user: azhunter2bqrs7tuvw4xyz",
            "x: '{\"password\": \"hunter2\"}'",
            "cmd: 'curl -u root:hunter2 http://h'",
            "cmd: 'mysql -uroot -phunter2 db'",
            "x: pw=hunter2",
            "x: h/?p=hunter2",
            "x: hunter2@h:6379",
            "x: '<password>hunter2</password>'",
            "x: 'a: hunter2'",
            "args: [--key, hunter2]",
            "args: [-u, 'root:hunter2']",
            "x: !!binary aHVudGVyMg==hunter2",
            "x: hunter2K/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "x: xoxb-hunter2-abcdef",
            "x: hunter2DPEHPK3PXP",
        ] {
            let master = Master::parse(text).unwrap();
            for (option, node) in master.keys() {
                let masked = masked(option, node);
                assert!(!masked.contains("hunter2"), "{text}: {masked}");
            }
        }
    }

    #[test]
    fn what_is_no_secret_is_shown() {
        for (text, expected) in [
            ("host: salt", "\"salt\""),
            ("port: 3306", "3306"),
            (
                "hosts: ['10.10.10.10:9200', 'http://es:9200']",
                "[\"10.10.10.10:9200\", \"http://es:9200\"]",
            ),
            ("url: http://salt:5984/", "\"http://salt:5984/\""),
            ("from: me@example.net", "\"me@example.net\""),
            (
                "ssl_ca: /etc/pki/mysql/certs/localhost.pem",
                "\"/etc/pki/mysql/certs/localhost.pem\"",
            ),
            ("password: ''", "(empty)"),
            ("functions_blacklist: [test.ping]", "[\"test.ping\"]"),
            ("x: 'salt/job/*/ret/web-[0-9]*'", "\"salt/job/*/ret/web-[0-9]*\""),
            ("x: salt/job/20261121233617130881/ret/*", "\"salt/job/20261121233617130881/ret/*\""),
            ("x: elasticsearch01-prod-eu.example.com", "\"elasticsearch01-prod-eu.example.com\""),
            ("x: /srv/salt2019/states/production/x1", "\"/srv/salt2019/states/production/x1\""),
        ] {
            let master = Master::parse(text).unwrap();
            let (option, node) = master.keys().next().unwrap();
            assert_eq!(masked(option, node), expected);
        }
    }
}
