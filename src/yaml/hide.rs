//! A line of the configuration as it may be shown beside a mistake in it: without the secrets, and
//! not longer than a terminal is wide.
//!
//! Only a right configuration says for sure which text is a secret. So this goes by the names of
//! keys, the lines above, and the looks of values, and hides too much rather than too little. A
//! hidden text keeps its width, so that a caret under the line stays in its place.

use crate::codec::visible::{self, Visible};

/// Parts of the names of keys that hold secrets, without what separates words; common
/// mistypings are among them.
const NAMES: [&str; 19] = [
    "pass",
    "pasw",
    "pswd",
    "secret",
    "token",
    "tokne",
    "tokn",
    "cred",
    "auth",
    "apikey",
    "accesskey",
    "privatekey",
    "keypem",
    "jaas",
    "bearer",
    "cookie",
    "phrase",
    "signature",
    "connectionstring",
];

/// A part of the names of keys whose address is a secret. A mapping is no address.
const ADDRESS: &str = "hook";

/// Words that are names of secrets.
const WORDS: [&str; 10] = ["pw", "pwd", "psk", "pin", "otp", "dsn", "jwt", "pat", "hmac", "sas"];

/// Schemes whose addresses are paths of this machine.
const LOCAL: [&str; 3] = ["ipc", "unix", "file"];

/// Columns of a line that are shown.
const WIDTH: usize = 120;

/// Columns on either side of the shown ones whose values are checked too.
const MARGIN: usize = 2000;

/// An opaque text of so many characters is a secret.
const OPAQUE: usize = 20;

/// A line, and how many columns stand before the place in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ShownLine {
    /// The part of the line that may be shown.
    pub(crate) line: String,
    /// The columns before the place.
    pub(crate) indent: usize,
}

/// The sections whose keys are names that the operator gave to entries, as in `tokens: {kafka: …}`.
pub(crate) const SECTIONS: [&str; 2] = ["sources", "sinks"];

/// True if the value under a key of this name is a secret.
pub(crate) fn is_secret(key: &str) -> bool {
    key.to_lowercase().contains(ADDRESS) || holds_secrets(key)
}

/// True if also a mapping under a key of this name is a secret, as a whole.
pub(crate) fn holds_secrets(key: &str) -> bool {
    let key = key.to_lowercase();
    let letters: String = key.chars().filter(|c| c.is_alphanumeric()).collect();
    let mut words = key.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    NAMES.iter().any(|name| letters.contains(name))
        || words.clone().any(|word| WORDS.contains(&word))
        || words.clone().count() > 1 && words.next_back() == Some("key")
}

/// The line of this number, from 1, with a column of it in sight.
pub(crate) fn shown(text: &str, number: usize, column: usize) -> ShownLine {
    window(&without_secrets(text, number).1, column.saturating_sub(1))
}

/// True if something of the line is hidden.
pub(crate) fn hides(text: &str, number: usize) -> bool {
    let (line, shown) = without_secrets(text, number);
    line != shown || without_looks(line) != line
}

/// The line of this number, and the same without the values of keys that hold secrets.
fn without_secrets(text: &str, number: usize) -> (&str, String) {
    let (mut state, mut section) = (OpenSecret::Nothing, Section::Other);
    let (mut found, mut shown) = ("", String::new());
    for line in lines_of(text).take(number) {
        found = line;
        shown.clear();
        match state.takes(line) {
            true => shown.push_str(&hidden(line)),
            false => state = without_values(line, section.name_in(line), &mut shown),
        }
    }
    (found, shown)
}

/// The place of a line among those of the sections of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    /// Outside of them.
    Other,
    /// Below the first line of one.
    Begun,
    /// Among entries whose names stand behind so many columns.
    Entries(usize),
}

impl Section {
    /// The length of the line up to the end of the name of an entry and its colon; 0 of a line
    /// without one. The entry is a mapping: a single value under a name may be a secret.
    fn name_in(&mut self, line: &str) -> usize {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            return 0;
        }
        let indent = line.len() - content.len();
        let (name, value) = content.split_once(':').unwrap_or((content, content));
        let has_mapping = is_mapping(value);
        let is_on_lines = !value.trim_start().starts_with('{');
        *self = match *self {
            _ if indent == 0 && SECTIONS.contains(&name) && has_mapping && is_on_lines => {
                Section::Begun
            }
            _ if indent == 0 => Section::Other,
            Section::Begun if content.starts_with('-') => Section::Other,
            Section::Begun => Section::Entries(indent),
            known => known,
        };
        match *self {
            Section::Entries(columns) if columns == indent && has_mapping => {
                indent + name.len() + 1
            }
            _ => 0,
        }
    }
}

