//! A histogram out of a log line's base64: checked against bounds before anything is built from it.

use std::io::{ErrorKind, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::bufread::ZlibDecoder;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;

/// Of a decompressed histogram. One with our range has at most 258 KB, if every count in it takes
/// the most bytes.
const PLAIN_BYTES_MAX: u64 = 4 << 20;
/// 146 years of nanoseconds; behind it, hdrhistogram's own arithmetic nears the end of a `u64`.
const VALUE_MAX: u64 = 1 << 62;

const COOKIE_COMPRESSED: u32 = 0x1c84_9314;
const COOKIE_PLAIN: u32 = 0x1c84_9313;
/// Cookie, length, normalizing offset, digits (32 bits each), lowest, highest, ratio (64 bits
/// each).
const PLAIN_HEADER_BYTES: usize = 40;

const NO_BASE64: &str = "its last column is no base64";
const NO_HISTOGRAM: &str = "its last column is no V2 histogram, compressed or plain";
const TRUNCATED: &str = "its histogram is cut short";
const DAMAGED: &str = "its histogram is damaged";
const TOO_LARGE: &str = "its histogram decompresses to more than 4 MiB";
const UNSUPPORTED: &str =
    "its histogram has a range, a ratio or a shift that this reader does not support";

/// The histogram, or what is wrong with it, in words that continue "line 7: ".
///
/// Allocates the decompressed bytes (their buffer doubles up to twice [`PLAIN_BYTES_MAX`]) and the
/// histogram (at most 48 MiB, for 5 digits; 229 KB for one of ours).
pub(super) fn histogram(encoded: &str) -> Result<Histogram<u64>, &'static str> {
    let bytes = STANDARD.decode(encoded).map_err(|_| NO_BASE64)?;
    let Some((cookie, rest)) = word(&bytes) else {
        return Err(NO_HISTOGRAM);
    };
    let plain = match cookie {
        COOKIE_COMPRESSED => {
            let Some((length, stream)) = word(rest) else {
                return Err(TRUNCATED);
            };
            let stream = stream.get(..length as usize).ok_or(TRUNCATED)?;
            decompress(stream, PLAIN_BYTES_MAX)?
        }
        COOKIE_PLAIN => bytes,
        _ => return Err(NO_HISTOGRAM),
    };
    check_plain(&plain)?;
    Deserializer::new()
        .deserialize(&mut &plain[..])
        .map_err(|_| DAMAGED)
}

/// One zlib stream, its checksum included; bytes after it are ignored.
///
/// Not by hdrhistogram's own decoder: it allocates whatever length the plain header claims, up to
/// 4 GiB, before it has read a byte of the counts.
fn decompress(stream: &[u8], plain_bytes_max: u64) -> Result<Vec<u8>, &'static str> {
    let mut plain = Vec::new();
    // One byte beyond the bound tells too large from exactly as large, and a stream of exactly the
    // bound is still read to its end, where the checksum stands.
    let read = ZlibDecoder::new(stream)
        .take(plain_bytes_max + 1)
        .read_to_end(&mut plain);
    match read {
        Ok(bytes) if bytes as u64 > plain_bytes_max => Err(TOO_LARGE),
        Ok(_) => Ok(plain),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(TRUNCATED),
        Err(_) => Err(DAMAGED),
    }
}

/// hdrhistogram's deserializer allocates the length that the header claims, and negates each count
/// that says "so many zeros": both are looked at before it sees them.
fn check_plain(plain: &[u8]) -> Result<(), &'static str> {
    let (header, counts) = plain
        .split_at_checked(PLAIN_HEADER_BYTES)
        .ok_or(TRUNCATED)?;
    let word = |at: usize| {
        header[at..]
            .first_chunk()
            .map_or(0, |word| u32::from_be_bytes(*word))
    };
    let long = |at: usize| {
        header[at..]
            .first_chunk()
            .map_or(0, |long| u64::from_be_bytes(*long))
    };
    if word(0) != COOKIE_PLAIN {
        return Err(NO_HISTOGRAM);
    }
    if word(4) as usize != counts.len() {
        return Err(DAMAGED);
    }
    let (shift, digits, lowest, highest, ratio) = (word(8), word(12), long(16), long(24), long(32));
    let range = 1 <= lowest && lowest <= highest / 2 && highest <= VALUE_MAX;
    if shift != 0 || digits > 5 || !range || f64::from_bits(ratio) != 1.0 {
        return Err(UNSUPPORTED);
    }
    let mut rest = counts;
    while !rest.is_empty() {
        // The sign is in the lowest bit; only -2^63 has all others set, and no negation.
        if varint(&mut rest).ok_or(TRUNCATED)? == u64::MAX {
            return Err(DAMAGED);
        }
    }
    Ok(())
}

