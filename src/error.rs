//! One enum per boundary. An error says what to do about it, and a payload that was refused comes
//! back with it.

mod config;
mod dump;
mod engine;
mod handlers;
mod zmtp;

use std::fmt;

use bytes::Bytes;

pub use self::{config::*, dump::*, engine::*, handlers::*, zmtp::*};
use crate::wire::{Codec, Reason};

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

/// An endpoint that the engine cannot serve, or a socket that it cannot make.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Somebody else listens there.
    #[error(
        "{endpoint} is in use: stop what listens there, or listen at another one (tcp port 0: any \
         free port)"
    )]
    InUse {
        /// What was to be bound.
        endpoint: String,
    },
    /// The address is not this machine's, or the process may not bind it.
    #[error("cannot listen at {endpoint}: {why}")]
    Listen {
        /// What was to be bound.
        endpoint: String,
        /// The system's words, and a remedy.
        why: String,
    },
    /// The endpoint cannot be connected to, whoever listens there.
    #[error("cannot connect to {endpoint}: {why}")]
    Connect {
        /// What was to be connected to.
        endpoint: String,
        /// The system's words, and a remedy.
        why: String,
    },
    /// The system refuses another socket or descriptor.
    #[error("cannot make a socket: {0}; raise the limit of open files (`ulimit -n`)")]
    Socket(String),
}

/// A message that was not accepted: why, and its payload back.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("not sent: {why}")]
pub struct SendError {
    /// Why not.
    pub why: NotSent,
    /// What was to be sent, as it was encoded.
    pub payload: Bytes,
}

impl fmt::Debug for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SendError {{ why: {:?}, payload: {} bytes }}",
            self.why,
            self.payload.len()
        )
    }
}

/// Why a message never left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// A bounded queue is full: the inbox of the shard, or what may wait for this peer.
    #[error(
        "a queue on the way is full; wait for answers, or raise limits.outgoing_messages_max or \
         limits.inbox_capacity"
    )]
    Full,
    /// As many calls as limits.outstanding_max allows wait for their answers.
    #[error("too many calls are outstanding; wait for answers, or raise limits.outstanding_max")]
    Outstanding,
    /// The payload is larger than limits.message_bytes_max.
    #[error("the payload is larger than limits.message_bytes_max")]
    TooLarge,
    /// The deadline passed while the message waited for a connection.
    #[error("no connection to the peer within the deadline; does it listen there?")]
    Deadline,
    /// The connection was lost before the message was given to it.
    #[error("the connection was lost first")]
    ConnectionLost,
    /// The peer has said that it is stopping.
    #[error("the peer is draining")]
    Draining,
    /// The peer is one that connects to this process, and has no connection to it now.
    #[error("the peer is not connected; send again when it is")]
    NotConnected,
    /// The connection could not be made at all.
    #[error("the connection could not be made; the log says why")]
    Unconnectable,
    /// The peer handle was closed, or the runtime has stopped.
    #[error("the runtime has stopped, or the peer was closed")]
    Closed,
}

/// A call that did not come to its reply. It is told once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The peer refused the message, or its handler failed.
    #[error("nack: {reason}: {text}")]
    Nack {
        /// Which.
        reason: Reason,
        /// The peer's words, for people.
        text: String,
    },
    /// The message never left; the handler did not run.
    #[error(transparent)]
    NotSent(#[from] SendError),
    /// The message was sent and no answer came: the handler ran zero times or once.
    #[error("indeterminate: {0}")]
    Indeterminate(Indeterminate),
    /// The reply came, and is not what the caller expects.
    #[error("the reply cannot be read: {0}")]
    Reply(#[from] CodecError),
}

/// Why nobody can say whether a message was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Indeterminate {
    /// The connection died with the answer outstanding.
    #[error("the connection was lost with the answer outstanding")]
    ConnectionLost,
    /// The deadline passed with the answer outstanding.
    #[error("the deadline passed with the answer outstanding")]
    Deadline,
    /// This runtime stopped with the answer outstanding.
    #[error("this runtime stopped with the answer outstanding")]
    Stopped,
}

/// What a handler returns when it fails; its text reaches the caller in a nack.
///
/// Whatever implements [`std::error::Error`] becomes one by `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerError(String);

impl HandlerError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// A set of handlers that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Registered twice.
    #[error("handler {name:?} is registered twice; give one of them another name")]
    Twice {
        /// The name.
        name: String,
    },
    /// Two names with one key.
    #[error(
        "handlers {name:?} and {other:?} have the same key {key}; give one of them another name"
    )]
    Collision {
        /// The second name.
        name: String,
        /// The first.
        other: String,
        /// The key of both.
        key: String,
    },
    /// A name that belongs to corelane.
    #[error("handler {name:?}: names that begin with an underscore are reserved; choose another")]
    Reserved {
        /// The name.
        name: String,
    },
    /// Its messages are to run on a shard that is not there.
    #[error(
        "handler {name:?} runs on shard {shard}, but there are {shards}: name one of 0 to \
         {shards}-1, or `on_last_shard`"
    )]
    NoSuchShard {
        /// The handler's name.
        name: String,
        /// Which shard.
        shard: usize,
        /// How many there are.
        shards: usize,
    },
    /// `ordered_per_peer` of a handler that is not spawned.
    #[error(
        "handler {name:?}: `ordered_per_peer` is for spawned handlers; leave it out, or make it \
         `spawned`"
    )]
    NotSpawned {
        /// The handler's name.
        name: String,
    },
    /// No name, or too long a one.
    #[error("handler {name:?}: a name takes 1 to {bytes_max} bytes")]
    Length {
        /// The name.
        name: String,
        /// The longest.
        bytes_max: usize,
    },
}

