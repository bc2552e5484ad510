//! zlib (RFC 1950) and DEFLATE (RFC 1951), decoding only, to a bound that the caller sets.
//!
//! hdrhistogram's own decoder allocates whatever length the compressed header claims, up to 4 GiB,
//! before it reads a byte of it. A dump is a file that somebody handed over, so it is decompressed
//! here, to a bound, and checked before hdrhistogram sees it.

/// The most bits that a code has.
const CODE_BITS_MAX: usize = 15;
const LITERALS_MAX: usize = 286;
const DISTANCES_MAX: usize = 30;

/// Base and extra bits of the lengths 257 to 285, and of the distances.
#[rustfmt::skip]
const LENGTHS: [(u16, u8); 29] = [
    (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 0), (10, 0), (11, 1), (13, 1), (15, 1),
    (17, 1), (19, 2), (23, 2), (27, 2), (31, 2), (35, 3), (43, 3), (51, 3), (59, 3), (67, 4),
    (83, 4), (99, 4), (115, 4), (131, 5), (163, 5), (195, 5), (227, 5), (258, 0),
];
#[rustfmt::skip]
const DISTANCES: [(u16, u8); DISTANCES_MAX] = [
    (1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (7, 1), (9, 2), (13, 2), (17, 3), (25, 3), (33, 4),
    (49, 4), (65, 5), (97, 5), (129, 6), (193, 6), (257, 7), (385, 7), (513, 8), (769, 8),
    (1025, 9), (1537, 9), (2049, 10), (3073, 10), (4097, 11), (6145, 11), (8193, 12), (12289, 12),
    (16385, 13), (24577, 13),
];

/// In which order the code lengths of the code lengths come.
const CODE_LENGTH_ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

/// Why a stream cannot be decompressed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum InflateError {
    /// It is no zlib stream, or a damaged one.
    Damaged,
    /// It ends early.
    Truncated,
    /// It would decompress to more than the bound.
    TooLarge,
}

/// Decompresses one zlib stream, its checksum included. Allocates as it goes, `plain_bytes_max` at
/// the most (rounded up to a power of two). Bytes after the stream are ignored.
pub(super) fn zlib(input: &[u8], plain_bytes_max: usize) -> Result<Vec<u8>, InflateError> {
    let [method, flags, deflated @ ..] = input else {
        return Err(InflateError::Truncated);
    };
    let dictionary = flags & 0x20 != 0;
    let check = u16::from_be_bytes([*method, *flags]).is_multiple_of(31);
    if method & 0x0f != 8 || method >> 4 > 7 || dictionary || !check {
        return Err(InflateError::Damaged);
    }
    let mut bits = Bits {
        rest: deflated,
        held: 0,
        held_bits: 0,
    };
    let mut plain = Plain {
        bytes: Vec::new(),
        bytes_max: plain_bytes_max,
    };
    inflate(&mut bits, &mut plain)?;
    let checksum = bits.rest.first_chunk().ok_or(InflateError::Truncated)?;
    if u32::from_be_bytes(*checksum) != adler32(&plain.bytes) {
        return Err(InflateError::Damaged);
    }
    Ok(plain.bytes)
}

fn inflate(bits: &mut Bits<'_>, plain: &mut Plain) -> Result<(), InflateError> {
    loop {
        let last = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => stored(bits, plain)?,
            1 => {
                let (literals, distances) = fixed_codes()?;
                compressed(bits, plain, &literals, &distances)?;
            }
            2 => {
                let (literals, distances) = dynamic_codes(bits)?;
                compressed(bits, plain, &literals, &distances)?;
            }
            _ => return Err(InflateError::Damaged),
        }
        if last {
            return Ok(());
        }
    }
}

fn stored(bits: &mut Bits<'_>, plain: &mut Plain) -> Result<(), InflateError> {
    bits.align();
    let [a, b, c, d] = *bits.rest.first_chunk().ok_or(InflateError::Truncated)?;
    let length = u16::from_le_bytes([a, b]);
    if length != !u16::from_le_bytes([c, d]) {
        return Err(InflateError::Damaged);
    }
    let (bytes, rest) = bits.rest[4..]
        .split_at_checked(length.into())
        .ok_or(InflateError::Truncated)?;
    bits.rest = rest;
    plain.reserve(bytes.len())?;
    plain.bytes.extend_from_slice(bytes);
    Ok(())
}

fn compressed(
    bits: &mut Bits<'_>,
    plain: &mut Plain,
    literals: &Code,
    distances: &Code,
) -> Result<(), InflateError> {
    loop {
        match literals.decode(bits)? {
            literal @ 0..=255 => {
                plain.reserve(1)?;
                plain.bytes.push(literal as u8);
            }
            256 => return Ok(()),
            symbol => {
                let length = extended(&LENGTHS, symbol - 257, bits)?;
                let distance = extended(&DISTANCES, distances.decode(bits)?, bits)?;
                plain.repeat(length, distance)?;
            }
        }
    }
}

