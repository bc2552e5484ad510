use std::fmt;

use super::HandlerKey;
use crate::error::{DecodeError, Malformation};

/// Bytes of a header that we write. A longer one is accepted, and what follows is ignored.
pub const HEADER_BYTES: usize = 40;
/// The version of the wire that this crate speaks.
pub const VERSION: u8 = 2;

const MAGIC: [u8; 2] = *b"CL";
/// A version 1 message begins with its JSON metadata.
const VERSION_1_FIRST_BYTE: u8 = b'{';

/// The first frame of every message: what it is, whom it is for, and by when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the message is.
    pub kind: Kind,
    /// How the payload is encoded.
    pub codec: Codec,
    /// Properties of the payload and of this sending.
    pub flags: Flags,
    /// In a `nack` why, else [`Reason::None`].
    pub reason: Reason,
    /// Ties an answer to its message; chosen by the sender, unique per connection while
    /// unanswered.
    pub correlation: u64,
    /// The handler that is named; in answers 0.
    pub handler: HandlerKey,
    /// For handlers sharded by key; 0 means none.
    pub route_key: u64,
    /// Microseconds that remained as the message was sent; 0 means none.
    pub deadline_us: u32,
    /// Bytes of a compressed payload once unpacked, else 0.
    pub plain_bytes: u32,
}

impl Header {
    /// A header of this kind and correlation, all else zero: no handler, no deadline, a raw
    /// payload.
    pub const fn new(kind: Kind, correlation: u64) -> Self {
        Self {
            kind,
            codec: Codec::Raw,
            flags: Flags::NONE,
            reason: Reason::None,
            correlation,
            handler: HandlerKey::from_u64(0),
            route_key: 0,
            deadline_us: 0,
            plain_bytes: 0,
        }
    }

    /// Writes the header as it stands on the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..2].copy_from_slice(&MAGIC);
        bytes[2] = VERSION;
        bytes[3] = self.kind as u8;
        bytes[4] = self.codec.to_u8();
        bytes[5] = self.flags.0;
        bytes[6..8].copy_from_slice(&self.reason.to_u16().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.correlation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.handler.get().to_le_bytes());
        bytes[24..32].copy_from_slice(&self.route_key.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.deadline_us.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.plain_bytes.to_le_bytes());
        bytes
    }

    /// Reads a header frame. Unknown codecs, flags and reasons are kept as they are; what a
    /// receiver cannot read at all is an error, which carries the correlation where one could
    /// be read.
    pub fn decode(frame: &[u8]) -> Result<Self, DecodeError> {
        let Some(bytes) = frame.first_chunk::<HEADER_BYTES>() else {
            return Err(too_short(frame));
        };
        let correlation = u64_at(bytes, 8);
        let refuse = |what| DecodeError {
            what,
            correlation: Some(correlation),
        };
        if bytes[0..2] != MAGIC {
            return Err(wrong_magic(bytes[0]));
        }
        if bytes[2] != VERSION {
            return Err(refuse(Malformation::Version(bytes[2])));
        }
        let kind = Kind::from_u8(bytes[3]).ok_or_else(|| refuse(Malformation::Kind(bytes[3])))?;
        Ok(Self {
            kind,
            codec: Codec::from_u8(bytes[4]),
            flags: Flags(bytes[5]),
            reason: Reason::from_u16(u16::from_le_bytes([bytes[6], bytes[7]])),
            correlation,
            handler: HandlerKey::from_u64(u64_at(bytes, 16)),
            route_key: u64_at(bytes, 24),
            deadline_us: u32_at(bytes, 32),
            plain_bytes: u32_at(bytes, 36),
        })
    }
}

fn too_short(frame: &[u8]) -> DecodeError {
    match frame.first() {
        Some(&VERSION_1_FIRST_BYTE) => wrong_magic(VERSION_1_FIRST_BYTE),
        _ => {
            let magic_is_right = frame.starts_with(&MAGIC) && frame.len() >= 16;
            DecodeError {
                what: Malformation::Short { bytes: frame.len() },
                correlation: magic_is_right.then(|| u64_at(frame, 8)),
            }
        }
    }
}

/// Where the magic is wrong, no field after it means anything: there is no correlation.
fn wrong_magic(first: u8) -> DecodeError {
    let what = match first {
        VERSION_1_FIRST_BYTE => Malformation::Version1,
        _ => Malformation::Magic,
    };
    DecodeError {
        what,
        correlation: None,
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A message that nothing answers.
    OneWay = 1,
    /// A message that is answered by `Ack` once its handler has returned, or by `Nack`.
    Confirm = 2,
    /// A message that is answered by `Response` or `Nack`.
    Request = 3,
    /// The handler of a `Confirm` has returned.
    Ack = 4,
    /// The reply to a `Request`, in its codec.
    Response = 5,
    /// A message was refused or its handler failed; the reason says which, the payload says it to
    /// people.
    Nack = 6,
    /// First on a connection: who I am.
    Hello = 7,
    /// The answer to `Hello`.
    Welcome = 8,
    /// I am draining; send me nothing new.
    Goodbye = 9,
    /// The correlation names what need not be answered any more; best effort.
    Cancel = 10,
}

impl Kind {
    const ALL: [Kind; 10] = [
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

    fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).wrapping_sub(1)).copied()
    }
}

/// How a payload is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Bytes that only the two ends understand.
    #[default]
    Raw,
    /// JSON text.
    Json,
    /// postcard's binary encoding.
    Postcard,
    /// A number that this version does not know; it is nacked as `Unsupported` where it matters.
    Unknown(u8),
}

