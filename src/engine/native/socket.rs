//! Making sockets: non-blocking, closed on exec, and tuned for messages that nobody waits to fill.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
        sockopt,
    },
};

use crate::config::Endpoint;

/// Connections that wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// What paces a connection within one host is no help there: BBR, some hosts' default, moves a
/// quarter of what these do over loopback (`docs/performance.md`). The first that the kernel lets
/// us have is taken.
const LOCAL_CONGESTION_CONTROL: [&str; 2] = ["cubic", "reno"];
const PACING_CONGESTION_CONTROL: &str = "bbr";

/// Where a socket is bound or connected to.
#[derive(Clone, Debug)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(SocketAddrUnix),
}

impl Address {
    /// The address of an endpoint whose host is resolved.
    pub(super) fn of(endpoint: &Endpoint) -> Option<Self> {
        if let Some(address) = endpoint.socket_addr() {
            return Some(Self::Tcp(address));
        }
        Self::of_path(endpoint.ipc_path()?).ok()
    }

    fn of_path(path: &Path) -> Result<Self, Errno> {
        SocketAddrUnix::new(path).map(Self::Unix)
    }

    fn family(&self) -> AddressFamily {
        match self {
            Self::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
            Self::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
            Self::Unix(_) => AddressFamily::UNIX,
        }
    }

    /// Whether whatever connects here, or is connected to, is on this host for sure.
    fn is_within_host(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.ip().to_canonical().is_loopback())
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

/// A socket that listens here.
pub(super) fn listen_at(address: &Address) -> Result<OwnedFd, Errno> {
    let socket = new(address)?;
    match address {
        Address::Tcp(address) => {
            sockopt::set_socket_reuseaddr(&socket, true)?;
            if address.is_ipv6() {
                // `[::]` is every interface, as it is to libzmq.
                sockopt::set_ipv6_v6only(&socket, false)?;
            }
            bind(&socket, address)?;
        }
        Address::Unix(address) => bind(&socket, address)?,
    }
    if address.is_within_host() {
        // Accepted sockets begin with it.
        unpace(&socket);
    }
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A socket that is connecting, or has connected.
pub(super) fn connect_to(address: &Address) -> Result<OwnedFd, Errno> {
    let socket = new(address)?;
    if address.is_within_host() {
        unpace(&socket);
    }
    let connected = match address {
        Address::Tcp(address) => connect(&socket, address),
        Address::Unix(address) => connect(&socket, address),
    };
    match connected {
        // An interrupted connect goes on in the background like any other.
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// What a connection's socket is to be like, once it is connected or accepted. Nothing here is
/// needed for it to work, so that what the system refuses is left as it is.
pub(super) fn tune(socket: &OwnedFd) {
    let _ = sockopt::set_tcp_nodelay(socket, true);
    // For hosts that vanish and whose ZMTP has no heartbeats.
    let _ = sockopt::set_socket_keepalive(socket, true);
    if is_within_host(socket) {
        unpace(socket);
    }
}

/// Leaves a congestion control that paces. Before a socket is connected, if it can be: one that
/// was paced keeps its pacing.
fn unpace(socket: &OwnedFd) {
    if sockopt::tcp_congestion(socket).is_ok_and(|it| it == PACING_CONGESTION_CONTROL) {
        let _ = LOCAL_CONGESTION_CONTROL
            .iter()
            .any(|name| sockopt::set_tcp_congestion(socket, name).is_ok());
    }
}

/// Both ends have the same address, or the peer's is a loopback one.
fn is_within_host(socket: impl AsFd) -> bool {
    let address = |any: rustix::net::SocketAddrAny| SocketAddr::try_from(any).ok();
    let peer = rustix::net::getpeername(&socket).ok().flatten();
    let own = rustix::net::getsockname(&socket).ok();
    match (peer.and_then(address), own.and_then(address)) {
        (Some(peer), Some(own)) => peer.ip() == own.ip() || peer.ip().is_loopback(),
        _ => false,
    }
}

fn new(address: &Address) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(address.family(), SocketType::STREAM, flags, None)
}
