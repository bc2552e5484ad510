//! Binding: what libzmq would do silently or unsafely is checked first.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{
    config::{Endpoint, Host},
    engine::socket_file::{prepare_path, refuse, restrict},
    error::EngineError,
};

/// Binds a socket to an endpoint and returns the one that was really bound. Blocks only for file
/// system calls.
pub(super) fn bind(socket: &zmq::Socket, at: &Endpoint) -> Result<Endpoint, EngineError> {
    if let Some(path) = at.ipc_path() {
        prepare_path(at, path)?;
    }
    bind_unprepared(socket, at)?;
    if let Some(path) = at.ipc_path() {
        restrict(at, path)?;
    }
    let bound = socket.get_last_endpoint().ok().and_then(Result::ok);
    bound
        .and_then(|bound| bound.trim_end_matches('\0').parse().ok())
        .map(canonical)
        .ok_or_else(|| refuse(at, "libzmq does not say what it bound".to_owned()))
}

/// Our sockets speak IPv6 too, so libzmq tells an IPv4 address as `[::ffff:…]`, to which a peer
/// without IPv6 cannot connect.
fn canonical(bound: Endpoint) -> Endpoint {
    match bound {
        Endpoint::Tcp {
            host: Host::Address(address),
            port,
        } => Endpoint::Tcp {
            host: Host::Address(address.to_canonical()),
            port,
        },
        other => other,
    }
}

fn bind_unprepared(socket: &zmq::Socket, at: &Endpoint) -> Result<(), EngineError> {
    // The crate `zmq` panics on an errno that its table lacks, and a bind can meet any of the file
    // system's.
    let bound = catch_unwind(AssertUnwindSafe(|| socket.bind(&at.to_string())));
    match bound {
        Ok(Ok(())) => Ok(()),
        Ok(Err(zmq::Error::EADDRINUSE)) => Err(EngineError::InUse {
            endpoint: at.to_string(),
        }),
        Ok(Err(zmq::Error::EADDRNOTAVAIL | zmq::Error::ENODEV)) => Err(refuse(
            at,
            "the address is none of this machine's (`ip address` lists them)",
        )),
        Ok(Err(zmq::Error::EACCES)) => Err(refuse(
            at,
            "permission denied: choose a port above 1023, or another directory",
        )),
        Ok(Err(error)) => Err(refuse(at, error.to_string())),
        Err(_) => Err(refuse(at, "the system refused; see the message above")),
    }
}
