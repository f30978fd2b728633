//! ClickHouse's own framing of compressed bodies (`decompress=1`): a checksum, the method, two
//! lengths, and a block of LZ4.

use cityhash_rs::cityhash_102_128;
use lz4_flex::block;

/// The checksum of the bytes behind it.
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
        let head = out.len() + CHECKSUM;
        let body = head + HEAD;
        out.resize(body + block::get_maximum_output_size(bytes.len()), 0);
        // There is room for any result, so it does not fail.
        let room = out.get_mut(body..).unwrap_or_default();
        let length = block::compress_into(bytes, room).unwrap_or_default();
        out.truncate(body + length);
        // Neither length is near 4 GiB.
        let lengths = [HEAD + length, bytes.len()].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        write(&mut out, head, &[METHOD]);
        write(&mut out, head + 1, &lengths[0].to_le_bytes());
        write(&mut out, head + 5, &lengths[1].to_le_bytes());
        let sum = cityhash_102_128(out.get(head..).unwrap_or_default()).rotate_right(64);
        write(&mut out, head - CHECKSUM, &sum.to_le_bytes());
    }
    // It may wait for its turn, and not with room for what did not shrink.
    out.shrink_to_fit();
    out
}

fn write(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
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
