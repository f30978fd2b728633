//! Bytes in hexadecimal digits.

use std::fmt::Write;

/// Two digits for each byte, in small letters.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut digits, byte| {
        // Writing to a String does not fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

#[cfg(test)]
mod tests {
    use crate::codec::hex::*;

    #[test]
    fn each_byte_has_two_digits() {
        assert_eq!(hex(b""), "");
        assert_eq!(hex(b"\x00\x0f\xa5\xff"), "000fa5ff");
    }
}