impl Codec {
    /// The number that the wire carries.
    pub const fn to_u8(self) -> u8 {
        match self {
            Codec::Raw => 0,
            Codec::Json => 1,
            Codec::Postcard => 2,
            Codec::Unknown(number) => number,
        }
    }

    /// The codec with this number.
    pub const fn from_u8(number: u8) -> Self {
        match number {
            0 => Codec::Raw,
            1 => Codec::Json,
            2 => Codec::Postcard,
            _ => Codec::Unknown(number),
        }
    }

    /// The names by which `hello` lists what this process can read.
    pub const NAMES: [&'static str; 3] = ["raw", "json", "postcard"];
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Codec::Unknown(number) => write!(f, "codec {number}"),
            known => f.write_str(Self::NAMES[usize::from(known.to_u8())]),
        }
    }
}

/// The flag bits of a header; bits that this version does not know are kept and mean nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// No flag is set.
    pub const NONE: Flags = Flags(0);
    /// The payload is an LZ4 block.
    pub const COMPRESSED: Flags = Flags(1);
    /// The same message was sent before.
    pub const RETRY: Flags = Flags(2);

    /// Whether all of `other`'s bits are set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Why a message was refused, or how its handler ended without a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No reason: the message is no nack.
    #[default]
    None,
    /// Nobody registered this handler key.
    UnknownHandler,
    /// The handler returned an error; its text is the payload.
    HandlerFailed,
    /// The handler ran and panicked; the shard goes on.
    HandlerPanicked,
    /// The deadline passed before the handler started; it did not run.
    DeadlineExceeded,
    /// A queue or credit was full; the handler did not run.
    Overloaded,
    /// The process is stopping; the handler did not run.
    Draining,
    /// The header or the payload could not be decoded.
    Malformed,
    /// Over the message limit.
    TooLarge,
    /// This peer may not call this handler.
    Unauthorized,
    /// A version, codec or feature that the receiver does not have.
    Unsupported,
    /// A number that this version does not know.
    Unknown(u16),
}

impl Reason {
    const KNOWN: [Reason; 11] = [
        Reason::None,
        Reason::UnknownHandler,
        Reason::HandlerFailed,
        Reason::HandlerPanicked,
        Reason::DeadlineExceeded,
        Reason::Overloaded,
        Reason::Draining,
        Reason::Malformed,
        Reason::TooLarge,
        Reason::Unauthorized,
        Reason::Unsupported,
    ];

    /// The number that the wire carries.
    pub fn to_u16(self) -> u16 {
        match self {
            Reason::Unknown(number) => number,
            known => Self::KNOWN
                .iter()
                .position(|&reason| reason == known)
                .expect("is in the table") as u16,
        }
    }

    /// The reason with this number.
    pub fn from_u16(number: u16) -> Self {
        Self::KNOWN
            .get(usize::from(number))
            .copied()
            .unwrap_or(Reason::Unknown(number))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Header {
        Header {
            kind: Kind::Request,
            codec: Codec::Json,
            flags: Flags::RETRY,
            reason: Reason::None,
            correlation: 0x0102_0304_0506_0708,
            handler: HandlerKey::of("sum"),
            route_key: 7,
            deadline_us: 30_000_000,
            plain_bytes: 0,
        }
    }

    #[test]
    fn header_stands_on_the_wire_as_the_table_says() {
        let bytes = sample().encode();
        assert_eq!(bytes[0..8], [0x43, 0x4c, 2, 3, 1, 2, 0, 0]);
        assert_eq!(bytes[8..16], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..24], HandlerKey::of("sum").get().to_le_bytes());
        assert_eq!(bytes[24..32], 7_u64.to_le_bytes());
        assert_eq!(bytes[32..36], 30_000_000_u32.to_le_bytes());
        assert_eq!(bytes[36..40], [0; 4]);
    }

    #[test]
    fn decode_undoes_encode_and_ignores_what_follows() {
        let mut bytes = sample().encode().to_vec();
        bytes.extend_from_slice(b"an extension of a later version");
        assert_eq!(Header::decode(&bytes), Ok(sample()));
    }

    #[test]
    fn every_truncation_is_refused_and_keeps_a_readable_correlation() {
        let bytes = sample().encode();
        for length in 0..HEADER_BYTES {
            let error = Header::decode(&bytes[..length]).unwrap_err();
            assert_eq!(error.what, Malformation::Short { bytes: length });
            assert_eq!(
                error.correlation,
                (length >= 16).then_some(sample().correlation)
            );
        }
    }

    #[test]
    fn wrong_magic_version_and_kind_are_told_apart() {
        let refused = |at: usize, value: u8| {
            let mut bytes = sample().encode();
            bytes[at] = value;
            Header::decode(&bytes).unwrap_err()
        };
        assert_eq!(refused(0, b'X').what, Malformation::Magic);
        assert_eq!(refused(0, b'X').correlation, None);
        assert_eq!(refused(0, b'{').what, Malformation::Version1);
        assert_eq!(refused(2, 3).what, Malformation::Version(3));
        assert_eq!(refused(2, 3).correlation, Some(sample().correlation));
        for kind in [0, 11, 255] {
            assert_eq!(refused(3, kind).what, Malformation::Kind(kind));
        }
    }

    #[test]
    fn every_number_survives_a_round_trip() {
        for number in 0..=u8::MAX {
            assert_eq!(Codec::from_u8(number).to_u8(), number);
            if let Some(kind) = Kind::from_u8(number) {
                assert_eq!(kind as u8, number);
            }
        }
        for number in 0..=u16::MAX {
            assert_eq!(Reason::from_u16(number).to_u16(), number);
        }
    }
}
