//! The mode of a socket's file as an operator writes it: octal digits, as chmod(1) takes them.

use schemars::JsonSchema;
use serde::Deserialize;

/// Permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "Digits")]
#[schemars(with = "Digits")]
pub(super) struct FileMode(pub(super) u32);

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Digits {
    Number(u32),
    Text(String),
}

impl TryFrom<Digits> for FileMode {
    type Error = String;

    fn try_from(written: Digits) -> Result<Self, String> {
        let digits = match written {
            Digits::Number(number) => number.to_string(),
            Digits::Text(text) => text,
        };
        let mode = u32::from_str_radix(digits.trim_start_matches("0o"), 8);
        match mode {
            Ok(mode) if mode <= 0o777 => Ok(FileMode(mode)),
            _ => Err(format!("`{digits}` is no mode of a file: write octal digits such as \"0660\"")),
        }
    }
}
