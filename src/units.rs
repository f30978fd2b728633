//! Sizes, durations and secrets as an operator writes them.

use std::borrow::Cow;
use std::fmt;
use std::hint::black_box;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The default of a switch that is on unless it is turned off.
pub(crate) fn yes() -> bool {
    true
}

/// A number of bytes: `4096`, `"8MiB"`, `"1.5 GB"`. `kB`, `MB`, `GB`, `TB` count in thousands;
/// `KiB`, `MiB`, `GiB`, `TiB` in 1024s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub(crate) u64);

impl ByteSize {
    /// So many mebibytes.
    pub const fn mib(mib: u64) -> Self {
        ByteSize(mib << 20)
    }

    /// The size as this machine counts memory.
    pub(crate) fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split_unit(text)?;
        let scale: u32 = match unit {
            "" | "B" => 0,
            "k" | "kB" | "KB" | "K" | "KiB" => 1,
            "M" | "MB" | "MiB" => 2,
            "G" | "GB" | "GiB" => 3,
            "T" | "TB" | "TiB" => 4,
            _ => return None,
        };
        let base: f64 = if unit.ends_with("iB") { 1024.0 } else { 1000.0 };
        let bytes = number * base.powi(i32::try_from(scale).ok()?);
        // Anything that fits is far below 2^63, so nothing is cut off.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        (bytes < 9e18).then_some(ByteSize(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        #[allow(clippy::cast_precision_loss)]
        let mut size = self.0 as f64;
        let mut unit = UNITS[0];
        for larger in &UNITS[1..] {
            if size < 1024.0 {
                break;
            }
            size /= 1024.0;
            unit = larger;
        }
        if size.fract() < 0.05 {
            write!(f, "{size:.0}{unit}")
        } else {
            write!(f, "{size:.1}{unit}")
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ByteSizeVisitor)
    }
}

struct ByteSizeVisitor;

impl de::Visitor<'_> for ByteSizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as 8MiB, 1GB or 4096")
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(bytes))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        u64::try_from(bytes)
            .map(ByteSize)
            .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
        ByteSize::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Bytes: 8MiB, 1GB, 4096",
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": r"^[0-9.]+ ?([kKMGT]i?)?B?$"},
            ],
        })
    }
}

/// A length of time: `"500ms"`, `"2s"`, `"5m"`, `"1h"`, `"7d"`, `"1h30m"`; a bare number is
/// seconds. At most 3650 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub(crate) Duration);

impl Span {
    /// The longest that is taken: little enough to be added to any clock.
    pub(crate) const LONGEST: Span = Span::seconds(3650 * 86_400);

    /// So long; `None` if it is negative, no number, or longer than [`Span::LONGEST`].
    fn new(seconds: f64) -> Option<Self> {
        let span = Duration::try_from_secs_f64(seconds).ok().map(Span);
        span.filter(|span| *span <= Span::LONGEST)
    }

    /// So many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Span(Duration::from_millis(millis))
    }

    /// So many seconds.
    pub(crate) const fn seconds(seconds: u64) -> Self {
        Span(Duration::from_secs(seconds))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim();
        let mut seconds = 0.0;
        while !rest.is_empty() {
            let end =
                rest.find(|c: char| c.is_ascii_alphabetic() || c == 'µ').unwrap_or(rest.len());
            let (number, behind) = rest.split_at(end);
            let end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
            let (unit, behind) = behind.split_at(end);
            let scale = match unit.trim() {
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" | "min" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                "w" => 604_800.0,
                _ => return None,
            };
            seconds += number.trim().parse::<f64>().ok()? * scale;
            rest = behind.trim_start();
        }
        if text.trim().is_empty() {
            return None;
        }
        Span::new(seconds)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SpanVisitor)
    }
}

struct SpanVisitor;

