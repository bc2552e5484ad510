//! What holds for any bytes that a peer may send: the fuzz targets and the seeded tests share it.
//!
//! Nothing panics; the stream is read alike however it is cut; nobody is asked to hold more than
//! the limits allow.

use std::ops::Range;

use corelane::error::ZmtpError;
use corelane::wire::zmtp::{
    Command, GREETING_BYTES, Handshake, Introduction, Role, SplitLimits, Splitter, Unit,
};

/// The longest READY that the checks let a handshake read.
pub(crate) const METADATA_BYTES_MAX: usize = 200;
/// Small, so that short inputs pass each of them.
pub(crate) const LIMITS: SplitLimits = SplitLimits {
    payload_bytes_max: 300,
    header_bytes_max: 64,
    frames_max: 5,
    command_bytes_max: 40,
    skip_bytes_max: 1000,
};
const LONG_HEAD_BYTES: usize = 9;

/// What is expected of the beginning of a connection, in one piece and cut as `seed` says. Returns
/// what it came to: `None` if more bytes are needed.
pub(crate) fn check_handshake(
    role: Role,
    stream: &[u8],
    seed: u64,
) -> Option<Result<Introduction, ZmtpError>> {
    let whole = shake_hands(role, &[stream]);
    let cut = shake_hands(role, &pieces(stream, seed));
    assert_eq!(whole, cut, "cut by seed {seed}");
    if let Some(Ok(introduction)) = &whole.end {
        let expected = match role {
            Role::Listener => "DEALER",
            Role::Dialer => "ROUTER",
        };
        assert_eq!(introduction.socket_type, expected);
        assert!(introduction.identity.len() <= 255);
    }
    if let Some(Err(error)) = &whole.end {
        assert!(!error.to_string().is_empty());
    }
    whole.end
}

#[derive(Debug, PartialEq, Eq)]
struct Shaken {
    end: Option<Result<Introduction, ZmtpError>>,
    sent: Vec<u8>,
    /// Of the stream, if no error ended it.
    consumed: usize,
}

fn shake_hands(role: Role, pieces: &[&[u8]]) -> Shaken {
    let mut handshake = Handshake::new(role, METADATA_BYTES_MAX);
    let mut input = Vec::new();
    let mut shaken = Shaken {
        end: None,
        sent: Vec::new(),
        consumed: 0,
    };
    handshake.open(&mut shaken.sent);
    for piece in pieces {
        input.extend_from_slice(piece);
        match handshake.advance(&input, &mut shaken.sent) {
            Ok(progress) => {
                input.drain(..progress.consumed);
                shaken.consumed += progress.consumed;
                assert!(shaken.end.is_none() || progress.consumed == 0);
                shaken.end = shaken.end.or(progress.done.map(Ok));
            }
            Err(error) => {
                shaken.end = Some(Err(error));
                shaken.consumed = 0;
                break;
            }
        }
        let held_bytes_max = match shaken.consumed {
            0 => GREETING_BYTES,
            _ => LONG_HEAD_BYTES + METADATA_BYTES_MAX,
        };
        assert!(shaken.end.is_some() || input.len() < held_bytes_max);
    }
    shaken
}

/// A unit without the places where it stood; what is skipped leaves no trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Message(Vec<u8>, Payload),
    Command(Vec<u8>),
    Malformed(usize),
    Error(ZmtpError),
}

/// A payload over the limits has only a length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    Kept(Vec<u8>),
    TooLarge(u64),
}

/// What is expected of a stream of frames, in one piece and cut as `seed` says, and of a caller
/// that skips each payload it would have to wait for. Returns what it holds.
pub(crate) fn check_frames(stream: &[u8], seed: u64) -> Vec<Event> {
    let whole = split(&[stream], false);
    let pieces = pieces(stream, seed);
    assert_eq!(split(&pieces, false), whole, "cut by seed {seed}");
    let skipped = unkept(split(&pieces, true));
    let whole_unkept = unkept(whole.clone());
    // A last message that never comes to its end is skipped, and else is only waited for.
    let events_max = whole_unkept.len() + 1;
    assert!(
        skipped.starts_with(&whole_unkept) && skipped.len() <= events_max,
        "cut by seed {seed}: {skipped:?}, not {whole_unkept:?}"
    );
    whole
}

