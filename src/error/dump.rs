//! What can go wrong with a dump of histograms.

use std::io;
use std::path::{Path, PathBuf};

/// A dump could not be written or read. Its text names the path and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The directory cannot be made: its parent is not there, or it went away.
    #[error(
        "dump directory {}: it or its parent does not exist; create it, or name \
         another",
        path.display()
    )]
    Missing {
        /// The directory, or the file in it.
        path: PathBuf,
    },
    /// The path, or a part of it, is no directory.
    #[error("dump directory {}: it is a file, or lies under one; name a directory", path.display())]
    NotADirectory {
        /// The directory, or the file in it.
        path: PathBuf,
    },
    /// No permission, or a file system mounted read-only.
    #[error(
        "dump {}: not writable for this process's user; change its owner or mode, \
         or name another directory",
        path.display()
    )]
    NotWritable {
        /// The directory, or the file in it.
        path: PathBuf,
    },
    /// The disk or the quota is full.
    #[error(
        "dump {}: no space is left there; free some, or name a directory \
         elsewhere",
        path.display()
    )]
    Full {
        /// The directory, or the file in it.
        path: PathBuf,
    },
    /// Another failure of the file system while writing.
    #[error("dump {}: cannot be written: {source}", path.display())]
    Write {
        /// The directory, or the file in it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A histogram cannot be represented in the log.
    #[error(
        "dump {}: a histogram cannot be encoded: {reason}; this interval is not in \
         the dump",
        path.display()
    )]
    Encode {
        /// The file.
        path: PathBuf,
        /// What hdrhistogram said.
        reason: String,
    },
    /// A file to read cannot be opened.
    #[error("{}: cannot be opened: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Reading a file failed.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is no line of an interval log, damaged, cut short or too large.
    #[error("{}, line {line}: {reason}; remove the line to read the rest", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl DumpError {
    /// Sorts a failed write by what its remedy is.
    pub(crate) fn writing(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => DumpError::Missing { path },
            io::ErrorKind::NotADirectory => DumpError::NotADirectory { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                DumpError::NotWritable { path }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DumpError::Full { path },
            _ => DumpError::Write { path, source },
        }
    }
}
