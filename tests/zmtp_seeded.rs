//! What the ZMTP fuzz targets do, on stable Rust and from seeds: greetings, handshakes and streams
//! of frames that are random or mutated never panic, are read alike however they are cut, and ask
//! nobody to hold more than the limits. What is built by the rules is read as what it is.
//!
//! `CORELANE_INPUTS_TIMES=800 cargo test --release --test zmtp_seeded` reads a hundred million.

#[path = "zmtp_seeded/checks.rs"]
mod checks;

use checks::{Event, LIMITS, METADATA_BYTES_MAX, Payload, check_frames, check_handshake};
use corelane::wire::zmtp::{GREETING_BYTES, Handshake, Role, write_error, write_ping, write_pong};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng, seq::IndexedRandom};

const ROLES: [Role; 2] = [Role::Listener, Role::Dialer];

/// So many inputs, or `CORELANE_INPUTS_TIMES` as many.
fn inputs(count: u64) -> u64 {
    let times = std::env::var("CORELANE_INPUTS_TIMES");
    count * times.map_or(1, |times| times.parse().expect("a number"))
}

/// Flips, overwrites, cuts, repeats or extends a little.
fn mutate(random: &mut SmallRng, bytes: &mut Vec<u8>) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.random_range(0..8)),
            2 => bytes.extend_from_within(at..),
            3 => drop(bytes.drain(at..(at + random.random_range(0..9)).min(bytes.len()))),
            _ if at == bytes.len() => bytes.push(random.random()),
            4 => bytes[at] ^= 1 << random.random_range(0..8),
            _ => bytes[at] = *[0, 1, 2, 3, 4, 6, 0x7f, 0x80, 0xff].choose(random).unwrap(),
        }
    }
}

fn random_bytes(random: &mut SmallRng, bytes_max: usize) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(0..=bytes_max)];
    random.fill_bytes(&mut bytes);
    bytes
}

fn seed(random: &mut SmallRng) -> u64 {
    match random.random_range(0..4) {
        0 => 0,
        _ => random.random(),
    }
}

/// Our own greeting and, if it is accepted, our READY.
fn beginning(role: Role) -> Vec<u8> {
    let mut handshake = Handshake::new(role, METADATA_BYTES_MAX);
    let mut out = Vec::new();
    handshake.open(&mut out);
    let greeting = out.clone();
    handshake.advance(&greeting, &mut out).unwrap();
    out
}

fn peer_of(role: Role) -> Role {
    match role {
        Role::Listener => Role::Dialer,
        Role::Dialer => Role::Listener,
    }
}

#[test]
fn no_greeting_panics_or_depends_on_how_it_arrives() {
    let mut random = SmallRng::seed_from_u64(1);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..inputs(40_000) {
        let role = *ROLES.choose(&mut random).unwrap();
        let mut stream = match random.random_range(0..4) {
            0 => random_bytes(&mut random, 100),
            _ => beginning(peer_of(role))[..GREETING_BYTES].to_vec(),
        };
        // What may be anything, and then perhaps what may not.
        if stream.len() >= GREETING_BYTES {
            random.fill_bytes(&mut stream[1..9]);
            random.fill_bytes(&mut stream[32..64]);
        }
        if random.random() {
            mutate(&mut random, &mut stream);
        }
        match check_handshake(role, &stream, seed(&mut random)) {
            None => accepted += 1,
            Some(Err(_)) => refused += 1,
            Some(Ok(done)) => panic!("{done:?}"),
        }
    }
    assert!(
        accepted > 10_000 && refused > 10_000,
        "{accepted} and {refused}"
    );
}

#[test]
fn no_handshake_panics_or_depends_on_how_it_arrives() {
    let mut random = SmallRng::seed_from_u64(2);
    let (mut accepted, mut refused, mut waiting) = (0, 0, 0);
    for _ in 0..inputs(40_000) {
        let role = *ROLES.choose(&mut random).unwrap();
        let mut stream = beginning(peer_of(role));
        let mut ready = stream.split_off(GREETING_BYTES);
        add_properties(&mut random, &mut ready);
        match random.random_range(0..8) {
            0 => ready = random_bytes(&mut random, 60),
            1 => write_error("go away", {
                ready.clear();
                &mut ready
            }),
            2..5 => mutate(&mut random, &mut ready),
            _ => {}
        }
        stream.extend(ready);
        // What follows is none of the handshake's.
        stream.extend(random_bytes(&mut random, 20));
        match check_handshake(role, &stream, seed(&mut random)) {
            Some(Ok(_)) => accepted += 1,
            Some(Err(_)) => refused += 1,
            None => waiting += 1,
        }
    }
    assert!(
        accepted > 5_000 && refused > 5_000 && waiting > 500,
        "{accepted}, {refused} and {waiting}"
    );
}

