//! Binding: what libzmq would do silently or unsafely is checked here first.

use std::{
    fs::{self, DirBuilder, Permissions},
    io::ErrorKind,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use crate::{
    config::{Endpoint, Host},
    error::EngineError,
};

const OWNER_ONLY_DIRECTORY: u32 = 0o700;
const OWNER_ONLY_SOCKET: u32 = 0o600;

/// An endpoint that a socket listens at.
pub(super) struct Bound {
    pub(super) endpoint: Endpoint,
    /// Device and inode of an ipc socket's file: by then somebody else's may be there.
    file: Option<(u64, u64)>,
}

/// Binds a socket to an endpoint; port 0 becomes a free port. Blocks only for file system calls.
pub(super) fn bind(socket: &zmq::Socket, at: &Endpoint) -> Result<Bound, EngineError> {
    if let Some(path) = at.ipc_path() {
        prepare_path(at, path)?;
    }
    bind_unprepared(socket, at)?;
    let bound = socket.get_last_endpoint().ok().and_then(Result::ok);
    let endpoint = bound
        .and_then(|bound| bound.trim_end_matches('\0').parse().ok())
        .map(canonical)
        .ok_or_else(|| refuse(at, "libzmq does not say what it bound"))?;
    let file = at.ipc_path().map(|path| protect(at, path)).transpose()?;
    Ok(Bound { endpoint, file })
}

/// Lets nobody but the owner connect, whatever the directory's mode.
fn protect(at: &Endpoint, path: &Path) -> Result<(u64, u64), EngineError> {
    let owner_only = Permissions::from_mode(OWNER_ONLY_SOCKET);
    fs::set_permissions(path, owner_only)
        .and_then(|()| identity(path))
        .map_err(|error| refuse(at, error.to_string()))
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes the socket's file, which libzmq leaves behind.
impl Drop for Bound {
    fn drop(&mut self) {
        let Some(path) = self.endpoint.ipc_path() else {
            return;
        };
        if self.file.is_some() && identity(path).ok() == self.file {
            let _ = fs::remove_file(path);
        }
    }
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

/// Makes the directory, and clears away a socket that nobody listens on any more. libzmq would
/// unlink even one that somebody does.
fn prepare_path(at: &Endpoint, path: &Path) -> Result<(), EngineError> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        DirBuilder::new()
            .recursive(true)
            .mode(OWNER_ONLY_DIRECTORY)
            .create(directory)
            .map_err(|error| refuse(at, format!("cannot make {}: {error}", directory.display())))?;
    }
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(refuse(
            at,
            "the path is a file that is no socket; remove it or choose another",
        ));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(EngineError::InUse {
            endpoint: at.to_string(),
        }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(endpoint = %at, "removing a stale socket that nobody listens on");
            fs::remove_file(path)
                .map_err(|error| refuse(at, format!("cannot remove a stale socket: {error}")))
        }
        Err(error) => Err(refuse(at, format!("a socket is there already: {error}"))),
    }
}

fn refuse(at: &Endpoint, why: impl Into<String>) -> EngineError {
    EngineError::Listen {
        endpoint: at.to_string(),
        why: why.into(),
    }
}
