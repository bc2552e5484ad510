//! Processes of another user at the other end of an ipc connection. What needs no other user is
//! tested beside the check itself, in `src/engine/native/user.rs`.

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    os::unix::{
        fs::{PermissionsExt, chown},
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use corelane::engine::Engine;
use rustix::process::geteuid;
use tempfile::TempDir;

use crate::{
    plain::introduction,
    world::{PATIENCE, World, options},
};

/// `nobody`, as a rule.
const OTHER: u32 = 65_534;
const LISTENS: &str = "CORELANE_TEST_LISTENS_AT";
const DIALS: &str = "CORELANE_TEST_DIALS";

#[test]
fn a_listener_of_another_user_is_told_nothing() {
    if let Some(path) = std::env::var_os(LISTENS) {
        // Whoever finds the path finds a listener.
        let first = Path::new(&path).with_extension("new");
        let listener = UnixListener::bind(&first).unwrap();
        fs::rename(first, path).unwrap();
        return hear_nothing(listener.accept().unwrap().0);
    }
    let (_directory, path) = theirs();
    let name = "users::a_listener_of_another_user_is_told_nothing";
    let Some(mut other) = Other::start(name, LISTENS, &path) else {
        return;
    };
    let began = Instant::now();
    while !path.exists() && other.exit().is_none() {
        assert!(began.elapsed() < PATIENCE, "it does not listen");
        thread::sleep(Duration::from_millis(1));
    }
    let mut world = World::new([options()]);
    let at = format!("ipc://{}", path.display()).parse().unwrap();
    world.server().engine.connect(&at).unwrap();
    world.until("it has heard all", |_| other.exit().is_some());
    other.assert_content();
    assert_eq!(world.server().seen, []);
}

#[test]
fn a_dialer_of_another_user_is_told_nothing() {
    if let Some(path) = std::env::var_os(DIALS) {
        let mut stream = UnixStream::connect(path).unwrap();
        // It may be refused before that.
        let _ = stream.write_all(&introduction());
        return hear_nothing(stream);
    }
    let (_directory, path) = theirs();
    let mut world = World::new([options()]);
    let at = format!("ipc://{}", path.display()).parse().unwrap();
    world.server().engine.listen(&at).unwrap();
    // Else it would not come so far.
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let name = "users::a_dialer_of_another_user_is_told_nothing";
    let Some(mut other) = Other::start(name, DIALS, &path) else {
        return;
    };
    world.until("it has heard all", |_| other.exit().is_some());
    other.assert_content();
    assert_eq!(world.server().seen, []);
}

/// The connection ends without a word.
fn hear_nothing(mut stream: UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 64];
    match stream.read(&mut buffer) {
        Ok(count) => assert_eq!(count, 0, "{:?}", &buffer[..count]),
        // It had said something itself, which nobody read.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

/// A path in a directory of the other user's.
fn theirs() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    if geteuid().is_root() {
        chown(directory.path(), Some(OTHER), Some(OTHER)).unwrap();
    }
    let path = directory.path().join("socket");
    (directory, path)
}

/// This test again, in a process of the other user's.
struct Other(Child);

impl Other {
    fn start(name: &str, task: &str, path: &Path) -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: only root can start a process of another user");
            return None;
        }
        // The way to the file itself may be closed to that user.
        let mut command = Command::new("/proc/self/exe");
        command.args([name, "--exact", "--nocapture"]);
        command.env(task, path).uid(OTHER).gid(OTHER);
        command.stdout(Stdio::null());
        match command.spawn() {
            Ok(child) => Some(Self(child)),
            Err(error) => {
                eprintln!("SKIPPED: another user cannot run this test: {error}");
                None
            }
        }
    }

    /// Whether it has ended well, once it has.
    fn exit(&mut self) -> Option<bool> {
        let status = self.0.try_wait().unwrap();
        status.map(|status| status.success())
    }

    fn assert_content(mut self) {
        assert_eq!(self.exit(), Some(true), "it heard something");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