/// True if the value behind a colon is a mapping, or is on the lines below.
fn is_mapping(value: &str) -> bool {
    let value = value.trim_start();
    value.is_empty() || value.starts_with(['{', '#'])
}

/// True if a part of a value looks like a secret: the user and path of an address, an argument or a
/// pair named like a secret, or an opaque text.
pub(crate) fn may_be_secret(value: &str) -> bool {
    let names_one = value.contains([':', '=']) && is_secret(value);
    names_one
        || without_looks(value) != value
        || without_arguments(value) != value
        || has_user(value)
        || has_key(value)
        || has_path_of_host(value)
}

/// True if a user with something behind the name stands before a host: `user/abc@host`.
fn has_user(value: &str) -> bool {
    value.rsplit_once('@').is_some_and(|(user, _)| user.contains([':', '/']))
}

/// True if a long run of letters and digits is in it, in any case of letters.
fn has_key(value: &str) -> bool {
    let mut runs = value.split(|c: char| !c.is_ascii_alphanumeric());
    runs.any(|run| {
        let has = |what: fn(&u8) -> bool| run.bytes().any(|byte| what(&byte));
        run.len() >= OPAQUE && has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic)
    })
}

/// True for an address without its scheme: `hooks.example.com/services/abc`.
fn has_path_of_host(value: &str) -> bool {
    value.split_once('/').is_some_and(|(host, path)| {
        let host = host.split_once(':').map_or(host, |(name, _)| name);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
        host.trim_matches('.').contains('.') && host.chars().all(is_name) && !path.is_empty()
    })
}

/// A message without texts that look like secrets.
pub(crate) fn message(text: &str) -> String {
    without_looks(text)
}

/// The lines as YAML counts them: a carriage return alone ends one too.
pub(crate) fn lines_of(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// A secret that began on a line before, and that a line is inside of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpenSecret {
    Nothing,
    /// A text between such quotes.
    Quotes(char),
    /// Brackets, so many.
    Brackets(usize),
    /// Lines further to the right than so many columns.
    Indented(usize),
}

impl OpenSecret {
    /// True if the line is a part of it, or its end.
    fn takes(&mut self, line: &str) -> bool {
        match *self {
            OpenSecret::Nothing => false,
            OpenSecret::Quotes(quote) => {
                if let Some(rest) = behind_quote(line, quote) {
                    *self = after(rest, 0);
                }
                true
            }
            OpenSecret::Brackets(open) => {
                match open_brackets(line, open) {
                    0 => *self = OpenSecret::Nothing,
                    open => *self = OpenSecret::Brackets(open),
                }
                true
            }
            OpenSecret::Indented(columns) => {
                let indent = line.len() - line.trim_start().len();
                let is_item = indent == columns && line.trim_start().starts_with('-');
                if line.trim().is_empty() || indent > columns || is_item {
                    return true;
                }
                *self = OpenSecret::Nothing;
                false
            }
        }
    }
}

