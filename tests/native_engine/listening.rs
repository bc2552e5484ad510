//! Listening: the files of ipc sockets, and a process that has no descriptors left.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    process::Command,
    time::Duration,
};

use corelane::{config::Endpoint, engine::Engine, error::EngineError};
use rustix::{
    fs::{Mode, OFlags},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use tempfile::TempDir;

use crate::{
    plain::{Plain, Said, message},
    world::{World, options, tcp},
};

fn at(directory: &TempDir) -> (std::path::PathBuf, Endpoint) {
    let path = directory.path().join("deeper/socket");
    let endpoint = format!("ipc://{}", path.display()).parse().unwrap();
    (path, endpoint)
}

#[test]
fn the_file_of_a_socket_is_its_owners_and_goes_with_it() {
    let directory = TempDir::new().unwrap();
    let (path, at) = at(&directory);
    for drops in [false, true] {
        let (mut world, bound) = World::serving(options(), &at);
        assert_eq!(bound, at);
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&*path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let mut plain = Plain::dealer(&at);
        world.until("it is up", |world| !world.server().ups().is_empty());
        match drops {
            true => drop(world),
            false => {
                world.server().engine.stop_listening();
                assert!(!path.exists());
                // Who is there stays.
                plain.write(&message(1, b"still"));
                plain.take_all();
                world.until("it is answered", |_| {
                    plain.take_all() == [Said::Message(1, b"still".to_vec())]
                });
                // And the next one may have the place.
                let (_next, bound) = World::serving(options(), &at);
                assert_eq!(bound, at);
            }
        }
        assert!(!path.exists());
    }
}

#[test]
fn a_stale_file_is_taken_over_and_a_live_one_is_not() {
    let directory = TempDir::new().unwrap();
    let (path, at) = at(&directory);
    fs::create_dir(path.parent().unwrap()).unwrap();
    // Left behind by one that was killed.
    drop(UnixListener::bind(&path).unwrap());
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    let (mut world, _) = World::serving(options(), &at);
    let mut other = World::new([options()]);
    let refused = other.server().engine.listen(&at);
    assert!(
        matches!(refused, Err(EngineError::InUse { .. })),
        "{refused:?}"
    );
    drop(other);
    let _plain = Plain::dealer(&at);
    world.until("it still listens", |world| !world.server().ups().is_empty());

    // A file that is none of ours stays what it is.
    let file = directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    let on_file = format!("ipc://{}", file.display()).parse().unwrap();
    let refused = world.server().engine.listen(&on_file);
    assert!(
        matches!(refused, Err(EngineError::Listen { .. })),
        "{refused:?}"
    );
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

/// It takes no more connections, and an attempt that waits for room waits for ever.
#[test]
fn a_live_socket_whose_owner_hangs_is_in_use() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("socket");
    let hangs = UnixListener::bind(&path).unwrap();
    // Of those that connected, one may wait.
    rustix::net::listen(&hangs, 0).unwrap();
    let _waits = UnixStream::connect(&path).unwrap();
    let at = format!("ipc://{}", path.display()).parse().unwrap();
    let refused = World::new([options()]).server().engine.listen(&at);
    assert!(
        matches!(refused, Err(EngineError::InUse { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_port_in_use_is_said_to_be() {
    let (mut world, bound) = World::serving(options(), &tcp());
    let refused = world.server().engine.listen(&bound);
    assert!(
        matches!(refused, Err(EngineError::InUse { .. })),
        "{refused:?}"
    );
}

const CHILD: &str = "CORELANE_TEST_FEW_DESCRIPTORS";
const DESCRIPTORS: u64 = 64;

/// The limit is the whole process's, so this runs in one of its own.
#[test]
fn without_descriptors_accepting_rests_and_goes_on_later() {
    if std::env::var_os(CHILD).is_some() {
        return accept_without_descriptors();
    }
    let name = "listening::without_descriptors_accepting_rests_and_goes_on_later";
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("1 passed"), "{said}");
}

fn accept_without_descriptors() {
    let mut world = World::new([options()]);
    let directory = TempDir::new().unwrap();
    let (path, at) = at(&directory);
    world.server().engine.listen(&at).unwrap();
    world.server().parks = true;
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(DESCRIPTORS);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    // All descriptors but one are taken, and that one by the peer.
    let mut taken = Vec::new();
    while let Ok(file) = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty()) {
        taken.push(file);
    }
    taken.pop();
    let waiting = UnixStream::connect(&path).unwrap();
    let before = world.server().engine.stats();
    world.turns(1_000);
    assert_eq!(world.server().seen, []);
    // It rests: nothing is ready, and the shard could park until the time that it says.
    assert!(world.server().engine.may_park());
    let wake = world.server().engine.next_wake().unwrap();
    let rest = wake - world.now;
    assert!(
        rest > Duration::from_millis(50) && rest < Duration::from_secs(1),
        "{rest:?}"
    );
    assert_eq!(world.server().engine.stats().reads, before.reads);
    // Over and over, while there are none.
    world.pass(Duration::from_secs(3), Duration::from_millis(50), |_| false);
    assert_eq!(world.server().seen, []);

    taken.truncate(taken.len() / 2);
    let mut plain = Plain::of_unix(waiting);
    plain.write(&crate::plain::introduction());
    let took = world.pass(Duration::from_secs(3), Duration::from_millis(50), |world| {
        !world.server().ups().is_empty()
    });
    assert!(took.is_some(), "it is accepted once there are descriptors");
}
