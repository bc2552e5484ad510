//! A message as its sender gives it: what the header will say, and the payload.

use bytes::Bytes;

use crate::{
    error::{NotSent, SendError},
    wire::{Codec, HandlerKey, Header, Kind},
};

/// A buffer for a payload begins with this much room.
pub(super) const PAYLOAD_BYTES: usize = 128;

/// What is to be sent. Made by the builder.
#[derive(Debug)]
pub struct Order {
    pub(super) kind: Kind,
    pub(super) codec: Codec,
    pub(super) handler: HandlerKey,
    pub(super) route_key: u64,
    pub(super) payload: Payload,
}

/// A payload on its way to a queue.
#[derive(Debug)]
pub(super) enum Payload {
    /// The sender's own.
    Shared(Bytes),
    /// Written for this message, into a buffer that is used again.
    Own(Vec<u8>),
}

impl Order {
    #[inline]
    pub(super) fn header(&self, correlation: u64) -> Header {
        Header {
            codec: self.codec,
            handler: self.handler,
            route_key: self.route_key,
            ..Header::new(self.kind, correlation)
        }
    }
}

impl Order {
    /// The error that gives the payload back.
    pub(super) fn refuse(self, why: NotSent) -> SendError {
        let payload = self.payload.into_bytes();
        SendError { why, payload }
    }
}

impl Payload {
    #[inline]
    pub(super) fn len(&self) -> usize {
        match self {
            Payload::Shared(bytes) => bytes.len(),
            Payload::Own(bytes) => bytes.len(),
        }
    }

    /// The payload, to be kept. A written one is no longer used again.
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Payload::Shared(bytes) => bytes,
            Payload::Own(bytes) => bytes.into(),
        }
    }

    /// As [`into_bytes`](Self::into_bytes), and leaves nothing.
    pub(super) fn take_bytes(&mut self) -> Bytes {
        std::mem::replace(self, Payload::Own(Vec::new())).into_bytes()
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Payload::Shared(bytes)
    }
}
