//! The bytes of the active message, version 2, without any I/O.
//!
//! A message is one ZMTP multipart of exactly two frames: a [`Header`] of 40 bytes and a payload.
//! What a peer says of itself on a new connection is a [`Hello`], in JSON. Messages on their way
//! out stand in an [`Outbox`], already framed, until the engine takes them. How a connection begins
//! and how its bytes are split into messages is [`zmtp`]'s.
//!
//! Nothing here blocks, reads a clock or owns a socket; decoding allocates nothing, except for
//! `Hello` and a ZMTP handshake.

mod control;
mod header;
mod key;
mod outbox;
mod received;
mod route_key;
pub mod zmtp;

pub use control::{Affinity, FEATURE_UPDATES, HandlerEntry, Hello};
pub use header::{Codec, Flags, HEADER_BYTES, Header, Kind, Reason, VERSION};
pub use key::HandlerKey;
pub use outbox::{
    ATTACHED_BYTES_MIN, Draft, Frames, Outbox, OutboxFull, PayloadWriter, Promise, Tally,
};
pub use received::Received;
pub use route_key::{ROUTE_MAP, shard_of_key};