fn extended(table: &[(u16, u8)], symbol: u16, bits: &mut Bits<'_>) -> Result<usize, InflateError> {
    let (base, extra_bits) = *table
        .get(usize::from(symbol))
        .ok_or(InflateError::Damaged)?;
    Ok(usize::from(base) + bits.take(extra_bits)? as usize)
}

fn fixed_codes() -> Result<(Code, Code), InflateError> {
    let mut lengths = [8; 288];
    lengths[144..256].fill(9);
    lengths[256..280].fill(7);
    Ok((Code::new(&lengths)?, Code::new(&[5; DISTANCES_MAX])?))
}

fn dynamic_codes(bits: &mut Bits<'_>) -> Result<(Code, Code), InflateError> {
    let literals = bits.take(5)? as usize + 257;
    let distances = bits.take(5)? as usize + 1;
    let code_lengths = bits.take(4)? as usize + 4;
    if literals > LITERALS_MAX || distances > DISTANCES_MAX {
        return Err(InflateError::Damaged);
    }
    let mut lengths = [0; 19];
    for place in &CODE_LENGTH_ORDER[..code_lengths] {
        lengths[*place] = bits.take(3)? as u8;
    }
    let code_of_lengths = Code::new(&lengths)?;

    let mut lengths = [0_u8; LITERALS_MAX + DISTANCES_MAX];
    let lengths = &mut lengths[..literals + distances];
    let mut at = 0;
    while at < lengths.len() {
        let symbol = code_of_lengths.decode(bits)?;
        let before = at.checked_sub(1).map(|before| lengths[before]);
        let (length, repeats) = match symbol {
            0..=15 => (symbol as u8, 1),
            16 => (before.ok_or(InflateError::Damaged)?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            _ => (0, 11 + bits.take(7)?),
        };
        let end = at + repeats as usize;
        lengths
            .get_mut(at..end)
            .ok_or(InflateError::Damaged)?
            .fill(length);
        at = end;
    }
    Ok((
        Code::new(&lengths[..literals])?,
        Code::new(&lengths[literals..])?,
    ))
}

/// A canonical Huffman code: how many codes there are of each length, and the symbols in code order.
struct Code {
    counts: [u16; CODE_BITS_MAX + 1],
    symbols: [u16; 288],
}

impl Code {
    /// `lengths` are those of the symbols' codes, at most 288 of at most 15 bits; 0 means not used.
    fn new(lengths: &[u8]) -> Result<Code, InflateError> {
        let mut code = Code {
            counts: [0; CODE_BITS_MAX + 1],
            symbols: [0; 288],
        };
        for length in lengths {
            code.counts[usize::from(*length)] += 1;
        }
        code.counts[0] = 0;
        let mut free = 1_i32;
        let mut places = [0_u16; CODE_BITS_MAX + 2];
        for bits in 1..=CODE_BITS_MAX {
            // Oversubscribed: two symbols would share a code. Incomplete codes are legal.
            free = 2 * free - i32::from(code.counts[bits]);
            if free < 0 {
                return Err(InflateError::Damaged);
            }
            places[bits + 1] = places[bits] + code.counts[bits];
        }
        for (symbol, length) in (0..).zip(lengths).filter(|(_, length)| **length != 0) {
            let place = &mut places[usize::from(*length)];
            code.symbols[usize::from(*place)] = symbol;
            *place += 1;
        }
        Ok(code)
    }

    fn decode(&self, bits: &mut Bits<'_>) -> Result<u16, InflateError> {
        // `offset` is the code so far, counted from the first code of its length; `index` is that
        // first code's place among the symbols.
        let (mut offset, mut index) = (0_usize, 0_usize);
        for count in &self.counts[1..] {
            let count = usize::from(*count);
            offset = offset << 1 | bits.take(1)? as usize;
            if offset < count {
                return Ok(self.symbols[index + offset]);
            }
            offset -= count;
            index += count;
        }
        Err(InflateError::Damaged)
    }
}

/// The stream as bits, least significant first.
struct Bits<'a> {
    rest: &'a [u8],
    held: u32,
    held_bits: u8,
}

