use super::Properties;
use super::frame::{COMMAND, LONG, SHORT_BODY_BYTES_MAX};
use crate::error::ZmtpError;

pub(super) const READY: &[u8] = b"READY";
const ERROR: &[u8] = b"ERROR";
const PING: &[u8] = b"PING";
const PONG: &[u8] = b"PONG";

/// The longest context of a heartbeat.
const CONTEXT_BYTES_MAX: usize = 16;
/// The longest reason of an ERROR, whose length takes one byte.
const REASON_BYTES_MAX: usize = 255;

/// A command of a peer, from its name on.
#[derive(Clone, Debug)]
pub enum Command<'a> {
    /// The peer says what it is. Its properties are not yet looked at.
    Ready(Properties<'a>),
    /// The peer refuses the connection, and says why; at most 255 bytes.
    Error {
        /// Its words: any bytes.
        reason: &'a [u8],
    },
    /// The peer wants to hear a PONG.
    Ping {
        /// Tenths of a second for which the peer asks to be thought alive; 0: it does not ask.
        ttl_ds: u16,
        /// What the PONG must carry; at most 16 bytes.
        context: &'a [u8],
    },
    /// The answer to a PING of ours.
    Pong {
        /// What the PING carried; at most 16 bytes.
        context: &'a [u8],
    },
    /// A command that means nothing to us.
    Other {
        /// Its name: any bytes, at least one.
        name: &'a [u8],
    },
}

impl<'a> Command<'a> {
    /// Reads a command frame's body. It allocates nothing.
    pub fn decode(body: &'a [u8]) -> Result<Self, ZmtpError> {
        let (name, data) = body
            .split_first()
            .and_then(|(&bytes, rest)| rest.split_at_checked(usize::from(bytes)))
            .filter(|(name, _)| !name.is_empty())
            .ok_or(ZmtpError::CommandName { bytes: body.len() })?;
        Ok(match name {
            PING => {
                let bytes = data.len();
                let (ttl, context) = data
                    .split_first_chunk()
                    .ok_or(ZmtpError::ShortPing { bytes })?;
                Command::Ping {
                    ttl_ds: u16::from_be_bytes(*ttl),
                    context: checked_context(context)?,
                }
            }
            PONG => Command::Pong {
                context: checked_context(data)?,
            },
            READY => Command::Ready(Properties::of(data)),
            ERROR => Command::Error {
                reason: data
                    .split_first()
                    .and_then(|(&bytes, rest)| rest.get(..usize::from(bytes)))
                    .ok_or(ZmtpError::ShortError)?,
            },
            name => Command::Other { name },
        })
    }
}

fn checked_context(context: &[u8]) -> Result<&[u8], ZmtpError> {
    let bytes = context.len();
    match bytes {
        0..=CONTEXT_BYTES_MAX => Ok(context),
        _ => Err(ZmtpError::LongContext { bytes }),
    }
}

/// Writes a whole PING: the peer shall answer it, and think us alive for this long (tenths of a
/// second; 0: as long as it likes). Of the context only the first 16 bytes go.
pub fn write_ping(ttl_ds: u16, context: &[u8], out: &mut Vec<u8>) {
    write_command(PING, &[&ttl_ds.to_be_bytes(), context_of(context)], out);
}

/// Writes a whole PONG, with the context of the PING that it answers.
pub fn write_pong(context: &[u8], out: &mut Vec<u8>) {
    write_command(PONG, &[context_of(context)], out);
}

/// Writes a whole ERROR. The reason is cut at 255 bytes, and not within a character.
pub fn write_error(reason: &str, out: &mut Vec<u8>) {
    let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
    write_command(ERROR, &[&[reason.len() as u8], reason.as_bytes()], out);
}

fn context_of(context: &[u8]) -> &[u8] {
    &context[..context.len().min(CONTEXT_BYTES_MAX)]
}

