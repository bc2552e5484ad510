//! The sockets of the floors: system calls, and a bound on how long anybody waits.

use std::{
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use rustix::{
    io::{Errno, Result},
    net::{
        AddressFamily, RecvFlags, SendFlags, Shutdown, SocketType, connect, recv, send, shutdown,
        socket,
        sockopt::{Timeout, set_socket_timeout, set_tcp_congestion, set_tcp_nodelay},
    },
};

use crate::axes::Waits;

/// Longer than any stall of a machine that works; nobody waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// Misses of a spinning loop between two looks at the clock.
const MISSES: u32 = 1 << 12;

/// One end of a stream.
#[derive(Debug)]
pub(crate) struct Wire {
    fd: OwnedFd,
    waits: Waits,
}

/// Two ends of a tcp connection over loopback. Without a name, the congestion control is the
/// machine's default.
pub(crate) fn tcp_pair(congestion: Option<&str>, waits: Waits) -> std::io::Result<(Wire, Wire)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    // Before there is a connection: once BBR has begun with one, its pacing stays when another
    // congestion control takes over. Accepted sockets inherit the listener's.
    if let Some(name) = congestion {
        set_tcp_congestion(&listener, name)?;
        set_tcp_congestion(&client, name)?;
    }
    connect(&client, &listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    set_tcp_nodelay(&client, true)?;
    set_tcp_nodelay(&server, true)?;
    Ok((Wire::new(client, waits)?, Wire::new(server.into(), waits)?))
}

/// Two ends of a Unix stream.
pub(crate) fn unix_pair(waits: Waits) -> std::io::Result<(Wire, Wire)> {
    let (client, server) = UnixStream::pair()?;
    Ok((
        Wire::new(client.into(), waits)?,
        Wire::new(server.into(), waits)?,
    ))
}

/// Whether a socket may use this congestion control.
pub(crate) fn is_congestion_allowed(name: &str) -> bool {
    socket(AddressFamily::INET, SocketType::STREAM, None)
        .and_then(|socket| set_tcp_congestion(socket, name))
        .is_ok()
}

impl Wire {
    fn new(fd: OwnedFd, waits: Waits) -> Result<Self> {
        set_socket_timeout(&fd, Timeout::Recv, Some(PATIENCE))?;
        set_socket_timeout(&fd, Timeout::Send, Some(PATIENCE))?;
        Ok(Self { fd, waits })
    }

    pub(crate) fn waits(&self) -> Waits {
        self.waits
    }

    /// What has come, without waiting; `None` for nothing, 0 for the end of the stream.
    pub(crate) fn try_recv(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match recv(&self.fd, buffer, RecvFlags::DONTWAIT) {
            Ok((bytes, _)) => Ok(Some(bytes)),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What goes out without waiting.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> Result<usize> {
        match send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN) => Ok(0),
            sent => sent,
        }
    }

    /// Waits for something to come; 0 is the end of the stream.
    pub(crate) fn recv(&self, buffer: &mut [u8]) -> Result<usize> {
        if self.waits == Waits::Park {
            return recv(&self.fd, buffer, RecvFlags::empty()).map(|(bytes, _)| bytes);
        }
        let mut patience = Patience::default();
        loop {
            if let Some(bytes) = self.try_recv(buffer)? {
                return Ok(bytes);
            }
            patience.miss()?;
        }
    }

    /// Fills the buffer; false at the end of the stream.
    pub(crate) fn recv_all(&self, buffer: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.recv(&mut buffer[filled..])? {
                0 => return Ok(false),
                bytes => filled += bytes,
            }
        }
        Ok(true)
    }

    pub(crate) fn send_all(&self, mut bytes: &[u8]) -> Result<()> {
        let mut patience = Patience::default();
        while !bytes.is_empty() {
            let sent = match self.waits {
                Waits::Park => send(&self.fd, bytes, SendFlags::NOSIGNAL)?,
                Waits::Spin => self.try_send(bytes)?,
            };
            if sent == 0 {
                patience.miss()?;
            }
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// The other end will read the end of the stream.
    pub(crate) fn end(&self) {
        // A stream that is broken already has ended too.
        let _ = shutdown(&self.fd, Shutdown::Both);
    }
}

/// Ends a spinning wait that nothing will end.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    misses: u32,
    since: Option<Instant>,
}

impl Patience {
    pub(crate) fn miss(&mut self) -> Result<()> {
        self.misses += 1;
        if self.misses.is_multiple_of(MISSES) {
            let since = *self.since.get_or_insert_with(Instant::now);
            if since.elapsed() > PATIENCE {
                return Err(Errno::TIMEDOUT);
            }
        }
        Ok(())
    }
}
