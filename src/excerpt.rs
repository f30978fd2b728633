//! A line of the configuration as it may be shown beside a mistake in it: without the secrets.
//!
//! Which text is a secret is known for sure only where the configuration is right, so this goes by
//! the names of keys, and hides too much rather than too little. What is hidden keeps its width, so
//! that a caret under the line stays in its place.

/// What the names of keys that hold secrets have in them; common mistypings are among them.
const NAMES: [&str; 5] = ["pass", "pasw", "secret", "token", "credential"];

/// The line, and `before` it the one that may hold its key.
pub fn shown(before: Option<&str>, line: &str) -> String {
    let is_key = |key: &str| is_secret(key.trim().trim_start_matches("- "));
    if before.and_then(|before| before.trim_end().strip_suffix(':')).is_some_and(is_key) {
        return hidden(line);
    }
    let mut out = String::new();
    let mut rest = line;
    while let Some(colon) = rest.find(':') {
        let (key, value) = rest.split_at(colon + 1);
        out.push_str(key);
        let is_url = value.starts_with("//");
        let name = key.trim_end_matches(':').rsplit(['{', ',']).next().unwrap_or_default();
        let end = if is_url {
            value.find('@').unwrap_or(0)
        } else if is_secret(name) {
            end_of_value(value)
        } else {
            0
        };
        let (value, others) = value.split_at(end);
        out.push_str(&hidden(value));
        rest = others;
    }
    out + rest
}

fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    NAMES.iter().any(|name| key.contains(name))
}

/// Where the value behind a colon ends: a quoted one with its quotes, any other with the line.
fn end_of_value(text: &str) -> usize {
    let start = text.len() - text.trim_start().len();
    let mut chars = text.char_indices().skip_while(|(place, _)| *place < start).peekable();
    let Some((_, quote @ ('"' | '\''))) = chars.next() else { return text.len() };
    while let Some((place, c)) = chars.next() {
        match c {
            '\\' if quote == '"' => drop(chars.next()),
            // Doubled between single quotes, it stands for itself.
            '\'' if c == quote && chars.next_if(|(_, next)| *next == quote).is_some() => {}
            _ if c == quote => return place + 1,
            _ => {}
        }
    }
    text.len()
}

fn hidden(text: &str) -> String {
    text.chars().map(|c| if c.is_whitespace() { c } else { '*' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_the_rest_is_shown() {
        for (line, expected) in [
            ("  password: a b,c}  # d", "  password: * ****  * *"),
            (r#"{"token":"a\"b","x":1}"#, r#"{"token":******,"x":1}"#),
            ("{password: 'a''b', x: 1}", "{password: ******, x: 1}"),
            ("sasl: {user: u, password: a, x: 1}", "sasl: {user: u, password: ** ** **"),
            ("url: http://u:p@h:1/x", "url: http:*****@h:1/x"),
            ("url: http://h:1, key: a", "url: http://h:1, key: a"),
            ("name: web-1", "name: web-1"),
            ("password", "password"),
        ] {
            assert_eq!(shown(None, line), expected);
        }
        assert_eq!(shown(Some("  password:"), "    a: b"), "    ** *");
        assert_eq!(shown(Some("  tokens: 1"), "    a: b"), "    a: b");
    }
}