/// Why a runtime did not start. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(Box<ConfigError>),
    /// The handlers cannot be served together.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A shard's endpoint cannot be served.
    #[error("shard {shard}: {cause}")]
    Engine {
        /// Which shard.
        shard: usize,
        /// Why.
        cause: EngineError,
    },
    /// The kernel or a sandbox refuses io_uring, on which shards park.
    #[error("io_uring is refused: {0}")]
    IoUring(IoUringRefusal),
    /// The kernel's io_uring lacks what shards need.
    #[error("the kernel's io_uring is too old: shards need Linux 5.8 or later")]
    OldKernel,
    /// Too little memory may be locked for io_uring.
    #[error(
        "only {bytes} bytes of memory may be locked, and io_uring takes {bytes_min}: raise it with \
         `ulimit -l {}`, LimitMEMLOCK= in a systemd unit, or --ulimit memlock= in a container",
        bytes_min >> 10
    )]
    Memlock {
        /// The limit.
        bytes: u64,
        /// What it takes.
        bytes_min: u64,
    },
    /// Too few descriptors are left for the shards' rings and sockets; libzmq aborts and glommio
    /// panics when they run out of them at start.
    #[error(
        "only {left} more files may be open, and the shards may take {needed} to start: raise the \
         limit with `ulimit -n`, LimitNOFILE= in a systemd unit, or --ulimit nofile= in a container"
    )]
    Descriptors {
        /// The limit, less what is open.
        left: u64,
        /// What it may take, before the first connection.
        needed: u64,
    },
    /// A shard's thread or executor could not be made.
    #[error("shard {shard} could not start: {why}")]
    Shard {
        /// Which shard.
        shard: usize,
        /// What the system or glommio says.
        why: String,
    },
    /// A handler is blocking, and the configuration allows no thread for it.
    #[error(
        "{at}: is 0, and handler {handler:?} is blocking; allow at least one thread, or remove the \
         line to use the default"
    )]
    NoThreads {
        /// Where the configuration says so.
        at: ConfigPlace,
        /// The first such handler.
        handler: String,
    },
    /// A shard's memory is to come from its own node alone, and the kernel refuses.
    #[error(
        "shard {shard}: its memory cannot be bound to NUMA node {node}: {refusal}; or set \
         placement.memory = \"local\""
    )]
    Memory {
        /// Which shard.
        shard: usize,
        /// The node of its CPU.
        node: usize,
        /// What was answered.
        refusal: MemoryRefusal,
    },
    /// A thread could not be made.
    #[error(
        "cannot start a thread: {0}; raise the limit of processes (`ulimit -u`), or lower \
         blocking.threads"
    )]
    Thread(std::io::Error),
    /// The directory for dumps cannot be used.
    #[error(transparent)]
    Dump(#[from] DumpError),
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        Self::Config(Box::new(error))
    }
}

/// Why the kernel sets no memory policy, and what helps.
#[derive(Debug, thiserror::Error)]
pub enum MemoryRefusal {
    /// EPERM or EACCES.
    #[error(
        "permission denied; allow set_mempolicy in the container's seccomp profile (Docker's does \
         with --cap-add SYS_NICE)"
    )]
    Forbidden,
    /// ENOSYS.
    #[error("the kernel has no memory policies; use one that is built with CONFIG_NUMA")]
    Missing,
    /// EINVAL.
    #[error(
        "the node has no memory that this process may use; widen its cpuset.mems, or place shards \
         on nodes that have some"
    )]
    NoMemory,
    /// Anything else.
    #[error("{0}")]
    Other(std::io::Error),
}

impl From<std::io::Error> for MemoryRefusal {
    fn from(error: std::io::Error) -> Self {
        use rustix::io::Errno;
        match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::ACCESS) => Self::Forbidden,
            Some(Errno::NOSYS) => Self::Missing,
            Some(Errno::INVAL) => Self::NoMemory,
            _ => Self::Other(error),
        }
    }
}

/// What was answered to the attempt to make an io_uring, and what helps.
#[derive(Debug, thiserror::Error)]
pub enum IoUringRefusal {
    /// EPERM or EACCES.
    #[error(
        "permission denied; allow it with `sysctl kernel.io_uring_disabled=0`, or in the \
         container's seccomp profile"
    )]
    Forbidden,
    /// ENOSYS.
    #[error(
        "the kernel or sandbox has none; use Linux 5.8 or later, or a sandbox that passes it \
         through"
    )]
    Missing,
    /// ENOMEM.
    #[error("out of memory to lock; raise it with `ulimit -l`, or free some")]
    NoMemory,
    /// EMFILE or ENFILE.
    #[error("too many open files; raise the limit with `ulimit -n`")]
    NoDescriptors,
    /// Anything else.
    #[error("{0}")]
    Other(std::io::Error),
}

impl From<std::io::Error> for IoUringRefusal {
    fn from(error: std::io::Error) -> Self {
        use rustix::io::Errno;
        match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::ACCESS) => Self::Forbidden,
            Some(Errno::NOSYS) => Self::Missing,
            Some(Errno::NOMEM) => Self::NoMemory,
            Some(Errno::MFILE | Errno::NFILE) => Self::NoDescriptors,
            _ => Self::Other(error),
        }
    }
}
