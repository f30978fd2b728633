//! The meaning of a ClickHouse server's refusals: its error codes, and their consequences.
//!
//! An error that is not named here is tried again: a code that is new must not cost events.

use reqwest::StatusCode;

use crate::client::http::{self, Answer, Failed};
use crate::codec::visible;
use crate::sink::contract::WriteError;

/// The failure of a request: the server's refusal, or no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The server said why.
    #[error("{text}{}", meaning.advice())]
    Exception {
        /// Its consequence.
        meaning: Meaning,
        /// The server's words, in short.
        text: String,
    },
    /// There was no answer, or one of a proxy in front of the server.
    #[error(transparent)]
    Http(#[from] http::Error),
}

/// The consequence of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The server does not know the user, or the password is wrong.
    Login,
    /// The server does not know a setting, or does not let it be set.
    Setting,
    /// There was no answer, or one that is not the server's.
    Unreachable,
    /// The database, a table or a column is missing.
    Schema,
    /// It may work later, or at another server; with advice where there is any.
    Later(&'static str),
    /// There is something in the rows that the server never takes, or too much of them at once.
    Rows,
}

impl Meaning {
    fn of(code: u32, text: &str) -> Self {
        match code {
            // A RowBinary head is wrong, so all rows are refused.
            117 if text.contains("Type of ") => Meaning::Schema,
            // The limit is per insert, so fewer rows pass.
            252 if text.contains("partitions for single INSERT block") => Meaning::Rows,
            // CANNOT_PARSE_… and other complaints about a value, violated constraints, and views
            // that throw.
            6 | 25 | 26 | 27 | 38 | 41 | 53 | 69 | 70 | 72 | 117 | 128 | 130 | 131 | 158 | 306
            | 307 | 321 | 349 | 376 | 395 | 407 | 441 | 469 | 675 | 676 | 691 => Meaning::Rows,
            // NOT_FOUND_COLUMN_IN_BLOCK, NO_SUCH_COLUMN_IN_TABLE, UNKNOWN_IDENTIFIER,
            // UNKNOWN_TABLE, UNKNOWN_DATABASE.
            10 | 16 | 47 | 60 | 81 => Meaning::Schema,
            115 | 452 => Meaning::Setting,
            // UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, AUTHENTICATION_FAILED.
            192..=194 | 516 => Meaning::Login,
            164 | 242 => Meaning::Later("; the server, the table or the user is read-only"),
            195 => Meaning::Later("; let the user in from this address (<networks>)"),
            201 => Meaning::Later("; the user's quota is used up for now"),
            202 => Meaning::Later("; let the user run more queries at a time"),
            241 => {
                Meaning::Later("; allow the user more memory, or set a smaller `batch.max_bytes`")
            }
            243 => Meaning::Later("; the server's disk is full"),
            252 => Meaning::Later(
                "; merges fall behind: set a longer `batch.linger`, fewer `writers`, or `async_insert`",
            ),
            497 => Meaning::Later("; GRANT the user INSERT, and CREATE unless `create` is false"),
            _ => Meaning::Later(""),
        }
    }

    /// The rank among the refusals of a batch's tables; the first decides on the batch. Halves may
    /// get by where the whole finds the server too busy.
    pub(super) fn rank(self) -> u8 {
        match self {
            Meaning::Login => 0,
            Meaning::Setting => 1,
            Meaning::Unreachable => 2,
            Meaning::Schema => 3,
            Meaning::Rows => 4,
            // Advice is worth more than none.
            Meaning::Later(advice) => 5 + u8::from(advice.is_empty()),
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Meaning::Later(advice) => advice,
            Meaning::Schema => {
                "; the tables are not those of this release: apply `saltern schema clickhouse`"
            }
            Meaning::Login => "; correct `user` and `password`",
            Meaning::Unreachable | Meaning::Rows | Meaning::Setting => "",
        }
    }
}

impl Refusal {
    /// Its consequence.
    pub(super) fn meaning(&self) -> Meaning {
        match self {
            Refusal::Exception { meaning, .. } => *meaning,
            Refusal::Http(error) => match error.failed {
                Failed::Retry | Failed::Reconnect => Meaning::Unreachable,
                Failed::Reject => Meaning::Rows,
                Failed::Fatal => Meaning::Login,
            },
        }
    }

    /// The server's answer, if it is no refusal. A status of 200 does not say so: an exception may
    /// stand in a header, or behind an answer that was begun.
    pub(super) fn of(answer: Answer) -> Result<String, Refusal> {
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        let is_refused = !answer.status.is_success();
        let code = answer.headers.get("X-ClickHouse-Exception-Code");
        let code = code.and_then(|code| code.to_str().ok()?.parse().ok());
        let exception = if is_refused || code.is_some() { Some(&*body) } else { exception(&body) };
        let Some(exception) = exception else { return Ok(body) };
        let Some(code) = code_of(exception).or(code) else {
            // A proxy in front of the server answered.
            return Ok(String::from_utf8_lossy(&answer.checked(of_a_proxy)?.body).into_owned());
        };
        let meaning = Meaning::of(code, exception);
        let text = match exception.trim().is_empty() {
            true => format!("Code: {code}"),
            false => readable(exception),
        };
        Err(Refusal::Exception { meaning, text })
    }

    /// The error in the sink's terms. `doing` is the operation, in words.
    pub(super) fn into_sink_error(self, doing: impl Into<String>) -> WriteError {
        let (meaning, text) = match self {
            Refusal::Exception { meaning, text } => (meaning, text),
            Refusal::Http(error) => return WriteError::over_http(doing, error),
        };
        let cause = Refusal::Exception { meaning, text };
        match meaning {
            Meaning::Unreachable | Meaning::Later(_) | Meaning::Schema | Meaning::Setting => {
                WriteError::retry(doing, cause)
            }
            Meaning::Login => WriteError::fatal(doing, cause),
            Meaning::Rows => WriteError::reject(doing, cause),
        }
    }
}