/// Properties that nobody knows, as far as a short frame has room.
fn add_properties(random: &mut SmallRng, ready: &mut Vec<u8>) {
    for _ in 0..random.random_range(0..4) {
        let value = random_bytes(random, 30);
        ready.extend_from_slice(b"\x03X-y");
        ready.extend_from_slice(&(value.len() as u32).to_be_bytes());
        ready.extend_from_slice(&value);
    }
    ready[1] = (ready.len() - 2) as u8;
}

/// A frame of either form.
fn frame(random: &mut SmallRng, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = match u8::try_from(body.len()) {
        Ok(bytes) if random.random_range(0..4) > 0 => vec![flags, bytes],
        _ => [&[flags | 2], &(body.len() as u64).to_be_bytes()[..]].concat(),
    };
    frame.extend_from_slice(body);
    frame
}

/// Adds a command that any peer may send anywhere, and what is to be heard of it.
fn add_command(random: &mut SmallRng, stream: &mut Vec<u8>, expected: &mut Vec<Event>) {
    let mut command = Vec::new();
    let context = random_bytes(random, 16);
    match random.random() {
        true => write_ping(random.random(), &context, &mut command),
        false => write_pong(&context, &mut command),
    }
    stream.extend_from_slice(&command);
    expected.push(Event::Command(command[2..].to_vec()));
}

/// Adds a message of two frames, or one that is dropped.
fn add_message(random: &mut SmallRng, stream: &mut Vec<u8>, expected: &mut Vec<Event>) {
    let frames = match random.random_range(0..4) {
        0 => random.random_range(1..=LIMITS.frames_max),
        _ => 2,
    };
    let mut bodies = Vec::new();
    for index in 0..frames {
        let bytes_max = match random.random_range(0..8) {
            _ if index == 0 => LIMITS.header_bytes_max,
            0 => LIMITS.skip_bytes_max as usize,
            1 => LIMITS.payload_bytes_max,
            _ => 40,
        };
        let body = random_bytes(random, bytes_max);
        stream.extend(frame(random, u8::from(index + 1 < frames), &body));
        if index + 1 < frames && random.random_range(0..6) == 0 {
            add_command(random, stream, expected);
        }
        bodies.push(body);
    }
    expected.push(match <[Vec<u8>; 2]>::try_from(bodies) {
        Ok([header, payload]) if payload.len() <= LIMITS.payload_bytes_max => {
            Event::Message(header, Payload::Kept(payload))
        }
        Ok([header, payload]) => Event::Message(header, Payload::TooLarge(payload.len() as u64)),
        Err(_) => Event::Malformed(frames),
    });
}

fn random_stream(random: &mut SmallRng) -> (Vec<u8>, Vec<Event>) {
    let (mut stream, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..random.random_range(1..8) {
        match random.random_range(0..5) {
            0 => add_command(random, &mut stream, &mut expected),
            _ => add_message(random, &mut stream, &mut expected),
        }
    }
    (stream, expected)
}

#[test]
fn streams_are_read_as_they_were_built() {
    let mut random = SmallRng::seed_from_u64(3);
    for _ in 0..inputs(15_000) {
        let (stream, expected) = random_stream(&mut random);
        assert_eq!(check_frames(&stream, seed(&mut random)), expected);
    }
}

#[test]
fn no_stream_panics_or_depends_on_how_it_arrives() {
    let mut random = SmallRng::seed_from_u64(4);
    let (mut passed, mut ended) = (0, 0);
    for _ in 0..inputs(30_000) {
        let mut stream = match random.random_range(0..4) {
            0 => {
                // Small numbers are flags and lengths that make sense.
                let mut stream = random_bytes(&mut random, 300);
                stream.iter_mut().for_each(|byte| *byte >>= 5);
                stream
            }
            _ => random_stream(&mut random).0,
        };
        mutate(&mut random, &mut stream);
        match check_frames(&stream, seed(&mut random)).last() {
            Some(Event::Error(_)) => ended += 1,
            _ => passed += 1,
        }
    }
    assert!(passed > 5_000 && ended > 5_000, "{passed} and {ended}");
}
