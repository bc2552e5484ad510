use super::super::{write_ping, write_pong};
use super::*;

const LIMITS: SplitLimits = SplitLimits {
    payload_bytes_max: 300,
    header_bytes_max: 64,
    frames_max: 5,
    command_bytes_max: 40,
    skip_bytes_max: 1000,
};

/// A unit without the places where it stood.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Message(Vec<u8>, Vec<u8>),
    Command(Vec<u8>),
    TooLarge(Vec<u8>, u64),
    Malformed(usize),
    Error(ZmtpError),
}

fn frame(more: bool, body: &[u8]) -> Vec<u8> {
    let mut frame = match u8::try_from(body.len()) {
        Ok(bytes) => vec![u8::from(more), bytes],
        Err(_) => long_head(2 | u8::from(more), body.len() as u64),
    };
    frame.extend_from_slice(body);
    frame
}

fn long_head(flags: u8, body_bytes: u64) -> Vec<u8> {
    [&[flags], &body_bytes.to_be_bytes()[..]].concat()
}

fn message(header: &[u8], payload: &[u8]) -> Vec<u8> {
    [frame(true, header), frame(false, payload)].concat()
}

fn ping(context: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_ping(300, context, &mut out);
    out
}

fn ping_event(context: &[u8]) -> Event {
    Event::Command(ping(context)[2..].to_vec())
}

fn message_event(header: &[u8], payload: &[u8]) -> Event {
    Event::Message(header.to_vec(), payload.to_vec())
}

/// What a connection hears of a stream that arrives in these pieces. Checks what a caller counts
/// on: every unit either consumes or needs, and no need is beyond the limits or there already.
fn split(pieces: &[&[u8]], skips: bool) -> Vec<Event> {
    let mut splitter = Splitter::new(LIMITS);
    let mut input = Vec::new();
    let mut events = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let unit = match splitter.next(&input) {
                Ok(Unit::Need { bytes, header }) => {
                    assert!(bytes > input.len() && bytes <= LIMITS.need_bytes_max());
                    match header {
                        Some(_) if skips => splitter.skip(&input),
                        _ => break,
                    }
                }
                other => other,
            };
            let bytes = |range: Range<usize>| input[range].to_vec();
            let (event, end) = match unit {
                Err(error) => {
                    events.push(Event::Error(error));
                    return events;
                }
                Ok(Unit::Message {
                    header,
                    payload,
                    end,
                }) => (Some(Event::Message(bytes(header), bytes(payload))), end),
                Ok(Unit::Command { body, end }) => (Some(Event::Command(bytes(body))), end),
                Ok(Unit::TooLarge {
                    header,
                    payload_bytes,
                    end,
                }) => (Some(Event::TooLarge(bytes(header), payload_bytes)), end),
                Ok(Unit::Malformed { frames, end }) => (Some(Event::Malformed(frames)), end),
                Ok(Unit::Skipped { end }) => (None, end),
                Ok(Unit::Need { .. }) => panic!("skip asks for more"),
            };
            events.extend(event);
            input.drain(..end);
        }
    }
    events
}

/// In one piece, byte by byte, and cut in two anywhere: it is all the same.
#[track_caller]
fn assert_splits(stream: &[u8], expected: &[Event]) {
    assert_eq!(split(&[stream], false), expected, "in one piece");
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(split(&bytes, false), expected, "byte by byte");
    for cut in 0..stream.len() {
        let (left, right) = stream.split_at(cut);
        assert_eq!(split(&[left, right], false), expected, "cut at {cut}");
    }
}

#[test]
fn messages_and_commands_are_split_however_they_arrive() {
    let (header, long) = ([7; 40], [8; 300]);
    let stream = [
        message(&header, b"payload"),
        message(&header, &[]),
        ping(b"1"),
        message(&[], &long),
        message(&header, &[9; 255]),
        message(&header, &[9; 256]),
        ping(b"2"),
    ]
    .concat();
    let expected = [
        message_event(&header, b"payload"),
        message_event(&header, &[]),
        ping_event(b"1"),
        message_event(&[], &long),
        message_event(&header, &[9; 255]),
        message_event(&header, &[9; 256]),
        ping_event(b"2"),
    ];
    assert_splits(&stream, &expected);
}