fn split(pieces: &[&[u8]], skips: bool) -> Vec<Event> {
    let mut splitter = Splitter::new(LIMITS);
    let mut input = Vec::new();
    let mut events = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let mut unit = splitter.next(&input);
            if let Ok(Unit::Need { bytes, header }) = &unit {
                assert!(*bytes > input.len() && *bytes <= LIMITS.need_bytes_max());
                if header.is_none() || !skips {
                    break;
                }
                unit = splitter.skip(&input);
                assert!(matches!(unit, Ok(Unit::TooLarge { .. })), "{unit:?}");
            }
            let bytes = |range: Range<usize>| input[range].to_vec();
            let (event, end) = match unit {
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    events.push(Event::Error(error));
                    return events;
                }
                Ok(Unit::Message {
                    header,
                    payload,
                    end,
                }) => {
                    assert!(payload.end == end && payload.len() <= LIMITS.payload_bytes_max);
                    let payload = Payload::Kept(bytes(payload));
                    (Some(Event::Message(checked(bytes(header)), payload)), end)
                }
                Ok(Unit::TooLarge {
                    header,
                    payload_bytes,
                    end,
                }) => {
                    assert!(payload_bytes <= LIMITS.skip_bytes_max);
                    let payload = Payload::TooLarge(payload_bytes);
                    (Some(Event::Message(checked(bytes(header)), payload)), end)
                }
                Ok(Unit::Command { body, end }) => {
                    let body = bytes(body);
                    assert!(body.len() <= LIMITS.command_bytes_max);
                    check_command(&body);
                    events.push(Event::Command(body));
                    // Within a message a command is told once, and consumes nothing.
                    input.drain(..end);
                    continue;
                }
                Ok(Unit::Malformed { frames, end }) => {
                    assert!(frames != 2 && frames <= LIMITS.frames_max);
                    (Some(Event::Malformed(frames)), end)
                }
                Ok(Unit::Skipped { end }) => (None, end),
                Ok(Unit::Need { .. }) => unreachable!("looked at above"),
            };
            assert!(end > 0 && end <= input.len());
            events.extend(event);
            input.drain(..end);
        }
        assert!(input.len() < LIMITS.need_bytes_max());
    }
    events
}

fn checked(header: Vec<u8>) -> Vec<u8> {
    assert!(header.len() <= LIMITS.header_bytes_max);
    header
}

/// Decoding never panics; what it reads is within its bounds.
fn check_command(body: &[u8]) {
    match Command::decode(body) {
        Ok(Command::Ready(properties)) => {
            assert!(properties.count() <= body.len());
        }
        Ok(Command::Error { reason }) => assert!(reason.len() <= 255),
        Ok(Command::Ping { context, .. } | Command::Pong { context }) => {
            assert!(context.len() <= 16);
        }
        Ok(Command::Other { name }) => assert!(!name.is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Whether a payload is kept depends, for a caller that skips, on how it arrives.
fn unkept(mut events: Vec<Event>) -> Vec<Event> {
    for event in &mut events {
        if let Event::Message(_, payload) = event
            && let Payload::Kept(bytes) = payload
        {
            *payload = Payload::TooLarge(bytes.len() as u64);
        }
    }
    events
}

/// Cuts a stream into pieces that the seed chooses: mostly short ones, of one byte for seed 0.
fn pieces(stream: &[u8], seed: u64) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let (mut rest, mut state) = (stream, seed);
    while !rest.is_empty() {
        // Knuth's MMIX constants; the high bits are the good ones.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bytes_max = [1, 3, 12, 90][(state >> 62) as usize];
        let bytes = match seed {
            0 => 1,
            _ => 1 + (state >> 33) as usize % bytes_max,
        };
        let (piece, after) = rest.split_at(bytes.min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}
