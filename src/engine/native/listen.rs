//! Listening and accepting.

use std::{net::SocketAddr, os::fd::OwnedFd, time::Duration};

use quanta::Instant;
use rustix::{
    io::Errno,
    net::{SocketFlags, accept_with},
};

use super::{
    poller::{Interest, Poller, Token},
    socket::{self, Address},
    user::{self, UidOf},
};
use crate::{
    config::{Endpoint, Host},
    engine::socket_file::{self, SocketFile},
    error::EngineError,
};

/// How long accepting rests after the system refused a descriptor: trying again at once would only
/// keep the shard busy.
const REST: Duration = Duration::from_millis(100);

pub(super) struct Listener {
    /// Before the socket, so that it goes before nobody listens.
    _file: Option<SocketFile>,
    socket: OwnedFd,
    token: Token,
    is_tcp: bool,
    /// Whether the poller tells of connections.
    is_watched: bool,
    rests_until: Option<Instant>,
}

/// What an attempt to accept came to.
pub(super) enum Accepted {
    Socket(OwnedFd),
    /// The peer may not connect, or has gone again.
    Refused,
    /// There is nobody.
    None,
}

impl Listener {
    /// Listens here, and says where that really is. Blocks only for file system calls.
    pub(super) fn new(at: &Endpoint, number: u32) -> Result<(Self, Endpoint), EngineError> {
        let address = Address::of(at).ok_or_else(|| {
            socket_file::refuse(
                at,
                "the host is a name that is not resolved, or the path too long",
            )
        })?;
        if let Some(path) = at.ipc_path() {
            socket_file::prepare_path(at, path)?;
        }
        let socket = socket::listen_at(&address).map_err(|errno| explain(at, errno))?;
        if let Some(path) = at.ipc_path() {
            socket_file::restrict(at, path)?;
        }
        let bound = bound_endpoint(at, &socket);
        let listener = Self {
            _file: SocketFile::of(&bound),
            socket,
            token: Token::Listener(number),
            is_tcp: address.is_tcp(),
            is_watched: false,
            rests_until: None,
        };
        Ok((listener, bound))
    }

    /// Accepts one connection, if there is one.
    pub(super) fn accept(&mut self, now: Instant, uid_of: UidOf) -> Accepted {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            match accept_with(&self.socket, flags) {
                Ok(socket) if self.is_tcp => {
                    socket::tune(&socket);
                    return Accepted::Socket(socket);
                }
                Ok(socket) => match user::check(&socket, uid_of) {
                    Ok(()) => return Accepted::Socket(socket),
                    Err(why) => {
                        tracing::warn!("refused an ipc connection: {why}");
                        return Accepted::Refused;
                    }
                },
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Accepted::None,
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    tracing::error!(%errno, "cannot accept a connection; raise `ulimit -n`");
                    self.rests_until = Some(now + REST);
                    return Accepted::None;
                }
                // The connection has gone before it was accepted, or the network has.
                Err(_) => return Accepted::Refused,
            }
        }
    }

    /// When accepting goes on, if it rests.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.rests_until
    }

    /// Has the poller tell of connections, or not: while it rests, and while too many are in their
    /// handshake.
    pub(super) fn watch(&mut self, poller: &Poller, now: Instant, has_room: bool) {
        if self.rests_until.is_some_and(|until| until <= now) {
            self.rests_until = None;
        }
        let wanted = has_room && self.rests_until.is_none();
        if wanted == self.is_watched {
            return;
        }
        let changed = match wanted {
            true => poller.add(&self.socket, self.token, Interest::READABLE),
            false => poller.remove(&self.socket),
        };
        match changed {
            Ok(()) => self.is_watched = wanted,
            Err(errno) => {
                tracing::error!(%errno, "cannot watch a listening socket; trying again");
                // Nothing else would wake a shard that parks.
                self.rests_until = Some(now + REST);
            }
        }
    }
}

fn bound_endpoint(at: &Endpoint, socket: &OwnedFd) -> Endpoint {
    let bound = rustix::net::getsockname(socket).ok();
    match (at, bound.and_then(|any| SocketAddr::try_from(any).ok())) {
        (Endpoint::Tcp { .. }, Some(address)) => Endpoint::Tcp {
            host: Host::Address(address.ip()),
            port: address.port(),
        },
        _ => at.clone(),
    }
}

fn explain(at: &Endpoint, errno: Errno) -> EngineError {
    match errno {
        Errno::ADDRINUSE => EngineError::InUse {
            endpoint: at.to_string(),
        },
        Errno::ADDRNOTAVAIL | Errno::NODEV => socket_file::refuse(
            at,
            "the address is none of this machine's (`ip address` lists them)",
        ),
        Errno::ACCESS | Errno::PERM => socket_file::refuse(
            at,
            "permission denied: choose a port above 1023, or another directory",
        ),
        Errno::MFILE | Errno::NFILE => EngineError::Socket(errno.to_string()),
        errno => socket_file::refuse(at, errno.to_string()),
    }
}
