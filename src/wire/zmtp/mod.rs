//! ZMTP 3.1 (ZeroMQ RFCs 23 and 37) with the NULL mechanism: bytes in, events out.
//!
//! A connection begins with a [`Handshake`]: both ends greet each other and say in a READY command
//! what they are. What follows, a [`Splitter`] divides into [`Unit`]s: messages of two frames, and
//! [`Command`]s. How the frames of outgoing messages look, the [`Outbox`](super::Outbox) knows.
//!
//! Nothing here owns a socket, reads a clock or blocks, and nothing panics on what a peer sends:
//! what cannot be read is a [`ZmtpError`](crate::error::ZmtpError), and ends the connection. Bytes
//! stay in the caller's buffer, and its size is bounded by what the limits allow to ask for. Only a
//! handshake allocates.

mod command;
mod frame;
mod greeting;
mod handshake;
mod metadata;
mod splitter;

pub use command::{Command, write_error, write_ping, write_pong};
pub use frame::{FrameHead, frame_head};
pub use greeting::GREETING_BYTES;
pub use handshake::{Handshake, Introduction, Progress, Role};
pub use metadata::Properties;
pub use splitter::{SplitLimits, Splitter, Unit};