/// Writes the line without the values of keys that hold secrets; returns the secret that goes on
/// behind it. The first `shown` bytes are written as they are.
fn without_values(line: &str, shown: usize, out: &mut String) -> OpenSecret {
    let mut state = OpenSecret::Nothing;
    let (name, mut rest) = line.split_at_checked(shown).unwrap_or(("", line));
    out.push_str(name);
    // The value of a key that stands alone (`? password`) on a line before.
    if line.trim_start().starts_with(':') {
        out.push_str(&hidden(line));
        return OpenSecret::Indented(line.len() - line.trim_start().len());
    }
    while let Some(colon) = rest.find(':') {
        let (key, value) = rest.split_at(colon + 1);
        let before = line.len() - rest.len();
        let name = key.trim_end_matches(':').rsplit(['{', '[', ',']).next().unwrap_or_default();
        let is_hidden = if is_mapping(value) { holds_secrets(name) } else { is_secret(name) };
        if !is_hidden {
            let shown = without_arguments(key);
            out.push_str(&shown);
            if shown != key {
                // The key itself may be a part of the secret, and so may the rest of the line.
                out.push_str(&hidden(value));
                return after(line, 0);
            }
            rest = value;
            continue;
        }
        out.push_str(key);
        let name = name.trim_start_matches([' ', '-', '?']);
        let end = end_of_value(value);
        state = match value.trim_start().chars().next() {
            _ if open_brackets(line.get(..before + colon).unwrap_or_default(), 0) > 0 => {
                after(line, 0)
            }
            Some(quote @ ('"' | '\'')) if end.is_none() => OpenSecret::Quotes(quote),
            Some('"' | '\'') => OpenSecret::Nothing,
            Some('[' | '{') => after(value, 0),
            _ => OpenSecret::Indented((before + colon).saturating_sub(name.len())),
        };
        let (value, others) = value.split_at(end.unwrap_or(value.len()));
        out.push_str(&hidden(value));
        rest = others;
    }
    out.push_str(&without_arguments(rest));
    state
}

/// The brackets that are open behind a line.
fn after(line: &str, open: usize) -> OpenSecret {
    match open_brackets(line, open) {
        0 => OpenSecret::Nothing,
        open => OpenSecret::Brackets(open),
    }
}

fn open_brackets(line: &str, open: usize) -> usize {
    line.chars().fold(open, |open, c| match c {
        '[' | '{' => open + 1,
        ']' | '}' => open.saturating_sub(1),
        _ => open,
    })
}

/// Hides the text behind an argument or word that names a secret: `--token abc`, `password=abc`.
fn without_arguments(text: &str) -> String {
    let mut from = 0;
    for word in text.split_inclusive([' ', '=', '\t']) {
        from += word.len();
        // A key is no word with a value behind it.
        if word.ends_with([' ', '=', '\t']) && is_secret(word) {
            let (before, behind) = text.split_at(from);
            return before.to_owned() + &hidden(behind);
        }
    }
    text.to_owned()
}

/// The place where the value behind a colon ends: a quoted one with its quotes, any other with the
/// line; `None` of a quoted one that goes on.
fn end_of_value(text: &str) -> Option<usize> {
    let value = text.trim_start();
    match value.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let rest = behind_quote(value.get(1..).unwrap_or_default(), quote)?;
            Some(text.len() - rest.len())
        }
        _ => Some(text.len()),
    }
}

/// The rest behind the quote that ends a text.
fn behind_quote(text: &str, quote: char) -> Option<&str> {
    let mut chars = text.char_indices().peekable();
    while let Some((place, c)) = chars.next() {
        match c {
            '\\' if quote == '"' => drop(chars.next()),
            // Doubled between single quotes, it stands for itself.
            '\'' if c == quote && chars.next_if(|(_, next)| *next == quote).is_some() => {}
            _ if c == quote => return text.get(place + 1..),
            _ => {}
        }
    }
    None
}

/// The part of a line around a column, made visible.
fn window(line: &str, column: usize) -> ShownLine {
    let near = column.saturating_sub(WIDTH / 2);
    let first = near.saturating_sub(MARGIN);
    let skipped: String = line.chars().skip(first).take(2 * MARGIN + WIDTH).collect();
    let looked: Vec<char> = without_looks(&skipped).chars().collect();
    let part = looked.get(near - first..).unwrap_or_default();
    let is_cut = part.len() > WIDTH;
    let part: String = part.iter().take(WIDTH).collect();
    let before: String = part.chars().take(column - near).collect();
    let front = if near > 0 { "…" } else { "" };
    let back = if is_cut { "…" } else { "" };
    let indent = visible::width(front) + visible::width(&Visible(&before).to_string());
    ShownLine { line: format!("{front}{}{back}", Visible(&part)), indent }
}