#[test]
fn the_common_message_says_where_it_stands() {
    let stream = [message(&[7; 40], b"abc"), vec![1]].concat();
    let unit = Splitter::new(LIMITS).next(&stream);
    let expected = Unit::Message {
        header: 2..42,
        payload: 44..47,
        end: 47,
    };
    assert_eq!(unit, Ok(expected));
}

#[test]
fn the_long_form_may_carry_short_lengths() {
    let stream = [&long_head(3, 2), &b"hd"[..], &long_head(2, 1), b"p"].concat();
    assert_splits(&stream, &[message_event(b"hd", b"p")]);
}

#[test]
fn what_is_needed_is_told() {
    let stream = message(&[7; 40], &[8; 300]);
    let header = Some(2..42);
    for (bytes_there, bytes, header) in [
        (0, 2, None),
        (1, 2, None),
        (2, 44, None),
        (42, 44, None),
        (43, 51, None),
        (50, 51, None),
        (51, 351, header.clone()),
        (350, 351, header),
    ] {
        let unit = Splitter::new(LIMITS).next(&stream[..bytes_there]);
        assert_eq!(unit, Ok(Unit::Need { bytes, header }), "{bytes_there}");
    }
}

#[test]
fn commands_between_the_frames_of_a_message_come_first() {
    let (header, payload) = ([7; 40], [8; 300]);
    let stream = [
        frame(true, &header),
        ping(b"1"),
        ping(b""),
        frame(false, &payload),
        message(b"next", b""),
    ]
    .concat();
    let expected = [
        ping_event(b"1"),
        ping_event(b""),
        message_event(&header, &payload),
        message_event(b"next", b""),
    ];
    assert_splits(&stream, &expected);
}

#[test]
fn a_command_within_a_message_consumes_nothing() {
    let mut stream = [frame(true, b"hd"), ping(b"1")].concat();
    let mut splitter = Splitter::new(LIMITS);
    let unit = splitter.next(&stream);
    assert_eq!(
        unit,
        Ok(Unit::Command {
            body: 6..14,
            end: 0
        })
    );
    let (bytes, header) = (16, None);
    assert_eq!(splitter.next(&stream), Ok(Unit::Need { bytes, header }));
    stream.extend_from_slice(&frame(false, b"p"));
    let expected = Unit::Message {
        header: 2..4,
        payload: 16..17,
        end: 17,
    };
    assert_eq!(splitter.next(&stream), Ok(expected));
}

#[test]
fn commands_within_a_message_are_bounded() {
    let mut stream = frame(true, b"hd");
    let pings_max = LIMITS.commands_within_bytes_max() / ping(b"").len();
    for _ in 0..=pings_max {
        stream.extend_from_slice(&ping(b""));
    }
    let mut expected = vec![ping_event(b""); pings_max];
    let bytes_max = LIMITS.commands_within_bytes_max();
    expected.push(Event::Error(ZmtpError::CommandsInMessage { bytes_max }));
    assert_splits(&stream, &expected);
    // The largest command fits, in the long form too.
    let command = [long_head(6, 40), vec![1; 40]].concat();
    let stream = [frame(true, b"hd"), command, frame(false, b"p")].concat();
    assert_splits(
        &stream,
        &[Event::Command(vec![1; 40]), message_event(b"hd", b"p")],
    );
}

#[test]
fn payloads_over_the_limit_are_skipped_and_the_next_message_is_read() {
    let stream = [
        message(b"hd", &[8; 301]),
        message(b"next", b"p"),
        frame(true, b"hd"),
        ping(b"1"),
        frame(false, &[8; 1000]),
        ping(b"2"),
    ]
    .concat();
    let expected = [
        Event::TooLarge(b"hd".to_vec(), 301),
        message_event(b"next", b"p"),
        ping_event(b"1"),
        Event::TooLarge(b"hd".to_vec(), 1000),
        ping_event(b"2"),
    ];
    assert_splits(&stream, &expected);
}

#[test]
fn a_payload_that_is_waited_for_can_be_skipped() {
    let stream = [message(b"hd", &[8; 300]), message(b"next", b"p")].concat();
    for cut in 13..313 {
        let (left, right) = stream.split_at(cut);
        let expected = [
            Event::TooLarge(b"hd".to_vec(), 300),
            message_event(b"next", b"p"),
        ];
        assert_eq!(split(&[left, right], true), expected, "cut at {cut}");
    }
    // It has arrived meanwhile, and is given up all the same.
    let mut splitter = Splitter::new(LIMITS);
    let empty = message(b"hd", &[]);
    let expected = Unit::TooLarge {
        header: 2..4,
        payload_bytes: 0,
        end: 6,
    };
    assert_eq!(splitter.skip(&empty), Ok(expected));
    assert!(matches!(splitter.next(&empty), Ok(Unit::Message { .. })));
}

