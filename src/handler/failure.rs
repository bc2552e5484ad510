//! Why messages are refused, and why handlers give no reply.

use crate::{
    error::{CodecError, HandlerError},
    wire::{HandlerKey, Reason},
};

/// Bytes of the longest text in a nack.
pub(super) const NACK_BYTES_MAX: usize = 4096;

/// Why a handler gave no reply: what the nack says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The reason.
    pub reason: Reason,
    /// The text.
    pub text: String,
}

/// What speaks against a message before its handler is called.
#[derive(Clone, Copy)]
pub(super) enum Objection {
    Codec(u8),
    Compressed,
    NoDeadline,
    NoRouteKey,
    UnknownHandler(HandlerKey),
    TooLate,
    TooManyTasks,
}

impl Failure {
    /// The text as a nack carries it: cut at [`NACK_BYTES_MAX`], since a handler's error may hold
    /// any amount.
    pub(super) fn words(&self) -> &[u8] {
        &self.text.as_bytes()[..self.text.floor_char_boundary(NACK_BYTES_MAX)]
    }

    /// Its deadline passed before its handler began.
    pub fn too_late() -> Self {
        Objection::TooLate.into()
    }

    pub(super) fn panicked(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(text), _) => text,
            (_, Some(text)) => text.as_str(),
            _ => "the handler panicked",
        };
        Self {
            reason: Reason::HandlerPanicked,
            text: text.to_owned(),
        }
    }
}

impl From<Objection> for Failure {
    #[cold]
    fn from(objection: Objection) -> Self {
        let (reason, text) = match objection {
            Objection::Codec(number) => {
                let text = format!("codec {number} is unknown here");
                return Self {
                    reason: Reason::Unsupported,
                    text,
                };
            }
            Objection::UnknownHandler(key) => {
                let text = format!("no handler has the key {key}");
                return Self {
                    reason: Reason::UnknownHandler,
                    text,
                };
            }
            Objection::Compressed => (Reason::Unsupported, "compressed payloads are not supported"),
            Objection::NoDeadline => (
                Reason::Malformed,
                "a request or confirmed message takes a deadline",
            ),
            Objection::NoRouteKey => (
                Reason::Malformed,
                "the handler is sharded by route key, and the message has none (0)",
            ),
            Objection::TooLate => (
                Reason::DeadlineExceeded,
                "the deadline passed before the handler began",
            ),
            Objection::TooManyTasks => (
                Reason::Overloaded,
                "limits.spawned_max tasks run on this shard already",
            ),
        };
        Self {
            reason,
            text: text.to_owned(),
        }
    }
}

impl From<HandlerError> for Failure {
    fn from(error: HandlerError) -> Self {
        Self {
            reason: Reason::HandlerFailed,
            text: error.text().to_owned(),
        }
    }
}

/// A payload that cannot be decoded is its sender's fault, not the handler's.
impl From<CodecError> for Failure {
    fn from(error: CodecError) -> Self {
        let reason = match error {
            CodecError::Untyped { .. } => Reason::Unsupported,
            _ => Reason::Malformed,
        };
        Self {
            reason,
            text: error.to_string(),
        }
    }
}

/// Whether a reply is within the limit.
pub(super) fn check_reply(bytes: usize, bytes_max: usize) -> Result<(), Failure> {
    match bytes <= bytes_max {
        true => Ok(()),
        false => Err(Failure {
            reason: Reason::HandlerFailed,
            text: format!("a reply of {bytes} bytes; limits.message_bytes_max is {bytes_max}"),
        }),
    }
}
