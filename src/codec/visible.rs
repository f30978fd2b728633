//! Text from outside, made safe for a terminal.
//!
//! Minions, users, peers and servers choose the text of their names and errors. A terminal obeys
//! some characters (control characters, ESC, C1), shows the text in another order for some (those
//! of the bidirectional algorithm), and shows nothing at all for others. All of these are written
//! as `\n` or `\u{202e}`; every other character, a backslash among them, stays as it is.

use std::fmt::{self, Write};

/// The text on one line, with invisible characters made visible.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visible<'a>(pub(crate) &'a str);

impl fmt::Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(does_not_show) {
            let (before, from) = rest.split_at(at);
            f.write_str(before)?;
            let mut chars = from.chars();
            if let Some(c) = chars.next() {
                write_escape(c, f)?;
            }
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}

/// The text like [`Visible`], cut to at most `most` bytes; `…` marks the cut.
pub(crate) fn capped(text: &str, most: usize) -> String {
    let mut out = String::new();
    let mut piece = String::new();
    for c in text.chars() {
        piece.clear();
        if does_not_show(c) {
            // Writing to a String does not fail.
            let _ = write_escape(c, &mut piece);
        } else {
            piece.push(c);
        }
        if out.len() + piece.len() > most {
            out.push('…');
            break;
        }
        out.push_str(&piece);
    }
    out
}

/// A text of several lines like [`Visible`]; its lines stay lines.
pub(crate) fn lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(|line| Visible(line).to_string()).collect();
    lines.join("\n")
}

/// JSON of the same value in which nothing but line feeds is left that does not show. Within a
/// string such a character is written as `\u202e`; JSON has none of them elsewhere.
pub(crate) fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || !does_not_show(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
    out
}

/// The number of columns that a text takes that was made visible. Wide characters count as one.
pub(crate) fn width(text: &str) -> usize {
    text.chars().count()
}

/// True of a character that a terminal obeys, or shows nothing for.
fn does_not_show(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            // Soft hyphen, marks of direction, of the Mongolian script and of the grapheme cluster.
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}'
            // Letters, vowels and patterns that are blank.
            | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}'
            // Characters without width; left-to-right and right-to-left marks.
            | '\u{200b}'..='\u{200f}'
            // Line and paragraph separator; embeddings and overrides of direction.
            | '\u{2028}'..='\u{202e}'
            // Word joiner, invisible operators, isolates of direction.
            | '\u{2060}'..='\u{206f}'
            // Selectors of variants; byte order mark; annotations; beams and slurs of music.
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}'
            // Tags, and the selectors of variants behind them.
            | '\u{e0000}'..='\u{e0fff}'
        )
}

fn write_escape(c: char, out: &mut impl Write) -> fmt::Result {
    match c {
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        _ => write!(out, "\\u{{{:x}}}", u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use crate::codec::visible::*;

    #[test]
    fn nothing_is_left_that_a_terminal_obeys_or_hides() {
        for (text, shown) in [
            ("web-1 Grüße 日本 👩 C:\\x", "web-1 Grüße 日本 👩 C:\\x"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\x1b]52;c;aGk=\x07", "\\u{1b}]52;c;aGk=\\u{7}"),
            ("\u{9b}31m\x7f", "\\u{9b}31m\\u{7f}"),
            ("exe\u{202e}gpj\u{2066}\u{200f}\u{61c}", "exe\\u{202e}gpj\\u{2066}\\u{200f}\\u{61c}"),
            ("\u{feff}a\u{200b}\u{2028}\u{e0041}", "\\u{feff}a\\u{200b}\\u{2028}\\u{e0041}"),
        ] {
            assert_eq!(Visible(text).to_string(), shown);
            assert_eq!(capped(text, 1000), shown);
        }
        assert_eq!(lines("a\n\x1bb"), "a\n\\u{1b}b");
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        assert_eq!(capped("äöü", 4), "äö…");
        assert_eq!(capped("äöü", 5), "äö…");
        assert_eq!(capped("äöü", 6), "äöü");
        assert_eq!(capped("ab\u{202e}", 8), "ab…", "no half of an escape");
        assert_eq!(capped(&"\x1b".repeat(1 << 20), 200).len(), 33 * 6 + '…'.len_utf8());
    }

    #[test]
    fn json_keeps_its_value() {
        let value = serde_json::json!({"a\u{202e}": "\u{9b}x\x1b\n\u{e0041}\u{7f}ä"});
        let shown = json(&format!("{value:#}\n"));
        assert!(!shown.chars().any(|c| c != '\n' && does_not_show(c)), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