#[test]
fn messages_of_other_than_two_frames_are_dropped() {
    let stream = [
        frame(false, b"one"),
        frame(false, b""),
        message(b"hd", b"p"),
        frame(true, b"1"),
        ping(b"1"),
        frame(true, b"2"),
        ping(b"2"),
        frame(true, &[3; 400]),
        ping(b"3"),
        frame(false, b""),
        message(b"hd", b"p"),
    ]
    .concat();
    let expected = [
        Event::Malformed(1),
        Event::Malformed(1),
        message_event(b"hd", b"p"),
        ping_event(b"1"),
        ping_event(b"2"),
        ping_event(b"3"),
        Event::Malformed(4),
        message_event(b"hd", b"p"),
    ];
    assert_splits(&stream, &expected);
}

#[test]
fn frames_without_end_are_an_error() {
    let stream = frame(true, b"x").repeat(6);
    let frames_max = 5;
    assert_splits(
        &stream,
        &[Event::Error(ZmtpError::TooManyFrames { frames_max })],
    );
    let five = [frame(true, b"x").repeat(4), frame(false, b"x")].concat();
    assert_splits(&five, &[Event::Malformed(5)]);
}

#[test]
fn what_is_not_even_skipped_is_an_error() {
    let (bytes, bytes_max) = (1001, 1000);
    let error = Event::Error(ZmtpError::FrameTooLarge { bytes, bytes_max });
    let large = long_head(2, bytes);
    assert_splits(
        &[frame(true, b"hd"), large.clone()].concat(),
        std::slice::from_ref(&error),
    );
    assert_splits(&large, std::slice::from_ref(&error));
    let second = long_head(3, bytes);
    assert_splits(
        &[frame(true, b"hd"), second].concat(),
        std::slice::from_ref(&error),
    );
    let third = [frame(true, b"1"), frame(true, b"2"), large].concat();
    assert_splits(&third, &[error]);
}

#[test]
fn headers_and_commands_over_their_limits_are_refused_by_their_heads() {
    let (bytes, bytes_max) = (65, 64);
    let error = Event::Error(ZmtpError::HeaderTooLong { bytes, bytes_max });
    assert_splits(&[1, 65], std::slice::from_ref(&error));
    // Whole, in the short form, too.
    assert_eq!(split(&[&message(&[7; 65], b"p")], false), [error]);
    let (bytes, bytes_max) = (41, 40);
    let error = Event::Error(ZmtpError::CommandTooLong { bytes, bytes_max });
    assert_splits(&[4, 41], std::slice::from_ref(&error));
    assert_splits(&[1, 0, 4, 41], &[error]);
}

#[test]
fn lengths_near_all_memory_are_refused_wherever_they_stand() {
    for length in [(1 << 63) - 1, 1 << 63, u64::MAX] {
        for before in [vec![], frame(true, b"hd"), frame(true, b"").repeat(2)] {
            for flags in [2, 3, 6] {
                let stream = [before.clone(), long_head(flags, length)].concat();
                let events = split(&[&stream], false);
                assert!(matches!(events[..], [Event::Error(_)]), "{events:?}");
            }
        }
    }
}

#[test]
fn limits_of_all_memory_overflow_nothing() {
    let limits = SplitLimits {
        payload_bytes_max: usize::MAX,
        header_bytes_max: usize::MAX,
        frames_max: usize::MAX,
        command_bytes_max: usize::MAX,
        skip_bytes_max: u64::MAX,
    };
    assert_eq!(limits.need_bytes_max(), usize::MAX);
    for before in [vec![], frame(true, b"hd"), frame(true, b"").repeat(2)] {
        for flags in [2, 3, 6] {
            let stream = [before.clone(), long_head(flags, (1 << 63) - 1)].concat();
            let mut splitter = Splitter::new(limits);
            splitter.next(&stream).unwrap();
            splitter.next(&stream).unwrap();
        }
    }
}

#[test]
fn pongs_are_commands_too() {
    let mut stream = Vec::new();
    write_pong(b"ctx", &mut stream);
    assert_splits(&stream, &[Event::Command(b"\x04PONGctx".to_vec())]);
}