/// Hides texts that look like secrets: all of an address but its host, opaque texts, keys.
fn without_looks(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    // Between the quotes and spaces of the line, so that each address is looked at alone.
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_whitespace() || "\"'`,{}[]()".contains(c));
        let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
        if ["Basic", "Bearer"].iter().any(|scheme| word.eq_ignore_ascii_case(scheme))
            || word.starts_with("-----BEGIN")
        {
            out.push_str(word);
            out.push_str(&hidden(behind));
            return out;
        }
        out.push_str(&word_without_looks(word));
        let mut chars = behind.chars();
        out.extend(chars.next());
        rest = chars.as_str();
    }
    out
}

fn word_without_looks(word: &str) -> String {
    let (before, address) = match word.find("://") {
        Some(at) => word.split_at(at + 3),
        None => ("", word),
    };
    let is_local = LOCAL.iter().any(|scheme| before.ends_with(&format!("{scheme}://")));
    let mut address = address.to_owned();
    if let Some(at) = address.rfind('@')
        && address.get(..at).is_some_and(|user| !before.is_empty() || user.contains(':'))
    {
        let (user, host) = address.split_at(at);
        address = hidden(user) + host;
    }
    if !before.is_empty()
        && !is_local
        && let Some(at) = address.find(['/', '?', '#'])
    {
        let (host, path) = address.split_at(at + 1);
        address = host.to_owned() + &hidden(path);
    }
    before.to_owned() + &without_opaque(&address)
}

/// Hides runs of letters and digits that look generated.
fn without_opaque(text: &str) -> String {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || "+=_".contains(c);
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_inner(c)).unwrap_or(rest.len());
        let (run, behind) = rest.split_at(end);
        let has = |what: fn(&char) -> bool| run.chars().any(|c| what(&c));
        let is_mixed = has(char::is_ascii_digit)
            && has(char::is_ascii_lowercase)
            && has(char::is_ascii_uppercase);
        let is_hex = run.len() >= 32 && run.chars().all(|c| c.is_ascii_hexdigit());
        match run.len() >= OPAQUE && is_mixed || is_hex {
            true => out.push_str(&hidden(run)),
            false => out.push_str(run),
        }
        let mut chars = behind.chars();
        out.extend(chars.next());
        rest = chars.as_str();
    }
    out
}

fn hidden(text: &str) -> String {
    text.chars().map(|c| if c.is_whitespace() { c } else { '*' }).collect()
}

#[cfg(test)]
mod tests {
    use crate::yaml::hide::*;

    fn line_of(text: &str) -> String {
        shown(text, lines_of(text).count(), 1).line
    }