impl de::Visitor<'_> for SpanVisitor {
    type Value = Span;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a length of time such as 500ms, 2s, 5m or 7d, of at most 3650d")
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Span, E> {
        let span = Some(Span::seconds(seconds)).filter(|span| *span <= Span::LONGEST);
        span.ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(seconds), &self))
    }

    fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Span, E> {
        let invalid = |_| E::invalid_value(de::Unexpected::Signed(seconds), &self);
        u64::try_from(seconds).map_err(invalid).and_then(|seconds| self.visit_u64(seconds))
    }

    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Span, E> {
        Span::new(seconds).ok_or_else(|| E::invalid_value(de::Unexpected::Float(seconds), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
        Span::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A length of time: 500ms, 2s, 5m, 1h30m, 7d; a bare number is seconds; at most 3650d",
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": r"^([0-9.]+ ?(us|µs|ms|s|m|min|h|d|w) ?)+$"},
            ],
        })
    }
}

/// Reads a length of time that is longer than none.
pub(crate) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
    let span = Span::deserialize(deserializer)?;
    match span.0.is_zero() {
        true => Err(de::Error::custom("a time of 0 is not possible here")),
        false => Ok(span),
    }
}

/// The same where there may be none.
pub(crate) fn positive_or_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Span>, D::Error> {
    match Option::<Span>::deserialize(deserializer)? {
        Some(span) if span.0.is_zero() => Err(de::Error::custom(
            "a time of 0 is not possible here; leave the key out for no limit",
        )),
        span => Ok(span),
    }
}

/// Permissions of a file: `"0640"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub(crate) struct Mode(pub(crate) u32);

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(ModeVisitor)
    }
}

struct ModeVisitor;

impl de::Visitor<'_> for ModeVisitor {
    type Value = Mode;

    /// YAML reads `0640` as the number 640.
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("permissions as text, \"0640\", between quotes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Mode, E> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Mode(mode)),
            _ => Err(E::custom(format_args!(
                "`{text}` are no permissions; write them in octal, \"0640\""
            ))),
        }
    }
}

/// Compares in a time that depends on the lengths alone, so that answers do not tell how much of a
/// guess was right.
pub(crate) fn is_same_secret(sent: &[u8], kept: &[u8]) -> bool {
    let differences = sent.iter().zip(kept).fold(0, |sum, (a, b)| sum | black_box(a ^ b));
    sent.len() == kept.len() && black_box(differences) == 0
}

/// A password or token. It never shows: not in `Debug`, not in logs, not in JSON.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    /// A secret that was not configured but made or read.
    pub(crate) fn new(text: String) -> Self {
        Secret(text)
    }

    /// The secret itself, for the one place that sends or compares it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A secret; best given as ${file:PATH} or ${NAME}",
            "type": "string",
            "format": "password",
        })
    }
}

/// A number and the unit behind it.
fn split_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.trim().parse::<f64>().ok()?;
    (number >= 0.0).then_some((number, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("4096", 4096), ("8MiB", 8 << 20), ("1.5 GB", 1_500_000_000), ("2k", 2000), ("0", 0)]
        {
            assert_eq!(ByteSize::parse(text), Some(ByteSize(bytes)), "{text}");
        }
        for text in ["", "8 MiBs", "-1", "1e300GB", "MiB"] {
            assert_eq!(ByteSize::parse(text), None, "{text}");
        }
        assert_eq!(ByteSize::mib(64).to_string(), "64MiB");
        assert_eq!(ByteSize(1_600_000).to_string(), "1.5MiB");
    }

    #[test]
    fn spans() {
        for (text, millis) in [
            ("500ms", 500),
            ("2s", 2000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            ("0.5 s", 500),
            ("1h 30m", 5_400_000),
        ] {
            assert_eq!(Span::parse(text), Some(Span::millis(millis)), "{text}");
        }
        for text in ["", "5", "5 parsecs", "s", "-1s"] {
            assert_eq!(Span::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_span_that_no_clock_can_tell_is_refused() {
        let read = |text: &str| serde_saphyr::from_str::<Span>(text);
        for text in ["3650d", "315360000", "315360000.0", "87600h"] {
            assert_eq!(read(text).unwrap(), Span::LONGEST, "{text}");
        }
        for text in ["3651d", "315360001", "315360000.1", "600000000000s", "18446744073709551615"] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("of at most 3650d"), "{text}: {error}");
        }
        for text in [".inf", ".nan", "-1", "-1.5", "1e300", "100000000000000000000000w"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_does_not_show() {
        let secret: Secret = serde_json::from_str("\"hunter2\"").unwrap();
        assert_eq!(format!("{secret:?} {}", secret.expose()), "Secret hunter2");
    }
}
