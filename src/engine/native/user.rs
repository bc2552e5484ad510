//! Whose process is at the other end of an ipc connection.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    net::sockopt,
    process::{Uid, geteuid},
};

use crate::error::Lost;

/// Tells whose process is at the other end.
pub(super) type UidOf = fn(&OwnedFd) -> Result<Uid, Errno>;

/// By the kernel's record of who called `connect`, or `listen` if it was we who connected: no end
/// can say otherwise.
pub(super) fn uid_of(socket: &OwnedFd) -> Result<Uid, Errno> {
    Ok(sockopt::socket_peercred(socket)?.uid)
}

/// Whether that is this process's user, or root, who may do anything anyway.
pub(super) fn check(socket: &OwnedFd, uid_of: UidOf) -> Result<(), Lost> {
    let (uid, own) = match uid_of(socket) {
        Ok(uid) => (uid, geteuid()),
        Err(errno) => return Err(Lost::Broken(errno.to_string())),
    };
    match uid == own || uid.is_root() {
        true => Ok(()),
        false => Err(Lost::OtherUser {
            uid: uid.as_raw(),
            own: own.as_raw(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read},
        os::unix::net::{UnixListener, UnixStream},
        time::Duration,
    };

    use quanta::Instant;
    use tempfile::TempDir;

    use super::*;
    use crate::{
        config::Endpoint,
        engine::{
            Engine, Event,
            native::{Native, Resolver},
            plain_options,
        },
    };

    /// Nobody's, as far as a test can know.
    const OTHER: u32 = 4_000_000_000;

    fn another(_: &OwnedFd) -> Result<Uid, Errno> {
        Ok(Uid::from_raw(OTHER))
    }

    #[test]
    fn who_is_refused_learns_both_users_and_the_remedy() {
        let (one, _other) = UnixStream::pair().unwrap();
        let one = OwnedFd::from(one);
        assert_eq!(check(&one, uid_of), Ok(()));
        assert_eq!(check(&one, |_| Ok(Uid::ROOT)), Ok(()));
        let why = check(&one, another).unwrap_err();
        let own = geteuid().as_raw();
        assert_eq!(why, Lost::OtherUser { uid: OTHER, own });
        let words = why.to_string();
        let names_all = [&OTHER.to_string(), &own.to_string(), "tcp"];
        assert!(names_all.iter().all(|it| words.contains(*it)), "{words}");
    }

    #[test]
    fn nothing_is_said_to_a_listener_of_another_user() {
        for (uid_of, bytes) in [(another as UidOf, 0), (uid_of as UidOf, 64)] {
            let (_directory, path, at) = somewhere();
            let listener = UnixListener::bind(path).unwrap();
            let mut engine = engine(uid_of);
            engine.connect(&at).unwrap();
            let now = Instant::now();
            turns(&mut engine, now);
            let mut accepted = listener.accept().unwrap().0;
            assert_eq!(heard(&mut accepted), (bytes, bytes == 0));
            // It is dialed again, as whatever cannot be connected to.
            listener.set_nonblocking(true).unwrap();
            turns(&mut engine, now + Duration::from_secs(1));
            assert_eq!(listener.accept().is_ok(), bytes == 0);
        }
    }

    #[test]
    fn who_tries_once_is_told_why_it_is_not_made() {
        let (_directory, path, at) = somewhere();
        let listener = UnixListener::bind(path).unwrap();
        let mut engine = engine(another);
        let id = engine.connect_once(&at).unwrap();
        let (now, mut told) = (Instant::now(), Vec::new());
        for _ in 0..10 {
            engine.poll(now, 10, &mut |event| match event {
                Event::Down {
                    connection, why, ..
                } => told.push((connection, why)),
                event => panic!("{event:?}"),
            });
        }
        let own = geteuid().as_raw();
        assert_eq!(told, [(id, Lost::OtherUser { uid: OTHER, own })]);
        assert_eq!(heard(&mut listener.accept().unwrap().0), (0, true));
    }

    #[test]
    fn nothing_is_said_to_a_dialer_of_another_user() {
        for (uid_of, bytes) in [(another as UidOf, 0), (uid_of as UidOf, 64)] {
            let (_directory, path, at) = somewhere();
            let mut engine = engine(uid_of);
            engine.listen(&at).unwrap();
            let mut dialer = UnixStream::connect(path).unwrap();
            turns(&mut engine, Instant::now());
            assert_eq!(heard(&mut dialer), (bytes, bytes == 0));
        }
    }

    fn somewhere() -> (TempDir, std::path::PathBuf, Endpoint) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("socket");
        let at = format!("ipc://{}", path.display()).parse().unwrap();
        (directory, path, at)
    }

    fn engine(uid_of: UidOf) -> Native {
        let options = plain_options();
        let mut engine = Native::new(options, Resolver::new().0, Instant::now()).unwrap();
        engine.io.uid_of = uid_of;
        engine
    }

    fn turns(engine: &mut Native, now: Instant) {
        for _ in 0..10 {
            engine.poll(now, 10, &mut |event| panic!("{event:?}"));
            engine.flush(now);
        }
    }

    /// So many bytes of a greeting, at most, and whether that is all that will ever come.
    fn heard(stream: &mut UnixStream) -> (usize, bool) {
        stream.set_nonblocking(true).unwrap();
        let (mut bytes, mut buffer) = (0, [0; 64]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return (bytes, true),
                Ok(count) => bytes += count,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    return (bytes, false);
                }
            }
        }
    }
}