/// LEB128 in which a ninth byte has eight bits, as V2 has it.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for nth in 0..9 {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        let ends = nth == 8 || byte & 0x80 == 0;
        let bits = if nth == 8 { *byte } else { byte & 0x7f };
        value |= u64::from(bits) << (7 * nth);
        if ends {
            break;
        }
    }
    Some(value)
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes
        .split_first_chunk()
        .map(|(word, rest)| (u32::from_be_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use hdrhistogram::serialization::{Serializer, V2DeflateSerializer, V2Serializer};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::empty_histogram;
    use super::*;

    fn sample() -> Histogram<u64> {
        let mut histogram = empty_histogram();
        for value in [1, 2, 3, 70_000, 100_000_000_000] {
            histogram.record_n(value, value).unwrap();
        }
        *histogram
    }

    fn plain() -> Vec<u8> {
        let mut plain = Vec::new();
        V2Serializer::new()
            .serialize(&sample(), &mut plain)
            .unwrap();
        plain
    }

    /// Cookie, length, zlib stream: the layout of a log's last column.
    fn compressed() -> Vec<u8> {
        let mut compressed = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&sample(), &mut compressed)
            .unwrap();
        compressed
    }

    /// A column around this much of anything, compressed as well as zlib can.
    fn column_of(plain: &[u8]) -> String {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(plain).unwrap();
        let stream = encoder.finish().unwrap();
        let mut column = COOKIE_COMPRESSED.to_be_bytes().to_vec();
        column.extend((stream.len() as u32).to_be_bytes());
        column.extend(stream);
        STANDARD.encode(column)
    }

    #[test]
    fn a_sound_histogram_is_read_compressed_and_plain() {
        assert_eq!(histogram(&STANDARD.encode(compressed())), Ok(sample()));
        assert_eq!(histogram(&STANDARD.encode(plain())), Ok(sample()));
    }

    #[test]
    fn base64_that_is_not_canonical_is_refused() {
        let texts = [
            "Z", "Zg", "Zg=", "Z===", "====", "Zh==", "Zm9=", "Zg==Zg==", "Zm 9", "Zm9v\n", "Zé=",
        ];
        for text in texts {
            assert_eq!(histogram(text), Err(NO_BASE64), "{text:?}");
        }
    }

    #[test]
    fn a_bomb_is_refused_at_the_bound() {
        // 16 MiB of zeros in 22 KB of text: well within the longest line.
        let bomb = column_of(&vec![0; 16 << 20]);
        assert!(bomb.len() < 30_000, "{} bytes", bomb.len());
        assert_eq!(histogram(&bomb), Err(TOO_LARGE));
        // Up to the bound it is only no histogram; one byte more is too large.
        let bound = PLAIN_BYTES_MAX as usize;
        assert_eq!(histogram(&column_of(&vec![0; bound])), Err(NO_HISTOGRAM));
        assert_eq!(histogram(&column_of(&vec![0; bound + 1])), Err(TOO_LARGE));
    }

    #[test]
    fn the_bound_the_checksum_and_every_truncation_hold() {
        let stream = &compressed()[8..];
        let plain = plain();
        let bound = plain.len() as u64;
        assert_eq!(decompress(stream, bound), Ok(plain));
        assert_eq!(decompress(stream, bound - 1), Err(TOO_LARGE));
        for length in 0..stream.len() {
            let cut = decompress(&stream[..length], bound);
            assert_eq!(cut, Err(TRUNCATED), "{length} of {}", stream.len());
        }
        let mut damaged = stream.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(decompress(&damaged, bound), Err(DAMAGED));
    }

    #[test]
    fn a_damaged_column_is_an_error_and_never_another_histogram() {
        let seed = 0x5eed_0003;
        let mut rng = SmallRng::seed_from_u64(seed);
        let intact = compressed();
        let mut refused = 0;
        for _ in 0..2_000 {
            let mut damaged = intact.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..damaged.len());
                damaged[at] ^= rng.random_range(1..=u8::MAX);
            }
            match histogram(&STANDARD.encode(damaged)) {
                // A longer claimed length, say, or two hits that undo each other.
                Ok(read) => assert_eq!(read, sample(), "seed {seed:#x}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 1_900, "{refused} of 2,000, seed {seed:#x}");
    }

    #[test]
    fn a_length_that_lies_is_refused_before_it_is_allocated() {
        let mut lying = plain();
        lying[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(check_plain(&lying), Err(DAMAGED));
    }

    #[test]
    fn ranges_that_overflow_are_refused() {
        for (at, value) in [(16, 0), (16, u64::MAX), (24, u64::MAX), (24, 1), (32, 0)] {
            let mut foreign = plain();
            foreign[at..at + 8].copy_from_slice(&value.to_be_bytes());
            assert_eq!(check_plain(&foreign), Err(UNSUPPORTED), "{at}: {value}");
        }
    }

    #[test]
    fn a_zero_run_without_a_negation_is_refused() {
        let mut hostile = plain()[..PLAIN_HEADER_BYTES].to_vec();
        hostile.extend([0xff; 9]);
        hostile[4..8].copy_from_slice(&9_u32.to_be_bytes());
        assert_eq!(check_plain(&hostile), Err(DAMAGED));
        hostile[PLAIN_HEADER_BYTES] = 0xfe;
        assert_eq!(check_plain(&hostile), Ok(()));
        let decoded = Deserializer::new().deserialize::<u64, _>(&mut &hostile[..]);
        assert_eq!(
            decoded.map(|histogram| histogram.len()).ok(),
            Some(i64::MAX as u64)
        );
    }

    #[test]
    fn every_truncation_is_an_error() {
        let plain = plain();
        for length in 0..plain.len() {
            assert!(
                check_plain(&plain[..length]).is_err(),
                "{length} of {}",
                plain.len()
            );
        }
    }
}
