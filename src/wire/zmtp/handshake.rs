use super::command::{READY, write_command};
use super::greeting::{GREETING_BYTES, read_greeting, write_greeting};
use super::metadata::write_property;
use super::{Command, Properties, frame_head, write_error};
use crate::error::ZmtpError;

const SOCKET_TYPE: &str = "Socket-Type";
const IDENTITY: &str = "Identity";
const IDENTITY_BYTES_MAX: usize = 255;
/// How much of a stranger's words an error carries.
const QUOTED_BYTES_MAX: usize = 32;

/// Which end of a connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It was accepted: we are ROUTER, and the peer must say DEALER.
    Listener,
    /// We connected: we are DEALER, and the peer must say ROUTER.
    Dialer,
}

/// The NULL handshake of one connection, both greetings included.
///
/// Each end sends its greeting at once, and its READY once it has accepted the other's greeting.
/// What has arrived stays in the caller's buffer until it is whole: at most 64 bytes for the
/// greeting, and 9 more than `metadata_bytes_max` for READY.
#[derive(Debug)]
pub struct Handshake {
    role: Role,
    metadata_bytes_max: usize,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Greeting,
    Ready { minor: u8 },
    Done,
}

/// How far a handshake came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// Set once, as the handshake ends. What stands behind `consumed` is for a
    /// [`Splitter`](super::Splitter).
    pub done: Option<Introduction>,
}

/// What a peer said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// It speaks ZMTP 3.`minor`; heartbeats are known from 3.1 on.
    pub minor: u8,
    /// Its socket: what its role asks for.
    pub socket_type: String,
    /// How it wants to be called; mostly empty.
    pub identity: Vec<u8>,
    /// What else it says, in its order: names and values.
    pub properties: Vec<(String, Vec<u8>)>,
}

impl Handshake {
    /// A handshake of which nothing has been sent or read. A READY longer than
    /// `metadata_bytes_max`, its name included, is refused before it is waited for.
    pub fn new(role: Role, metadata_bytes_max: usize) -> Self {
        Self {
            role,
            metadata_bytes_max,
            phase: Phase::Greeting,
        }
    }

    /// Writes what is sent before anything is read: our greeting.
    pub fn open(&self, out: &mut Vec<u8>) {
        write_greeting(out);
    }

    /// Reads what has arrived and is not consumed, and writes to `out` what is to be sent. It
    /// consumes nothing behind the handshake, and nothing at all once that is done.
    ///
    /// An error ends the connection. One that comes after the greeting leaves an ERROR command in
    /// `out`, so that the peer can log why: send it if the socket takes it at once.
    pub fn advance(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Progress, ZmtpError> {
        let mut consumed = 0;
        if let Phase::Greeting = self.phase {
            let Some(minor) = read_greeting(input)? else {
                return Ok(Progress {
                    consumed,
                    done: None,
                });
            };
            consumed = GREETING_BYTES;
            self.phase = Phase::Ready { minor };
            self.write_ready(out);
        }
        let mut done = None;
        if let Phase::Ready { minor } = self.phase {
            let read = self.read_ready(&input[consumed..], minor);
            let read = read.inspect_err(|error| tell_peer(error, out))?;
            if let Some((ready_bytes, introduction)) = read {
                consumed += ready_bytes;
                self.phase = Phase::Done;
                done = Some(introduction);
            }
        }
        Ok(Progress { consumed, done })
    }

    /// libzmq's DEALER sends its identity even when it has none; so do we.
    fn write_ready(&self, out: &mut Vec<u8>) {
        let mut metadata = Vec::new();
        write_property(SOCKET_TYPE, self.role.own().as_bytes(), &mut metadata);
        if self.role == Role::Dialer {
            write_property(IDENTITY, b"", &mut metadata);
        }
        write_command(READY, &[&metadata], out);
    }

    /// The peer's READY and how many bytes it took, once it is whole.
    fn read_ready(
        &self,
        input: &[u8],
        minor: u8,
    ) -> Result<Option<(usize, Introduction)>, ZmtpError> {
        let Some(head) = frame_head(input)? else {
            return Ok(None);
        };
        if !head.command {
            return Err(ZmtpError::MessageBeforeReady);
        }
        if head.body_bytes > self.metadata_bytes_max {
            return Err(ZmtpError::ReadyTooLong {
                bytes: head.body_bytes,
                bytes_max: self.metadata_bytes_max,
            });
        }
        let Some(body) = input[head.head_bytes..].get(..head.body_bytes) else {
            return Ok(None);
        };
        let introduction = match Command::decode(body)? {
            Command::Ready(properties) => self.introduce(properties, minor)?,
            Command::Error { reason } => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                return Err(ZmtpError::Refused { reason });
            }
            Command::Ping { .. } => return Err(before_ready(b"PING")),
            Command::Pong { .. } => return Err(before_ready(b"PONG")),
            Command::Other { name } => return Err(before_ready(name)),
        };
        Ok(Some((head.head_bytes + head.body_bytes, introduction)))
    }

    fn introduce(&self, read: Properties<'_>, minor: u8) -> Result<Introduction, ZmtpError> {
        let expected = self.role.peers();
        let (mut socket_type, mut identity) = (None, None);
        let mut properties = Vec::new();
        for property in read {
            let (name, value) = property?;
            if name.eq_ignore_ascii_case(SOCKET_TYPE) {
                set_once(&mut socket_type, SOCKET_TYPE, value)?;
            } else if name.eq_ignore_ascii_case(IDENTITY) {
                set_once(&mut identity, IDENTITY, value)?;
            } else {
                properties.push((name.to_owned(), value.to_owned()));
            }
        }
        let socket_type = socket_type.ok_or(ZmtpError::NoSocketType { expected })?;
        if socket_type != expected.as_bytes() {
            let found = quoted(socket_type);
            return Err(ZmtpError::SocketType { expected, found });
        }
        let identity = identity.unwrap_or_default();
        let bytes = identity.len();
        if bytes > IDENTITY_BYTES_MAX {
            return Err(ZmtpError::LongIdentity { bytes });
        }
        Ok(Introduction {
            minor,
            socket_type: expected.to_owned(),
            identity: identity.to_owned(),
            properties,
        })
    }
}

impl Role {
    fn own(self) -> &'static str {
        match self {
            Role::Listener => "ROUTER",
            Role::Dialer => "DEALER",
        }
    }

    fn peers(self) -> &'static str {
        match self {
            Role::Listener => Role::Dialer.own(),
            Role::Dialer => Role::Listener.own(),
        }
    }
}

fn set_once<'a>(
    slot: &mut Option<&'a [u8]>,
    name: &'static str,
    value: &'a [u8],
) -> Result<(), ZmtpError> {
    match slot.replace(value) {
        Some(_) => Err(ZmtpError::DuplicateProperty { name }),
        None => Ok(()),
    }
}

fn before_ready(name: &[u8]) -> ZmtpError {
    let name = quoted(name);
    ZmtpError::CommandBeforeReady { name }
}

fn quoted(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(QUOTED_BYTES_MAX)]).into_owned()
}

/// A peer that refused us knows why.
fn tell_peer(error: &ZmtpError, out: &mut Vec<u8>) {
    if !matches!(error, ZmtpError::Refused { .. }) {
        write_error(&error.to_string(), out);
    }
}

#[cfg(test)]
mod tests;
