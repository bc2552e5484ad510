//! A peer from the wire's table alone: a DEALER and forty bytes, written by hand. Nothing here is
//! the library's, so that it shares no mistake with it.

pub(crate) const ONE_WAY: u8 = 1;
pub(crate) const CONFIRM: u8 = 2;
pub(crate) const REQUEST: u8 = 3;
pub(crate) const ACK: u8 = 4;
pub(crate) const RESPONSE: u8 = 5;
pub(crate) const NACK: u8 = 6;
pub(crate) const HELLO: u8 = 7;
pub(crate) const WELCOME: u8 = 8;
pub(crate) const GOODBYE: u8 = 9;

pub(crate) const RAW: u8 = 0;
pub(crate) const JSON: u8 = 1;
pub(crate) const POSTCARD: u8 = 2;

pub(crate) const HEADER_BYTES: usize = 40;
const ANSWER_WITHIN_MS: i64 = 30_000;
const QUIET_MS: i64 = 200;
const DEADLINE_US: u32 = 30_000_000;

/// FNV-1a 64 of a handler's name.
pub(crate) fn key(name: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in name.bytes() {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(0x100_0000_01b3);
    }
    hash
}

/// A header without flags and route key.
pub(crate) fn header(
    kind: u8,
    correlation: u64,
    handler: u64,
    codec: u8,
    deadline_us: u32,
) -> Vec<u8> {
    let mut bytes = vec![0x43, 0x4c, 2, kind, codec, 0, 0, 0];
    bytes.extend(correlation.to_le_bytes());
    bytes.extend(handler.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(deadline_us.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    assert_eq!(bytes.len(), HEADER_BYTES);
    bytes
}

/// What a server has sent.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) kind: u8,
    pub(crate) codec: u8,
    pub(crate) reason: u16,
    pub(crate) correlation: u64,
    pub(crate) payload: Vec<u8>,
}

/// One connection.
pub(crate) struct Dealer {
    socket: zmq::Socket,
    next_correlation: u64,
}

impl Dealer {
    pub(crate) fn connect(endpoint: &str) -> Self {
        let socket = zmq::Context::new().socket(zmq::DEALER).expect("a socket");
        socket.set_linger(0).expect("no linger");
        socket.set_sndhwm(0).expect("no bound");
        socket.connect(endpoint).expect("an endpoint");
        Self {
            socket,
            // Large and odd in each byte, so that a swapped or cut one is found.
            next_correlation: 0xf1e2_d3c4_b5a6_9788,
        }
    }

    /// Sends a message of this kind and waits for its answer.
    pub(crate) fn ask(&mut self, kind: u8, handler: &str, codec: u8, payload: &[u8]) -> Answer {
        let correlation = self.send(kind, handler, codec, payload);
        self.answer_to(correlation)
    }

    /// Sends a message and returns its correlation.
    pub(crate) fn send(&mut self, kind: u8, handler: &str, codec: u8, payload: &[u8]) -> u64 {
        let deadline_us = if kind == ONE_WAY { 0 } else { DEADLINE_US };
        let correlation = self.correlation();
        self.send_header(
            header(kind, correlation, key(handler), codec, deadline_us),
            payload,
        )
    }

    /// Sends a message with this header, whatever it is, and returns the correlation in it.
    pub(crate) fn send_header(&mut self, header: Vec<u8>, payload: &[u8]) -> u64 {
        let correlation = header.get(8..16).and_then(|bytes| bytes.try_into().ok());
        self.socket
            .send_multipart([&header[..], payload], 0)
            .expect("is sent");
        correlation.map_or(0, u64::from_le_bytes)
    }

    /// A correlation that was not used before.
    pub(crate) fn correlation(&mut self) -> u64 {
        self.next_correlation = self.next_correlation.wrapping_add(1);
        self.next_correlation
    }

    /// The next answer, which must be the one to this message.
    pub(crate) fn answer_to(&self, correlation: u64) -> Answer {
        let answer = self.receive();
        assert_eq!(answer.correlation, correlation, "{answer:?}");
        answer
    }

    /// The next answer, held to what each must be.
    pub(crate) fn receive(&self) -> Answer {
        let events = self.socket.poll(zmq::POLLIN, ANSWER_WITHIN_MS);
        assert_eq!(events, Ok(1), "no answer");
        let frames = self.socket.recv_multipart(0).expect("a message");
        let [header, payload] = <[Vec<u8>; 2]>::try_from(frames).expect("two frames");
        assert_eq!(header.len(), HEADER_BYTES);
        assert_eq!(header[0..3], [0x43, 0x4c, 2], "magic and version");
        assert_eq!(header[5], 0, "flags");
        assert_eq!(
            header[16..40],
            [0; 24],
            "handler, route, deadline and plain size"
        );
        let reason = u16::from_le_bytes([header[6], header[7]]);
        let kind = header[3];
        assert!(
            [ACK, RESPONSE, NACK, WELCOME, GOODBYE].contains(&kind),
            "{header:?}"
        );
        assert_eq!(reason != 0, kind == NACK, "{header:?}");
        if kind == NACK {
            std::str::from_utf8(&payload).expect("text for people");
        }
        Answer {
            kind,
            codec: header[4],
            reason,
            correlation: u64::from_le_bytes(header[8..16].try_into().expect("eight bytes")),
            payload,
        }
    }

    /// Nothing was due.
    pub(crate) fn stays_quiet(&self) {
        let events = self.socket.poll(zmq::POLLIN, QUIET_MS);
        assert_eq!(
            events,
            Ok(0),
            "{:?}",
            self.socket.recv_multipart(zmq::DONTWAIT)
        );
    }
}