impl Bits<'_> {
    /// The next `count` bits, 13 at the most.
    #[inline]
    fn take(&mut self, count: u8) -> Result<u32, InflateError> {
        while self.held_bits < count {
            let (byte, rest) = self.rest.split_first().ok_or(InflateError::Truncated)?;
            self.held |= u32::from(*byte) << self.held_bits;
            self.held_bits += 8;
            self.rest = rest;
        }
        let bits = self.held & ((1 << count) - 1);
        self.held >>= count;
        self.held_bits -= count;
        Ok(bits)
    }

    /// Drops what is left of the byte that was begun: never a whole one is held.
    fn align(&mut self) {
        (self.held, self.held_bits) = (0, 0);
    }
}

/// What was decompressed, and how much it may become.
struct Plain {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Plain {
    fn reserve(&mut self, count: usize) -> Result<(), InflateError> {
        let room = self.bytes_max - self.bytes.len();
        if count > room {
            Err(InflateError::TooLarge)
        } else {
            Ok(())
        }
    }

    fn repeat(&mut self, length: usize, distance: usize) -> Result<(), InflateError> {
        let from = self
            .bytes
            .len()
            .checked_sub(distance)
            .ok_or(InflateError::Damaged)?;
        self.reserve(length)?;
        // Byte by byte: a run may repeat what it has just written.
        for at in from..from + length {
            self.bytes.push(self.bytes[at]);
        }
        Ok(())
    }
}

fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65_521;
    let (mut a, mut b) = (1, 0);
    // The most bytes after which neither sum overflows (RFC 1950's own implementation).
    for chunk in bytes.chunks(5_552) {
        for byte in chunk {
            a += u32::from(*byte);
            b += a;
        }
        (a, b) = (a % MODULUS, b % MODULUS);
    }
    b << 16 | a
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::{Serializer, V2DeflateSerializer, V2Serializer};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::empty_histogram;
    use super::*;

    /// "abc" by zlib, with fixed codes and stored.
    const FIXED: [u8; 11] = [
        0x78, 0x9c, 0x4b, 0x4c, 0x4a, 0x06, 0x00, 0x02, 0x4d, 0x01, 0x27,
    ];
    const STORED: [u8; 14] = [
        0x78, 0x01, 0x01, 3, 0, 0xfc, 0xff, b'a', b'b', b'c', 0x02, 0x4d, 0x01, 0x27,
    ];

    #[test]
    fn fixed_and_stored_blocks_decode() {
        assert_eq!(zlib(&FIXED, 3).as_deref(), Ok(&b"abc"[..]));
        assert_eq!(zlib(&STORED, 3).as_deref(), Ok(&b"abc"[..]));
    }

    #[test]
    fn the_bound_the_checksum_and_every_truncation_hold() {
        for stream in [&FIXED[..], &STORED[..]] {
            assert_eq!(zlib(stream, 2), Err(InflateError::TooLarge));
            for length in 0..stream.len() {
                assert_eq!(
                    zlib(&stream[..length], 3),
                    Err(InflateError::Truncated),
                    "{length}"
                );
            }
            let mut damaged = stream.to_vec();
            *damaged.last_mut().unwrap() ^= 1;
            assert_eq!(zlib(&damaged, 3), Err(InflateError::Damaged));
        }
    }

    #[test]
    fn what_the_crate_compresses_decodes_to_what_it_serialized() {
        let mut rng = SmallRng::seed_from_u64(0x5eed_0002);
        for round in 0..40 {
            let mut histogram = empty_histogram();
            for _ in 0..round * round * 20 {
                histogram
                    .record(1_u64 << rng.random_range(0..36) | rng.random_range(0..999))
                    .unwrap();
            }
            let (mut plain, mut compressed) = (Vec::new(), Vec::new());
            V2Serializer::new()
                .serialize(&*histogram, &mut plain)
                .unwrap();
            V2DeflateSerializer::new()
                .serialize(&*histogram, &mut compressed)
                .unwrap();
            assert_eq!(
                zlib(&compressed[8..], plain.len()),
                Ok(plain),
                "round {round}"
            );
        }
    }

    #[test]
    fn a_damaged_stream_is_an_error_or_within_the_bound() {
        let seed = 0x5eed_0003;
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut histogram = empty_histogram();
        (0..5_000).for_each(|_| histogram.record(rng.random_range(1..900_000)).unwrap());
        let mut intact = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&*histogram, &mut intact)
            .unwrap();
        let mut refused = 0;
        for _ in 0..2_000 {
            let mut damaged = intact[8..].to_vec();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..damaged.len());
                damaged[at] = rng.random();
            }
            match zlib(&damaged, 100_000) {
                Ok(plain) => assert!(plain.len() <= 100_000, "seed {seed:#x}"),
                Err(_) => refused += 1,
            }
        }
        assert!(
            refused > 1_900,
            "the checksum lets {} of 2,000 pass, seed {seed:#x}",
            2_000 - refused
        );
    }
}