/// Writes a command's frame: its name, which is one of ours, and the parts of its data.
pub(super) fn write_command(name: &[u8], data: &[&[u8]], out: &mut Vec<u8>) {
    let body_bytes = 1 + name.len() + data.iter().map(|part| part.len()).sum::<usize>();
    if body_bytes <= SHORT_BODY_BYTES_MAX {
        out.extend_from_slice(&[COMMAND, body_bytes as u8]);
    } else {
        out.push(COMMAND | LONG);
        out.extend_from_slice(&(body_bytes as u64).to_be_bytes());
    }
    out.push(name.len() as u8);
    out.extend_from_slice(name);
    for part in data {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame_head;
    use super::*;

    /// The body of the one frame that `write` writes.
    fn body(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        let head = frame_head(&out).unwrap().unwrap();
        assert!(head.command && !head.more);
        assert_eq!(head.head_bytes + head.body_bytes, out.len());
        out.split_off(head.head_bytes)
    }

    #[test]
    fn a_ping_stands_on_the_wire_as_the_rfc_says() {
        let mut out = Vec::new();
        write_ping(0x0102, b"abc", &mut out);
        assert_eq!(out, *b"\x04\x0a\x04PING\x01\x02abc");
        let Ok(Command::Ping { ttl_ds, context }) = Command::decode(&out[2..]) else {
            panic!("no PING");
        };
        assert_eq!((ttl_ds, context), (0x0102, &b"abc"[..]));
    }

    #[test]
    fn a_pong_gives_the_context_back() {
        for bytes in [0, 1, 16] {
            let body = body(|out| write_pong(&vec![7; bytes], out));
            let decoded = Command::decode(&body);
            assert!(matches!(decoded, Ok(Command::Pong { context }) if context == vec![7; bytes]));
        }
    }

    #[test]
    fn short_pings_and_long_contexts_are_refused() {
        for bytes in 0..2 {
            let body = [b"\x04PING", &[0; 2][..bytes]].concat();
            let error = Command::decode(&body).unwrap_err();
            assert_eq!(error, ZmtpError::ShortPing { bytes });
        }
        for start in [&b"\x04PING\0\0"[..], b"\x04PONG"] {
            let body = [start, &[0; 17]].concat();
            let error = Command::decode(&body).unwrap_err();
            assert_eq!(error, ZmtpError::LongContext { bytes: 17 });
        }
        assert_eq!(body(|out| write_ping(0, &[1; 40], out)).len(), 5 + 2 + 16);
        assert_eq!(body(|out| write_pong(&[1; 40], out)).len(), 5 + 16);
    }

    #[test]
    fn reasons_are_cut_to_what_one_byte_tells() {
        for (reason, kept_bytes) in [("", 0), ("no", 2), (&"x".repeat(400), 255)] {
            let body = body(|out| write_error(reason, out));
            let decoded = Command::decode(&body);
            let Ok(Command::Error { reason: read }) = decoded else {
                panic!("{decoded:?}");
            };
            assert_eq!(read, &reason.as_bytes()[..kept_bytes]);
        }
        let body = body(|out| write_error(&"é".repeat(200), out));
        assert_eq!(body.len(), 1 + 5 + 1 + 254);
    }

    #[test]
    fn commands_that_are_cut_short_are_refused() {
        for body in [&b""[..], b"\0", b"\0PING", b"\x05PING", b"\xff"] {
            let bytes = body.len();
            let error = Command::decode(body).unwrap_err();
            assert_eq!(error, ZmtpError::CommandName { bytes });
        }
        for body in [&b"\x05ERROR"[..], b"\x05ERROR\x01", b"\x05ERROR\xffshort"] {
            assert_eq!(Command::decode(body).unwrap_err(), ZmtpError::ShortError);
        }
    }

    #[test]
    fn names_of_other_commands_are_kept() {
        for name in [&b"SUBSCRIBE"[..], b"ready", b"\xff"] {
            let body = body(|out| write_command(name, &[b"data"], out));
            let decoded = Command::decode(&body);
            assert!(matches!(decoded, Ok(Command::Other { name: read }) if read == name));
        }
    }
}
