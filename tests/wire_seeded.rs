//! What the fuzz targets do, on stable Rust and from seeds: headers and hellos that are random,
//! mutated, cut short or extended never panic the decoder, and what it accepts it writes back.

use corelane::wire::{
    Affinity, Codec, Flags, HEADER_BYTES, HandlerEntry, HandlerKey, Header, Hello, Kind, Reason,
};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use uuid::Uuid;

const KINDS: [Kind; 10] = [
    Kind::OneWay,
    Kind::Confirm,
    Kind::Request,
    Kind::Ack,
    Kind::Response,
    Kind::Nack,
    Kind::Hello,
    Kind::Welcome,
    Kind::Goodbye,
    Kind::Cancel,
];

fn random_header(random: &mut SmallRng) -> Header {
    Header {
        kind: *KINDS.choose(random).unwrap(),
        codec: Codec::from_u8(random.random()),
        flags: Flags(random.random()),
        reason: Reason::from_u16(random.random_range(0..20)),
        correlation: random.random(),
        handler: HandlerKey::from_u64(random.random()),
        route_key: random.random(),
        deadline_us: random.random(),
        plain_bytes: random.random(),
    }
}

/// Flips, overwrites, cuts, repeats or extends a little.
fn mutate(random: &mut SmallRng, bytes: &mut Vec<u8>) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.random()),
            2 => bytes.extend_from_within(at..),
            3 => drop(bytes.drain(at..(at + random.random_range(0..9)).min(bytes.len()))),
            _ if at == bytes.len() => bytes.push(random.random()),
            4 => bytes[at] ^= 1 << random.random_range(0..8),
            _ => {
                bytes[at] = *[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'[']
                    .choose(random)
                    .unwrap()
            }
        }
    }
}

/// As `fuzz/fuzz_targets/header.rs`. Says whether the frame was accepted.
fn check_header(frame: &[u8]) -> bool {
    match Header::decode(frame) {
        Ok(header) => {
            assert_eq!(header.encode(), frame[..HEADER_BYTES], "{header:?}");
            true
        }
        Err(error) => {
            let field = frame
                .get(8..16)
                .map(|it| u64::from_le_bytes(it.try_into().unwrap()));
            assert!(
                error.correlation.is_none() || error.correlation == field,
                "{error:?}"
            );
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// As `fuzz/fuzz_targets/control.rs`.
fn check_hello(payload: &[u8]) -> bool {
    let Ok(hello) = Hello::decode(&mut payload.to_vec()) else {
        return false;
    };
    assert_eq!(Hello::decode(&mut hello.encode()), Ok(hello));
    true
}

#[test]
fn decode_undoes_encode_over_random_headers() {
    let mut random = SmallRng::seed_from_u64(1);
    for _ in 0..100_000 {
        let header = random_header(&mut random);
        let mut frame = header.encode().to_vec();
        assert_eq!(Header::decode(&frame), Ok(header));
        // A later version's extension.
        frame.resize(HEADER_BYTES + random.random_range(0..64), 0xee);
        assert_eq!(Header::decode(&frame), Ok(header));
        assert!(Header::decode(&frame[..random.random_range(0..HEADER_BYTES)]).is_err());
    }
}

#[test]
fn no_header_panics_the_decoder() {
    let mut random = SmallRng::seed_from_u64(2);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..200_000 {
        let mut frame = vec![0; random.random_range(0..100)];
        random.fill_bytes(&mut frame);
        // Half of them get past the first checks.
        if random.random() && frame.len() >= 3 {
            frame[..3].copy_from_slice(b"CL\x02");
        }
        match check_header(&frame) {
            true => accepted += 1,
            false => refused += 1,
        }
        let mut frame = random_header(&mut random).encode().to_vec();
        mutate(&mut random, &mut frame);
        match check_header(&frame) {
            true => accepted += 1,
            false => refused += 1,
        }
    }
    assert!(
        accepted > 10_000 && refused > 10_000,
        "{accepted} and {refused}"
    );
}

fn random_text(random: &mut SmallRng) -> String {
    let length = random.random_range(0..12);
    let odd = ['"', '\\', '\n', '\u{0}', 'é', '\u{1f980}', '{', '[', ','];
    (0..length)
        .map(|_| match random.random_range(0..3) {
            0 => *odd.choose(random).unwrap(),
            _ => random.random_range('a'..='z'),
        })
        .collect()
}

fn random_hello(random: &mut SmallRng) -> Hello {
    let texts = |random: &mut SmallRng| -> Vec<String> {
        (0..random.random_range(0..4))
            .map(|_| random_text(random))
            .collect()
    };
    let handlers = texts(random);
    let handlers = handlers.into_iter().map(|name| {
        let affinity = ["local", "shard:3", "key", "shard:x", "elsewhere"].choose(random);
        HandlerEntry::new(&name, Affinity::from(affinity.unwrap().to_string()))
    });
    Hello {
        handlers: handlers.collect(),
        versions: vec![2, random.random()],
        codecs: texts(random),
        features: texts(random),
        host: random_text(random),
        endpoints: texts(random),
        shards: random.random_range(0..1 << 40),
        ..Hello::of_instance(Uuid::from_u128(random.random()))
    }
}

#[test]
fn hellos_survive_a_round_trip_and_no_mutation_panics() {
    let mut random = SmallRng::seed_from_u64(3);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..5_000 {
        let hello = random_hello(&mut random);
        let encoded = hello.encode();
        assert_eq!(Hello::decode(&mut encoded.clone()), Ok(hello));
        for _ in 0..4 {
            let mut payload = encoded.clone();
            mutate(&mut random, &mut payload);
            match check_hello(&payload) {
                true => accepted += 1,
                false => refused += 1,
            }
        }
        let mut payload = vec![0; random.random_range(0..60)];
        random.fill_bytes(&mut payload);
        check_hello(&payload);
    }
    assert!(
        accepted > 1_000 && refused > 1_000,
        "{accepted} and {refused}"
    );
}
