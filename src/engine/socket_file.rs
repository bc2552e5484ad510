//! The file of an ipc socket: who may enter, what is stale, and what is left behind.

use std::{
    fs::{self, DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use crate::{config::Endpoint, error::EngineError};

const OWNER_ONLY_DIRECTORY: u32 = 0o700;
const OWNER_ONLY_SOCKET: u32 = 0o600;

/// Makes the directory, and clears away a socket that nobody listens on any more. One that
/// somebody does is in use.
pub(super) fn prepare_path(at: &Endpoint, path: &Path) -> Result<(), EngineError> {
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
    match is_listened_on(path) {
        Ok(true) => Err(EngineError::InUse {
            endpoint: at.to_string(),
        }),
        Ok(false) => {
            tracing::info!(endpoint = %at, "removing a stale socket that nobody listens on");
            fs::remove_file(path)
                .map_err(|error| refuse(at, format!("cannot remove a stale socket: {error}")))
        }
        Err(errno) => Err(refuse(at, format!("a socket is there already: {errno}"))),
    }
}

/// Does not wait for whoever listens: it may hang, with as many connections waiting as it takes.
fn is_listened_on(path: &Path) -> Result<bool, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Lets nobody but the owner connect to a socket that was just bound.
pub(super) fn restrict(at: &Endpoint, path: &Path) -> Result<(), EngineError> {
    let owner_only = Permissions::from_mode(OWNER_ONLY_SOCKET);
    fs::set_permissions(path, owner_only).map_err(|error| refuse(at, error.to_string()))
}

/// The file of an ipc socket, which outlives the socket. Dropping this removes it, unless somebody
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

pub(super) fn refuse(at: &Endpoint, why: impl Into<String>) -> EngineError {
    EngineError::Listen {
        endpoint: at.to_string(),
        why: why.into(),
    }
}
