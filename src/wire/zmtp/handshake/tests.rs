use super::super::{write_ping, write_pong};
use super::*;

const METADATA_BYTES_MAX: usize = 512;

fn greeting() -> Vec<u8> {
    let mut out = Vec::new();
    write_greeting(&mut out);
    out
}

fn ready(properties: &[(&str, &[u8])]) -> Vec<u8> {
    let mut metadata = Vec::new();
    for (name, value) in properties {
        write_property(name, value, &mut metadata);
    }
    let mut out = Vec::new();
    write_command(READY, &[&metadata], &mut out);
    out
}

/// What a listener makes of a greeting and these bytes, and what it sends.
fn listen(after_greeting: &[u8]) -> (Result<Progress, ZmtpError>, Vec<u8>) {
    let mut handshake = Handshake::new(Role::Listener, METADATA_BYTES_MAX);
    let mut out = Vec::new();
    let input = [&greeting(), after_greeting].concat();
    (handshake.advance(&input, &mut out), out)
}

/// The error, which the peer is told after our READY.
#[track_caller]
fn assert_refused(after_greeting: &[u8], expected: ZmtpError) {
    let (read, out) = listen(after_greeting);
    let mut told = ready(&[(SOCKET_TYPE, b"ROUTER")]);
    write_error(&expected.to_string(), &mut told);
    assert_eq!(read, Err(expected));
    assert_eq!(out, told);
}

#[test]
fn two_ends_shake_hands_however_the_bytes_arrive() {
    for piece_bytes in [1, 7, 63, 64, 65, 1000] {
        let mut ends = [Role::Listener, Role::Dialer]
            .map(|role| (Handshake::new(role, METADATA_BYTES_MAX), Vec::new(), None));
        let mut sent = [Vec::new(), Vec::new()];
        ends[0].0.open(&mut sent[1]);
        ends[1].0.open(&mut sent[0]);
        while ends.iter().any(|(_, _, done)| done.is_none()) {
            for side in 0..2 {
                let arrives = sent[side].len().min(piece_bytes);
                let (handshake, input, done) = &mut ends[side];
                input.extend(sent[side].drain(..arrives));
                let progress = handshake.advance(input, &mut sent[1 - side]).unwrap();
                input.drain(..progress.consumed);
                *done = done.take().or(progress.done);
            }
        }
        let [listener, dialer] = ends;
        assert_eq!(listener.2.unwrap().socket_type, "DEALER");
        assert_eq!(dialer.2.unwrap().socket_type, "ROUTER");
        assert!(listener.1.is_empty() && dialer.1.is_empty());
    }
}

#[test]
fn ours_stands_on_the_wire_as_libzmq_writes_it() {
    let mut handshake = Handshake::new(Role::Dialer, METADATA_BYTES_MAX);
    let mut out = Vec::new();
    handshake.open(&mut out);
    assert_eq!(out, greeting());
    out.clear();
    let progress = handshake.advance(&greeting(), &mut out).unwrap();
    assert_eq!((progress.consumed, progress.done), (GREETING_BYTES, None));
    assert_eq!(
        out,
        *b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"
    );
}

#[test]
fn nothing_is_said_before_the_peers_greeting_is_accepted() {
    let mut handshake = Handshake::new(Role::Listener, METADATA_BYTES_MAX);
    let mut out = Vec::new();
    for bytes in 0..GREETING_BYTES {
        let progress = handshake.advance(&greeting()[..bytes], &mut out).unwrap();
        assert_eq!((progress.consumed, progress.done), (0, None));
    }
    let mut bad = greeting();
    bad[31] = 1;
    assert!(handshake.advance(&bad, &mut out).is_err());
    assert!(out.is_empty());
}

#[test]
fn an_introduction_keeps_what_the_peer_says() {
    let mut input = greeting();
    input[11] = 0;
    input.extend(ready(&[
        ("X-zone", b"a"),
        ("socket-type", b"DEALER"),
        ("IDENTITY", b"me"),
        ("X-zone", b"b"),
    ]));
    let handshake_bytes = input.len();
    input.extend(b"\x00\x05hello");
    let mut handshake = Handshake::new(Role::Listener, METADATA_BYTES_MAX);
    let progress = handshake.advance(&input, &mut Vec::new()).unwrap();
    let zone = |value: &str| ("X-zone".to_owned(), value.as_bytes().to_owned());
    let expected = Introduction {
        minor: 0,
        socket_type: "DEALER".to_owned(),
        identity: b"me".to_vec(),
        properties: vec![zone("a"), zone("b")],
    };
    assert_eq!(progress.consumed, handshake_bytes);
    assert_eq!(progress.done, Some(expected));
    // Done is done.
    let after = handshake.advance(&input[handshake_bytes..], &mut Vec::new());
    let (consumed, done) = (0, None);
    assert_eq!(after, Ok(Progress { consumed, done }));
}

