//! One enum per boundary. An error says what to do about it, and a payload that was refused comes back with it.


use crate::wire::Codec;

/// A header frame that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct DecodeError {
    /// What is wrong with it.
    pub what: Malformation,
    /// Its correlation, where that much could be read: then a nack can be sent.
    pub correlation: Option<u64>,
}

/// What is wrong with a message that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformation {
    /// The header frame is shorter than a header.
    #[error("a header of {bytes} bytes; it takes 40")]
    Short {
        /// Its length.
        bytes: usize,
    },
    /// It does not begin with the magic.
    #[error("not a corelane message: it must begin with the bytes 43 4C")]
    Magic,
    /// It is the JSON metadata of version 1.
    #[error("a version 1 message (JSON metadata); this process speaks version 2")]
    Version1,
    /// Another version.
    #[error("version {0}; this process speaks version 2")]
    Version(u8),
    /// A kind that no version knows.
    #[error("unknown kind {0}")]
    Kind(u8),
    /// A multipart message of one frame, or of more than two.
    #[error("{0} frames; a message has two, header and payload")]
    Frames(usize),
}

/// A `hello` or `welcome` that cannot be read: the JSON parser's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad hello: {0}")]
pub struct HelloError(pub String);

/// A typed payload that could not be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The value cannot be expressed in this codec.
    #[error("cannot encode the value as {codec}: {text}")]
    Encode {
        /// The codec asked for.
        codec: Codec,
        /// What it says.
        text: String,
    },
    /// The bytes are no such value.
    #[error("cannot decode the payload as {codec}: {text}")]
    Decode {
        /// The codec that the header names.
        codec: Codec,
        /// What it says.
        text: String,
    },
    /// Raw and unknown payloads have no type.
    #[error("a typed payload takes the codec json or postcard, not {codec}")]
    Untyped {
        /// The codec that the header names.
        codec: Codec,
    },
}
