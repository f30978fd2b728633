//! Escapes a value of an event for the place that it is written into.
//!
//! A minion chooses most values, and may choose one that means something in that place: a `/`, a
//! quote, a line feed. Each place has its way to say that it is only text.

use crate::codec::json::write_string;
use crate::codec::visible::{self, Visible};

/// A place that values are put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A segment of a URL's path, or a value of its query. It is neither empty nor made of points
    /// alone, since such a segment would lead to another place.
    Url,
    /// The value of a header.
    Header,
    /// A string of JSON, or of a language with such strings, between its double quotes.
    Json,
    /// A value of a form (`application/x-www-form-urlencoded`).
    Form,
    /// HTML or XML.
    Markup,
    /// Text for people.
    Text,
}

/// Bytes of a value in a URL or header, at the most. Longer than any id of Salt's.
const LONGEST: usize = 512;

/// Parts of the names of types in which a text between double quotes is escaped as in JSON.
const QUOTING: [&str; 4] = ["json", "yaml", "javascript", "graphql"];

impl Place {
    /// The place in a body of this content type.
    pub(crate) fn in_body(content_type: &str) -> Self {
        let kind = content_type.split(';').next().unwrap_or_default().trim().to_lowercase();
        match kind.as_str() {
            "application/x-www-form-urlencoded" => Place::Form,
            kind if QUOTING.iter().any(|part| kind.contains(part)) => Place::Json,
            kind if kind.ends_with("xml") || kind.ends_with("html") => Place::Markup,
            _ => Place::Text,
        }
    }

    /// The value as it is written there. One that an event does not have is `_` in a URL, and
    /// nothing elsewhere.
    pub(crate) fn escape(self, value: Option<&str>) -> String {
        let value = value.unwrap_or_default();
        match self {
            Place::Url => in_url(value),
            Place::Header => visible::capped(value, LONGEST),
            Place::Json => {
                let mut quoted = Vec::new();
                write_string(value.as_bytes(), &mut quoted);
                let quoted = String::from_utf8_lossy(&quoted);
                quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned()
            }
            Place::Form => form_urlencoded::byte_serialize(value.as_bytes()).collect(),
            Place::Markup => Visible(value)
                .to_string()
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;")
                .replace('"', "&quot;")
                .replace('\'', "&#39;"),
            Place::Text => Visible(value).to_string(),
        }
    }
}

fn in_url(value: &str) -> String {
    let value = value.get(..value.floor_char_boundary(LONGEST)).unwrap_or_default();
    if value.bytes().all(|byte| byte == b'.') {
        return "_".repeat(value.len().max(1));
    }
    let encoded = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    value.bytes().map(encoded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_means_anything_in_its_place() {
        for (place, value, expected) in [
            (Place::Url, "web-1.a_b~", "web-1.a_b~"),
            (Place::Url, "../a?b#c%\\ \n\u{e4}", "..%2Fa%3Fb%23c%25%5C%20%0A%C3%A4"),
            (Place::Url, "..", "__"),
            (Place::Url, "", "_"),
            (Place::Header, "a\r\nX: b\u{202e}", "a\\r\\nX: b\\u{202e}"),
            (Place::Json, "a\"}, \\\n", "a\\\"}, \\\\\\n"),
            (Place::Form, "a&b=c d", "a%26b%3Dc+d"),
            (Place::Markup, "<a href='x'>&\"\x1b", "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\\u{1b}"),
            (Place::Text, "a\nb\x1b", "a\\nb\\u{1b}"),
        ] {
            assert_eq!(place.escape(Some(value)), expected, "{place:?}");
        }
        assert_eq!(Place::Url.escape(None), "_");
        assert_eq!(Place::Json.escape(None), "");
        assert_eq!(Place::Url.escape(Some(&"\u{e4}".repeat(1000))).len(), 256 * 6);
    }

    #[test]
    fn the_place_follows_from_the_type_of_the_body() {
        for (kind, place) in [
            ("application/json", Place::Json),
            ("application/vnd.api+JSON; charset=utf-8", Place::Json),
            ("application/jsonlines", Place::Json),
            ("application/yaml", Place::Json),
            ("application/x-www-form-urlencoded", Place::Form),
            ("text/html", Place::Markup),
            ("application/soap+xml", Place::Markup),
            ("text/plain", Place::Text),
        ] {
            assert_eq!(Place::in_body(kind), place, "{kind}");
        }
    }
}