/// The meaning of an answer that is not the server's own. Only its 413 is about the rows; a 400 may
/// come of a wrong port.
fn of_a_proxy(answer: &Answer) -> Result<(), Failed> {
    match http::usual(answer) {
        Err(Failed::Reject) if answer.status != StatusCode::PAYLOAD_TOO_LARGE => Err(Failed::Retry),
        other => other,
    }
}

/// The exception at the end of an answer that was begun. Releases before 25.11 end with it; later
/// ones put it between two marks.
fn exception(answer: &str) -> Option<&str> {
    let is_marked = answer.ends_with("__exception__\r\n");
    if !is_marked && !answer.ends_with("))\n") {
        return None;
    }
    let exception = answer.get(answer.rfind("Code: ")?..)?;
    let is_one = exception.contains("DB::") && exception.contains("Exception:");
    is_one.then_some(exception)
}

/// The number of an answer like `Code: 60. DB::Exception: …`; releases before 20 put a comma there.
fn code_of(answer: &str) -> Option<u32> {
    let behind = answer.trim_start().strip_prefix("Code: ")?;
    let end = behind.find(|c: char| !c.is_ascii_digit())?;
    behind.get(..end)?.parse().ok()
}

/// The answer without the parts for ClickHouse's developers. An answer may hold rows, so a long one
/// is cut.
fn readable(answer: &str) -> String {
    const MOST: usize = 300;
    let answer = answer.split(", e.what() = ").next().unwrap_or_default();
    let answer = answer.split(" (version ").next().unwrap_or_default();
    let answer = answer.replace("e.displayText() = ", "").replace('\n', " ");
    visible::capped(answer.trim(), MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(answer: &str) -> Refusal {
        let meaning = Meaning::of(code_of(answer).unwrap(), answer);
        Refusal::Exception { meaning, text: readable(answer) }
    }

    /// Servers of 18.16 and of today really gave these answers.
    #[test]
    fn answers_have_their_meanings() {
        for (answer, meaning) in [
            (
                "Code: 60, e.displayText() = DB::Exception: Table salt.salt_events doesn't exist., e.what() = DB::Exception",
                Meaning::Schema,
            ),
            (
                "Code: 60. DB::Exception: Table salt.salt_events does not exist. (UNKNOWN_TABLE) (version 24.8.1.1)",
                Meaning::Schema,
            ),
            (
                "Code: 81, e.displayText() = DB::Exception: Database salt doesn't exist",
                Meaning::Schema,
            ),
            (
                "Code: 16, e.displayText() = DB::Exception: No such column z in table t",
                Meaning::Schema,
            ),
            (
                "Code: 27, e.displayText() = DB::Exception: Cannot parse input: expected \" before: x\"",
                Meaning::Rows,
            ),
            (
                "Code: 117. DB::Exception: Unknown field found while parsing JSONEachRow",
                Meaning::Rows,
            ),
            (
                "Code: 117. DB::Exception: Type of 'a' must be String, not UInt8. (INCORRECT_DATA)",
                Meaning::Schema,
            ),
            (
                "Code: 252. DB::Exception: Too many partitions for single INSERT block (more than 100)",
                Meaning::Rows,
            ),
            (
                "Code: 115, e.displayText() = DB::Exception: Unknown setting insert_deduplication_token",
                Meaning::Setting,
            ),
            ("Code: 192, e.displayText() = DB::Exception: Unknown user zz", Meaning::Login),
            ("Code: 516. DB::Exception: saltern: Authentication failed", Meaning::Login),
            ("Code: 4711. DB::Exception: of a release to come", Meaning::Later("")),
        ] {
            assert_eq!(of(answer).meaning(), meaning, "{answer}");
        }
        for (code, word) in
            [(242, "read-only"), (164, "read-only"), (252, "linger"), (497, "GRANT")]
        {
            let refusal = of(&format!("Code: {code}. DB::Exception: no"));
            assert!(matches!(refusal.meaning(), Meaning::Later(_)), "{code}");
            assert!(refusal.to_string().contains(word), "{refusal}");
        }
    }

    #[test]
    fn a_batch_is_judged_by_the_first_in_rank() {
        let of_code = |code: u32| of(&format!("Code: {code}. DB::Exception: no")).meaning();
        let ranked = [516, 115, 60, 27, 241, 4711].map(|code| of_code(code).rank());
        assert!(ranked.is_sorted_by(|before, after| before < after), "{ranked:?}");
    }

    #[test]
    fn a_refusal_is_short_and_readable() {
        let text = readable(
            "Code: 81, e.displayText() = DB::Exception: Database nope doesn't exist, e.what() = DB::Exception",
        );
        assert_eq!(text, "Code: 81, DB::Exception: Database nope doesn't exist");
        assert_eq!(readable(&"ä".repeat(9999)).chars().count(), 151);
    }

    #[test]
    fn only_the_end_of_an_answer_is_an_exception() {
        let text = "Code: 241. DB::Exception: Memory (MEMORY_LIMIT_EXCEEDED) (version 26.9 (official build))";
        let old = format!("rows\n{text}\n");
        assert_eq!(code_of(exception(&old).unwrap()), Some(241));
        let new = format!("rows\r\n__exception__\r\nabc\r\n{text}\n90 abc\r\n__exception__\r\n");
        assert_eq!(code_of(exception(&new).unwrap()), Some(241));
        for rows in ["", "26.9.1\n", &format!("{text}\nmore\n"), "))\n", "Code: 1 ))\n"] {
            assert_eq!(exception(rows), None, "{rows}");
        }
    }
}