    #[test]
    fn secrets_are_hidden_and_the_rest_is_shown() {
        for (line, expected) in [
            ("  password: a b,c}  # d", "  password: * ****  * *"),
            (r#"{"token":"a\"b","x":1}"#, r#"{"token":******,"x":1}"#),
            ("{password: 'a''b', x: 1}", "{password: ******, x: 1}"),
            ("sasl: {user: u, password: a, x: 1}", "sasl: {user: u, password: ** ** **"),
            ("url: http://u:p@h:1/x", "url: http://***@h:1/*"),
            ("url: http://h:1, key: a", "url: http://h:1, key: a"),
            ("port: 4507", "port: 4507"),
            ("address: ipc:///run/salt/x.ipc", "address: ipc:///run/salt/x.ipc"),
            ("name: web-1", "name: web-1"),
            ("password", "password"),
        ] {
            assert_eq!(line_of(line), expected);
        }
    }

    #[test]
    fn no_secret_shows_however_it_stands_there() {
        const S: &str = "hunter2";
        for text in [
            "token: 12345hunter2",
            "url: ftp://u:hunter2@h",
            "url: ftp://u:hunter2/@x@h/p",
            "url: https://hooks.slack.com/services/T0/B0/hunter2",
            "url: https://h?sig=hunter2",
            "address: u:hunter2@h:1",
            "api_key: hunter2",
            "apiKey: hunter2",
            "x-api-key: hunter2",
            "routing_key: hunter2",
            "ssl.key.pem: hunter2",
            "ssl.keystore.password: hunter2",
            "properties: {sasl.password: hunter2}",
            "sasl.oauthbearer.config: principal=x secret=hunter2",
            "sasl.jaas.config: 'x hunter2'",
            "pw: hunter2",
            "\"password\": hunter2",
            "'password' : hunter2",
            "PASSWORD: hunter2",
            "{a: 1, password: [hunter2]}",
            "headers: {Authorization: Basic hunter2}",
            "headers: ['Authorization: Bearer hunter2']",
            "header: Basic hunter2",
            "command: x --token hunter2",
            "x: {url: \"https://h?token=x\", y: hunter2}",
            "x: {url: \"http://h/?password=a b\", x: hunter2, z: hunter2}",
            "tokne: hunter2",
            "command: x --password=hunter2",
            "# the password is hunter2",
            "webhook: hunter2",
            "password: |\n  hunter2",
            "password: |\n  a\n\n  b hunter2",
            "- password: >-\n    hunter2",
            "password:\n  hunter2",
            "passwords:\n- hunter2",
            "passwords:\n- a\n- hunter2",
            "password: a\n  hunter2",
            "password: \"a\nhunter2\"",
            "password: 'a\n\nhunter2'",
            "passwords: [a,\nhunter2]",
            "{\"token\":\n\"hunter2\"}",
            "{password: [a,\n b, hunter2]}",
            "? password\n: hunter2",
            "ssl.key: |\n  -----BEGIN PRIVATE KEY-----\n  hunter2",
            "pem: -----BEGIN KEY hunter2",
            "password: &anchor hunter2",
            "x: Zm9vYmFyMTIzhunter2ABCdef",
            "x: 0123456789abcdef0123456789abcdefhunter2",
        ] {
            let shown = line_of(text);
            // In the last text only the hexadecimal digits are hidden.
            let is_last = text.starts_with("x: 0123");
            let found = if is_last { shown.contains("0123456789ab") } else { shown.contains(S) };
            assert!(!found || is_last, "{text}\n{shown}");
        }
        for (text, expected) in [
            ("password: |\n  a\nport: x", "port: x"),
            ("passwords: [a,\nb]\nport: x", "port: x"),
            ("password: \"a\nb\"\nport: x", "port: x"),
            ("a:\n  password: x\n  port: x", "  port: x"),
            ("- password: x\n  port: x", "  port: x"),
        ] {
            assert_eq!(line_of(text), expected, "{text}");
        }
    }

    #[test]
    fn names_of_entries_and_hooks_hide_nothing_below_them() {
        for (text, expected) in [
            ("sinks:\n  tokens:\n    file: x", "    file: x"),
            ("sinks: # all\n\n  tokens: {file: {pth: x}}", "  tokens: {file: {pth: x}}"),
            ("sinks:\n  a:\n    file: x\n  tokens:\n    file: x", "    file: x"),
            ("sinks:\n  tokens:\n    password: x", "    password: *"),
            ("sinks:\n  token: x", "  token: *"),
            ("sinks: {a: {b: {c: d,\n  auth: {e: x}}}}", "  auth: *** *****"),
            ("sinks:\n  - auth: {e: x}", "  - auth: *** **"),
            ("sinks:\n  a:\n    tokens:\n      file: x", "      ***** *"),
            ("sinks:\nhttp:\n  tokens:\n    file: x", "    ***** *"),
            ("a:\n  webhook:\n    bdy: x", "    bdy: x"),
            ("a:\n  webhook: {bdy: x, secret: y}", "  webhook: {bdy: x, secret: **"),
            ("a:\n  webhook: x", "  webhook: *"),
        ] {
            assert_eq!(line_of(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_hidden_far_to_the_right_is_known() {
        let long = "x".repeat(500);
        assert!(hides(&format!("a: 1\n{{a: {long}, password: *hunter2}}"), 2));
        assert!(!hides(&format!("a: 1\n{{a: {long}, port: *hunter2}}"), 2));
        assert!(!hides("password: a\nport: *b", 2));
    }

    #[test]
    fn a_long_line_is_shown_around_its_place() {
        let line = format!("{{{}port: many}}", "\"a\u{202e}\": 1, ".repeat(200_000));
        let column = line.chars().count() - 4;
        let ShownLine { line, indent } = shown(&line, 1, column);
        assert!(line.chars().count() < 300, "{line}");
        assert!(line.starts_with('…') && line.contains("\\u{202e}"), "{line}");
        let from: String = line.chars().skip(indent).collect();
        assert_eq!(from, "many}");
    }
}
