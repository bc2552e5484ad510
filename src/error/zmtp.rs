//! What a peer's ZMTP bytes can get wrong.

/// A connection whose bytes are not the ZMTP that we speak. It ends there: no byte behind the one
/// at fault can be trusted to be a frame's beginning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZmtpError {
    /// The first ten bytes are no signature of ZMTP 2 or later.
    #[error(
        "byte {at} of the greeting is {found:#04x}: no ZeroMQ peer, or one of libzmq 2 (ZMTP 1); \
         check what connects there, and upgrade it to libzmq 4"
    )]
    Signature {
        /// Which byte, counted from 0.
        at: usize,
        /// What it is.
        found: u8,
    },
    /// A greeting of a version before 3.
    #[error("the peer greets with ZMTP revision {major}, before version 3; upgrade it to libzmq 4")]
    Version {
        /// Its revision, or major version.
        major: u8,
    },
    /// A security mechanism other than NULL.
    #[error(
        "the peer's security mechanism begins with {begins:?} and is not NULL; turn PLAIN, CURVE \
         or GSSAPI off at the peer"
    )]
    Mechanism {
        /// Its name up to the first byte that tells it from NULL.
        begins: String,
    },
    /// Flag bits that no version defines.
    #[error("frame flags {0:#04x} have reserved bits set; the stream is damaged")]
    ReservedFlags(u8),
    /// A command says that more frames follow.
    #[error("a command says that more frames follow; commands are one frame")]
    CommandWithMore,
    /// A length that no memory holds.
    #[error("a frame of {0} bytes, which no memory holds; the stream is damaged")]
    Length(u64),
    /// A message arrived before the handshake was done.
    #[error("a message before READY; the peer must finish its handshake first")]
    MessageBeforeReady,
    /// A command other than READY or ERROR arrived before the handshake was done.
    #[error("the command {name:?} before READY; the peer must finish its handshake first")]
    CommandBeforeReady {
        /// Its name.
        name: String,
    },
    /// The first command is longer than a READY may be.
    #[error("a handshake command of {bytes} bytes; at most {bytes_max} are read")]
    ReadyTooLong {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// A command whose name is empty or goes past its end.
    #[error("a command of {bytes} bytes without a whole name")]
    CommandName {
        /// Bytes of the command.
        bytes: usize,
    },
    /// A PING that ends within its time to live.
    #[error("a PING with {bytes} bytes of data; its time to live alone takes 2")]
    ShortPing {
        /// Bytes behind the name.
        bytes: usize,
    },
    /// A PING or PONG whose context is longer than the protocol allows.
    #[error("a heartbeat context of {bytes} bytes; at most 16 are allowed")]
    LongContext {
        /// Its length.
        bytes: usize,
    },
    /// An ERROR whose reason goes past its end.
    #[error("an ERROR command that is cut short")]
    ShortError,
    /// A property's name that is empty, goes past the end, or has bytes that names cannot have.
    #[error("a property of READY has a bad name: it is empty, cut short, or no plain word")]
    PropertyName,
    /// A property's value goes past the end of READY.
    #[error("a property's value ends behind READY")]
    PropertyValue,
    /// Socket-Type or Identity stands in READY twice.
    #[error("READY has the property {name} twice")]
    DuplicateProperty {
        /// Which.
        name: &'static str,
    },
    /// An identity longer than the protocol allows.
    #[error("an identity of {bytes} bytes; at most 255 are allowed")]
    LongIdentity {
        /// Its length.
        bytes: usize,
    },
    /// READY does not say what socket the peer is.
    #[error("READY has no Socket-Type; the peer must say {expected}")]
    NoSocketType {
        /// What it must say.
        expected: &'static str,
    },
    /// The peer is a socket that we do not talk to.
    #[error("the peer is a {found:?} socket; connect a {expected} socket")]
    SocketType {
        /// What it must be.
        expected: &'static str,
        /// What it says, cut at 32 bytes.
        found: String,
    },
    /// The peer refused us, and says why.
    #[error("the peer refused the connection: {reason:?}")]
    Refused {
        /// Its words, as far as they are UTF-8.
        reason: String,
    },
    /// The header frame is longer than the limit.
    #[error("a header frame of {bytes} bytes; at most {bytes_max} are read")]
    HeaderTooLong {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// A command after the handshake is longer than the limit.
    #[error("a command of {bytes} bytes; at most {bytes_max} are read")]
    CommandTooLong {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// Commands without end between a message's header and its payload.
    #[error("over {bytes_max} bytes of commands between a header and its payload")]
    CommandsInMessage {
        /// What is allowed.
        bytes_max: usize,
    },
    /// A frame so large that it is not even skipped.
    #[error(
        "a frame of {bytes} bytes; more than {bytes_max} are not even skipped: send less at a time"
    )]
    FrameTooLarge {
        /// Its length.
        bytes: u64,
        /// What is skipped at most.
        bytes_max: u64,
    },
    /// A multipart message of more frames than are counted.
    #[error("a message of more than {frames_max} frames; a message has two, header and payload")]
    TooManyFrames {
        /// What is read at most, to be dropped.
        frames_max: usize,
    },
}
