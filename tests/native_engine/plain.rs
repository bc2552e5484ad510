//! A peer that is a socket and ZMTP's bytes, written by hand: it shares no mistake with the engine,
//! and does whatever a peer should not.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
};

use corelane::{
    config::Endpoint,
    wire::{Header, Kind},
};

pub(crate) const MORE: u8 = 1;
pub(crate) const LONG: u8 = 2;
pub(crate) const COMMAND: u8 = 4;

/// A greeting of ZMTP 3.`minor`, NULL.
pub(crate) fn greeting(minor: u8) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[0] = 0xff;
    bytes[9] = 0x7f;
    bytes[10] = 3;
    bytes[11] = minor;
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

/// READY of a socket of this type.
pub(crate) fn ready(socket_type: &str) -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type".to_vec();
    body.extend((socket_type.len() as u32).to_be_bytes());
    body.extend(socket_type.as_bytes());
    frame(COMMAND, &body)
}

/// All that a DEALER says before its messages.
pub(crate) fn introduction() -> Vec<u8> {
    [greeting(1), ready("DEALER")].concat()
}

pub(crate) fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = head(flags, body.len() as u64);
    bytes.extend(body);
    bytes
}

/// A frame's flags and length, of whatever length.
pub(crate) fn head(flags: u8, length: u64) -> Vec<u8> {
    match u8::try_from(length) {
        Ok(short) => vec![flags, short],
        Err(_) => [&[flags | LONG][..], &length.to_be_bytes()].concat(),
    }
}

/// A message of two frames.
pub(crate) fn message(correlation: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(correlation);
    bytes.extend(frame(0, payload));
    bytes
}

/// The first frame of a message.
pub(crate) fn header(correlation: u64) -> Vec<u8> {
    frame(MORE, &Header::new(Kind::Request, correlation).encode())
}

pub(crate) fn ping(ttl_ds: u16, context: &[u8]) -> Vec<u8> {
    let mut body = b"\x04PING".to_vec();
    body.extend(ttl_ds.to_be_bytes());
    body.extend(context);
    frame(COMMAND, &body)
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One connection; it never blocks.
pub(crate) struct Plain {
    stream: Stream,
    /// What has arrived; up to `looked_at` it is done with.
    arrived: Vec<u8>,
    looked_at: usize,
    /// What is to leave; up to `sent` it has.
    outgoing: Vec<u8>,
    sent: usize,
    is_greeted: bool,
    pub(crate) is_closed: bool,
}

impl Plain {
    /// Connected, and silent.
    pub(crate) fn connect(to: &Endpoint) -> Self {
        Self::of(match to.ipc_path() {
            Some(path) => Stream::Unix(UnixStream::connect(path).expect("connects")),
            None => {
                let address = to.socket_addr().expect("an address");
                Stream::Tcp(TcpStream::connect(address).expect("connects"))
            }
        })
    }

    /// The accepting side of a connection.
    pub(crate) fn accepted(stream: TcpStream) -> Self {
        Self::of(Stream::Tcp(stream))
    }

    pub(crate) fn of_unix(stream: UnixStream) -> Self {
        Self::of(Stream::Unix(stream))
    }

    /// Connected and introduced.
    pub(crate) fn dealer(to: &Endpoint) -> Self {
        let mut plain = Self::connect(to);
        plain.write(&introduction());
        plain
    }

    fn of(stream: Stream) -> Self {
        match &stream {
            Stream::Tcp(tcp) => {
                tcp.set_nodelay(true).expect("a socket");
                tcp.set_nonblocking(true).expect("a socket");
            }
            Stream::Unix(unix) => unix.set_nonblocking(true).expect("a socket"),
        }
        Self {
            stream,
            arrived: Vec::new(),
            looked_at: 0,
            outgoing: Vec::new(),
            sent: 0,
            is_greeted: false,
            is_closed: false,
        }
    }

    /// Writes all of it, now or with later calls.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.outgoing.extend(bytes);
        self.push(usize::MAX);
    }

    /// Writes so much of what waits. Whether all has left.
    pub(crate) fn push(&mut self, bytes_max: usize) -> bool {
        let waiting = &self.outgoing[self.sent..];
        let waiting = &waiting[..waiting.len().min(bytes_max)];
        let written = match &mut self.stream {
            Stream::Tcp(tcp) => tcp.write(waiting),
            Stream::Unix(unix) => unix.write(waiting),
        };
        match written {
            Ok(written) => self.sent += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.is_closed = true,
        }
        if self.sent == self.outgoing.len() {
            self.outgoing.clear();
            self.sent = 0;
        }
        self.outgoing.is_empty()
    }

    /// Queues bytes for [`push`](Self::push).
    pub(crate) fn queue(&mut self, bytes: &[u8]) {
        self.outgoing.extend(bytes);
    }

    /// Bytes that wait to be pushed.
    pub(crate) fn waiting(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// Reads what is there.
    pub(crate) fn read(&mut self) -> &mut Self {
        let mut buffer = [0; 64 << 10];
        loop {
            match self.read_once(&mut buffer) {
                Ok(0) => self.is_closed = true,
                Ok(bytes) => {
                    self.arrived.extend(&buffer[..bytes]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.is_closed = true,
            }
            return self;
        }
    }

    fn read_once(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(tcp) => tcp.read(buffer),
            Stream::Unix(unix) => unix.read(buffer),
        }
    }

    /// Whether anything has arrived that was not looked at.
    pub(crate) fn has_arrived(&self) -> bool {
        self.arrived.len() > self.looked_at
    }

    /// The next whole frame, with its flags.
    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let arrived = &self.arrived[self.looked_at..];
        let &flags = arrived.first()?;
        let (at, length) = if flags & LONG == 0 {
            (2, u64::from(*arrived.get(1)?))
        } else {
            let length = arrived.get(1..9)?.try_into().expect("eight bytes");
            (9, u64::from_be_bytes(length))
        };
        let end = at + length as usize;
        let body = arrived.get(at..end)?.to_vec();
        self.looked_at += end;
        Some((flags & !LONG, body))
    }

    /// Reads, and takes all whole messages and commands that have arrived behind the greeting.
    pub(crate) fn take_all(&mut self) -> Vec<Said> {
        self.read();
        if !self.is_greeted {
            if self.arrived.len() < 64 {
                return Vec::new();
            }
            let greeting: Vec<u8> = self.arrived.drain(..64).collect();
            assert_eq!((greeting[0], greeting[9], greeting[10]), (0xff, 0x7f, 3));
            self.is_greeted = true;
        }
        let mut all = Vec::new();
        let mut whole = self.looked_at;
        while let Some((flags, body)) = self.take_frame() {
            if flags & COMMAND != 0 {
                all.push(Said::Command(body));
            } else {
                assert_eq!(flags, MORE, "a header comes first");
                let header = Header::decode(&body).expect("a header");
                let Some((0, payload)) = self.take_frame() else {
                    // Its payload is not there yet.
                    break;
                };
                all.push(Said::Message(header.correlation, payload));
            }
            whole = self.looked_at;
        }
        self.arrived.drain(..whole);
        self.looked_at = 0;
        all
    }
}

/// What the engine has sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Said {
    Message(u64, Vec<u8>),
    Command(Vec<u8>),
}

impl Said {
    pub(crate) fn is_command(&self, name: &str) -> bool {
        match self {
            Said::Command(body) => body[1..].starts_with(name.as_bytes()),
            Said::Message(..) => false,
        }
    }
}