#[test]
fn a_ready_that_is_cut_short_is_waited_for() {
    let whole = ready(&[(SOCKET_TYPE, b"DEALER"), (IDENTITY, b"")]);
    for bytes in 0..whole.len() {
        let (read, _) = listen(&whole[..bytes]);
        let (consumed, done) = (GREETING_BYTES, None);
        assert_eq!(read, Ok(Progress { consumed, done }), "{bytes}");
    }
    assert!(listen(&whole).0.unwrap().done.is_some());
}

#[test]
fn a_ready_whose_frame_ends_early_is_refused() {
    let whole = ready(&[(SOCKET_TYPE, b"DEALER"), (IDENTITY, b"")]);
    let socket_type_end = whole.len() - 13;
    for bytes in 2..whole.len() {
        let mut short = whole[..bytes].to_vec();
        short[1] = (bytes - 2) as u8;
        match listen(&short).0 {
            // Without its second property it is a whole one.
            Ok(progress) => assert!(progress.done.is_some() && bytes == socket_type_end),
            Err(error) => assert_refused(&short, error),
        }
    }
}

#[test]
fn a_ready_over_the_limit_is_refused_by_its_length() {
    let bytes_max = METADATA_BYTES_MAX;
    for bytes in [bytes_max + 1, 1 << 40] {
        let head = [&[6], &(bytes as u64).to_be_bytes()[..]].concat();
        assert_refused(&head, ZmtpError::ReadyTooLong { bytes, bytes_max });
    }
    let head = [&[6], &(bytes_max as u64).to_be_bytes()[..]].concat();
    assert!(listen(&head).0.is_ok());
    assert_refused(
        &[&[6], &[0xff; 8][..]].concat(),
        ZmtpError::Length(u64::MAX),
    );
}

#[test]
fn other_sockets_are_refused() {
    let expected = "DEALER";
    for found in ["ROUTER", "REQ", "dealer", "", "DEALER "] {
        let found = found.to_owned();
        let bytes = ready(&[(SOCKET_TYPE, found.as_bytes())]);
        assert_refused(&bytes, ZmtpError::SocketType { expected, found });
    }
    let found = "x".repeat(QUOTED_BYTES_MAX);
    let bytes = ready(&[(SOCKET_TYPE, &[b'x'; 400])]);
    assert_refused(&bytes, ZmtpError::SocketType { expected, found });
    assert_refused(
        &ready(&[(IDENTITY, b"me")]),
        ZmtpError::NoSocketType { expected },
    );
    let mut dialer = Handshake::new(Role::Dialer, METADATA_BYTES_MAX);
    let input = [greeting(), ready(&[(SOCKET_TYPE, b"DEALER")])].concat();
    let (expected, found) = ("ROUTER", "DEALER".to_owned());
    assert_eq!(
        dialer.advance(&input, &mut Vec::new()),
        Err(ZmtpError::SocketType { expected, found })
    );
}

#[test]
fn what_is_said_twice_is_refused() {
    for (name, again) in [(SOCKET_TYPE, "SOCKET-TYPE"), (IDENTITY, "identity")] {
        let bytes = ready(&[
            (SOCKET_TYPE, b"DEALER"),
            (IDENTITY, b""),
            (again, b"DEALER"),
        ]);
        assert_refused(&bytes, ZmtpError::DuplicateProperty { name });
    }
}

#[test]
fn identities_are_bounded() {
    let of = |bytes| ready(&[(SOCKET_TYPE, b"DEALER"), (IDENTITY, &vec![b'i'; bytes])]);
    assert_eq!(
        listen(&of(255)).0.unwrap().done.unwrap().identity.len(),
        255
    );
    assert_refused(&of(256), ZmtpError::LongIdentity { bytes: 256 });
}

#[test]
fn nothing_else_comes_before_ready() {
    for message in [&b"\x00\x01x"[..], b"\x01\x00", b"\x02\0\0\0\0\0\0\0\0"] {
        assert_refused(message, ZmtpError::MessageBeforeReady);
    }
    let before_ready = |name: &str| ZmtpError::CommandBeforeReady {
        name: name.to_owned(),
    };
    let mut ping = Vec::new();
    write_ping(0, b"", &mut ping);
    assert_refused(&ping, before_ready("PING"));
    let mut pong = Vec::new();
    write_pong(b"", &mut pong);
    assert_refused(&pong, before_ready("PONG"));
    assert_refused(b"\x04\x06\x05HELLO", before_ready("HELLO"));
    assert_refused(b"\x04\x06\x05ready", before_ready("ready"));
    assert_refused(b"\x04\x00", ZmtpError::CommandName { bytes: 0 });
    assert_refused(b"\x09", ZmtpError::ReservedFlags(9));
}

#[test]
fn an_error_from_the_peer_carries_its_reason_and_is_not_answered() {
    for reason in ["", "no", &"x".repeat(255)] {
        let mut error = Vec::new();
        write_error(reason, &mut error);
        let (read, out) = listen(&error);
        let reason = reason.to_owned();
        assert_eq!(read, Err(ZmtpError::Refused { reason }));
        assert_eq!(out, ready(&[(SOCKET_TYPE, b"ROUTER")]));
    }
}
