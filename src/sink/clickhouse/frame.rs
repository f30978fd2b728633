//! ClickHouse's own framing of compressed bodies (`decompress=1`): a checksum, the method, two
//! lengths, and a block of LZ4.

use cityhash_rs::cityhash_102_128;
use lz4_flex::block;

/// The checksum of what is behind it.
const CHECKSUM: usize = 16;

/// The method, and the lengths with and without compression. The first counts this head as well.
const HEAD: usize = 9;

/// LZ4.
const METHOD: u8 = 0x82;

/// The longest block. Servers take up to 1 GiB.
const LONGEST: usize = 16 << 20;

/// The bytes as one frame or more.
pub(super) fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for bytes in bytes.chunks(LONGEST) {
        let block = block::compress(bytes);
        let head = out.len() + CHECKSUM;
        out.reserve(CHECKSUM + HEAD + block.len());
        out.extend_from_slice(&[0; CHECKSUM]);
        out.push(METHOD);
        // Neither is near 4 GiB.
        for length in [HEAD + block.len(), bytes.len()] {
            out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        }
        out.extend_from_slice(&block);
        let sum = cityhash_102_128(out.get(head..).unwrap_or_default()).rotate_right(64);
        if let Some(place) = out.get_mut(head - CHECKSUM..head) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_hold_what_went_into_them() {
        for bytes in [b"a".repeat(100_000), (0..=255).collect(), b"a".repeat(LONGEST + 1)] {
            let frames = lz4(&bytes);
            let (mut rest, mut back) = (frames.as_slice(), Vec::new());
            while !rest.is_empty() {
                let (sum, behind) = rest.split_at(CHECKSUM);
                let number =
                    |at: usize| u32::from_le_bytes(behind[at..at + 4].try_into().unwrap()) as usize;
                let (with, without) = (number(1), number(5));
                assert_eq!(behind[0], METHOD);
                let expected = cityhash_102_128(&behind[..with]).rotate_right(64);
                assert_eq!(sum, expected.to_le_bytes());
                back.extend(block::decompress(&behind[HEAD..with], without).unwrap());
                rest = &behind[with..];
            }
            assert!(back == bytes);
        }
    }
}
