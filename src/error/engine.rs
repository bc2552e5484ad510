//! How a connection ends.

use super::ZmtpError;

/// Why a connection was lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// The peer has closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// The system says that it is broken.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The peer's bytes are no ZMTP that we speak.
    #[error(transparent)]
    Protocol(#[from] ZmtpError),
    /// The peer ended it, and says why.
    #[error("the peer refused: {0:?}")]
    Refused(String),
    /// The handshake was not done within `limits.handshake_ms`.
    #[error("no handshake within limits.handshake_ms")]
    HandshakeTime,
    /// Nothing was heard of the peer, and no answer to a heartbeat, within
    /// `limits.heartbeat_timeout_ms`.
    #[error("silent for limits.heartbeat_timeout_ms")]
    Silent,
    /// Over ipc another user's process is at the other end, and not root's.
    #[error(
        "uid {uid} is at the other end of this ipc connection, and this process runs as uid {own}: \
         run both as one user, or let them connect by tcp"
    )]
    OtherUser {
        /// Whose process is there.
        uid: u32,
        /// Whose this one is.
        own: u32,
    },
    /// Its messages could not be read: it was left, to be dialed again.
    #[error("its messages cannot be read")]
    Unreadable,
    /// It read too slowly: its queue stayed full for `limits.slow_consumer_ms`.
    #[error("a slow consumer: its queue stayed full for limits.slow_consumer_ms")]
    SlowConsumer,
}
