//! Binding: what libzmq would do silently or unsafely is checked here first.

use std::{
    fs::{self, DirBuilder, Permissions},
    io::ErrorKind,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use crate::{
    config::{Endpoint, Host},
    error::EngineError,
};

const OWNER_ONLY_DIRECTORY: u32 = 0o700;
const OWNER_ONLY_SOCKET: u32 = 0o600;

/// Binds a socket to an endpoint and returns the one that was really bound. Blocks only for file
/// system calls.
pub(super) fn bind(socket: &zmq::Socket, at: &Endpoint) -> Result<Endpoint, EngineError> {
    if let Some(path) = at.ipc_path() {
        prepare_path(at, path)?;
    }
    bind_unprepared(socket, at)?;
    if let Some(path) = at.ipc_path() {
        let owner_only = Permissions::from_mode(OWNER_ONLY_SOCKET);
        fs::set_permissions(path, owner_only).map_err(|error| refuse(at, error.to_string()))?;
    }
    let bound = socket.get_last_endpoint().ok().and_then(Result::ok);
    bound
        .and_then(|bound| bound.trim_end_matches('\0').parse().ok())
        .map(canonical)
        .ok_or_else(|| refuse(at, "libzmq does not say what it bound".to_owned()))
}

/// The file of an ipc socket, which libzmq leaves behind. Dropping this removes it, unless somebody
/// else's is there by now; to be dropped while the socket still listens, when nobody takes it for
/// stale.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl SocketFile {
    /// The file of this endpoint, if it has one.
    pub(super) fn of(bound: &Endpoint) -> Option<Self> {
        let path = bound.ipc_path()?.to_owned();
        let file = identify(&path)?;
        Some(Self { path, file })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identify(&self.path) == Some(self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a socket");
        }
    }
}

fn identify(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
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
