//! Peers that are not there yet, that go, and that come back.

use std::{fs, net::TcpListener, os::unix::net::UnixListener, time::Duration};

use corelane::{
    config::Endpoint,
    engine::{Engine, EngineOptions},
    error::Lost,
};
use tempfile::TempDir;

use crate::{
    plain::{Plain, greeting, message, ready},
    world::{Seen, World, options, tcp},
};

const STEP: Duration = Duration::from_millis(5);
const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_peer_that_comes_back_is_the_same_connection() {
    let (mut world, at, [_, dialed]) = World::pair(options(), options(), &tcp());
    for round in 0..5 {
        assert!(world.ends[1].send(dialed, round, b"before"));
        world.until("it is answered", |world| {
            !world.ends[1].messages().is_empty()
        });
        world.ends[1].take();
        // It goes with all its connections, in the middle of what was to be sent to it.
        world.ends[0] = World::new([options()]).ends.remove(0);
        world.until("it is lost", |world| !world.ends[1].downs().is_empty());
        assert_eq!(world.ends[1].downs()[0].0, dialed);
        assert!(world.ends[1].engine.outbox(dialed).is_none(), "it is down");
        world.ends[1].take();
        let again = world.server().engine.listen(&at).unwrap();
        assert_eq!(again, at);
        world.server().answer = crate::world::Answer::Copy;
        let took = world.pass(LONG, STEP, |world| !world.ends[1].seen.is_empty());
        assert_eq!(world.ends[1].take(), [Seen::Up(dialed)]);
        // A first failure's pause: at most the smallest one.
        assert!(took.unwrap() <= options().reconnect_min + STEP, "{took:?}");
        assert_eq!(world.server().ups().len(), 1);
    }
}

/// Two of three messages leave, and the third is given back with the loss.
#[test]
fn what_has_not_left_is_told_with_the_loss() {
    let narrow = EngineOptions {
        outgoing_messages_max: 1_000,
        outgoing_bytes_max: 64 << 20,
        ..options()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut world = World::new([narrow]);
    let at = format!("tcp://{}", listener.local_addr().unwrap());
    let id = world.server().engine.connect(&at.parse().unwrap()).unwrap();
    world.turns(3);
    let mut plain = Plain::accepted(listener.accept().unwrap().0);
    plain.write(&[greeting(1), ready("ROUTER")].concat());
    world.until("it is up", |world| !world.server().ups().is_empty());
    const SENT: u64 = 60;
    for correlation in 0..SENT {
        assert!(world.server().send(id, correlation, &vec![7; 1 << 20]));
    }
    world.turns(100);
    let outbox = world.server().engine.look(id).unwrap();
    let (taken, waiting) = (outbox.taken().messages, outbox.messages() as u64);
    assert!(waiting > 0 && taken + waiting == SENT, "{taken} {waiting}");
    drop(plain);
    world.until("it is lost", |world| !world.server().downs().is_empty());
    let lost = world.server().take().pop();
    assert!(
        matches!(lost, Some(Seen::Down(_, _, unsent)) if unsent as u64 == waiting),
        "{lost:?}"
    );
    let outbox = world.server().engine.look(id).unwrap();
    assert_eq!((outbox.messages(), outbox.bytes()), (0, 0));
}

/// A peer answers and goes, and the next write finds that out before the answers are read.
#[test]
fn answers_that_have_arrived_are_heard_though_a_write_fails() {
    const ANSWERS: u64 = 100;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    for is_tcp in [false, true] {
        let at = match is_tcp {
            true => format!("tcp://{}", tcp.local_addr().unwrap()),
            false => format!("ipc://{}", path.display()),
        };
        let mut world = World::new([options()]);
        let id = world.server().engine.connect(&at.parse().unwrap()).unwrap();
        world.turns(3);
        let mut plain = match is_tcp {
            true => Plain::accepted(tcp.accept().unwrap().0),
            false => Plain::of_unix(unix.accept().unwrap().0),
        };
        plain.write(&[greeting(1), ready("ROUTER")].concat());
        world.until("it is up", |world| !world.server().ups().is_empty());
        world.server().take();
        plain.read();
        for correlation in 0..ANSWERS {
            plain.queue(&message(correlation, b"answer"));
        }
        // In one segment: what waits for an ACK at the other end is lost with it.
        assert!(plain.push(usize::MAX));
        drop(plain);
        let now = world.now;
        for correlation in 0..10 {
            assert!(world.server().send(id, correlation, b"too late"));
            world.server().engine.flush(now);
        }
        world.until("it is lost", |world| !world.server().downs().is_empty());
        let messages = world.server().messages();
        let correlations: Vec<u64> = messages.iter().map(|&(_, it, _)| it).collect();
        assert_eq!(correlations, (0..ANSWERS).collect::<Vec<_>>(), "{at}");
        assert_eq!(world.server().downs().len(), 1);
        assert!(matches!(world.server().seen.last(), Some(Seen::Down(..))));
    }
}

#[test]
fn a_refused_connection_is_tried_again_within_the_limits() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at: Endpoint = format!("tcp://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut world = World::new([options()]);
    world.server().engine.connect(&at).unwrap();
    // Accepted and closed at once: each attempt is seen. It was up never, so that pauses grow.
    let mut times = Vec::new();
    world.pass(LONG, STEP, |world| {
        while listener.accept().is_ok() {
            times.push(world.now);
        }
        false
    });
    let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let longest = pauses.iter().max().unwrap();
    assert!(*longest <= options().reconnect_max + 3 * STEP, "{pauses:?}");
    assert!(*longest > options().reconnect_min, "{pauses:?}");
    // On average half of 5 s, after the first few.
    assert!((10..100).contains(&pauses.len()), "{pauses:?}");
    assert_eq!(world.server().seen, [], "nobody was told");
}

#[test]
fn an_ipc_peer_may_appear_later() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("socket");
    let at: Endpoint = format!("ipc://{}", path.display()).parse().unwrap();
    let mut world = World::new([options(), options()]);
    let id = world.ends[1].engine.connect(&at).unwrap();
    assert_eq!(
        world.pass(LONG / 6, STEP, |world| !world.ends[1].seen.is_empty()),
        None
    );
    world.server().engine.listen(&at).unwrap();
    let took = world.pass(LONG, STEP, |world| !world.ends[1].seen.is_empty());
    assert_eq!(world.ends[1].take(), [Seen::Up(id)]);
    assert!(took.unwrap() <= options().reconnect_max + STEP);
}

/// What cannot be made, whatever the reason, and what is made and lost.
#[test]
fn who_is_dialed_once_is_told_of_as_it_ends_and_not_dialed_again() {
    let directory = TempDir::new().unwrap();
    let ipc = |name| format!("ipc://{}", directory.path().join(name).display());
    fs::write(directory.path().join("file"), "").unwrap();
    drop(UnixListener::bind(directory.path().join("stale")).unwrap());
    let refuses = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = format!("tcp://{}", refuses.local_addr().unwrap());
    drop(refuses);
    for at in [ipc("nothing"), ipc("file"), ipc("stale"), refused] {
        let mut world = World::new([options()]);
        let engine = &mut world.server().engine;
        let id = engine.connect_once(&at.parse().unwrap()).unwrap();
        world.until(&at, |world| !world.server().seen.is_empty());
        let told = world.server().take();
        let is_told = matches!(&told[..], [Seen::Down(it, Lost::Broken(_), 0)] if *it == id);
        assert!(is_told, "{at}: {told:?}");
        assert!(world.server().engine.look(id).is_none());
        assert!(world.server().engine.may_park(), "{at}");
    }
    let at = ipc("there").parse().unwrap();
    let mut world = World::new([options(), options()]);
    world.server().engine.listen(&at).unwrap();
    let id = world.ends[1].engine.connect_once(&at).unwrap();
    world.until("they are up", |world| {
        world.ends.iter().all(|end| !end.ups().is_empty())
    });
    let accepted = world.ends[0].ups()[0];
    world.ends[0].engine.close(accepted);
    world.until("it is lost", |world| !world.ends[1].downs().is_empty());
    assert!(world.ends[1].engine.look(id).is_none());
    world.pass(LONG / 10, STEP, |_| false);
    assert_eq!(
        world.ends[1].take(),
        [Seen::Up(id), Seen::Down(id, Lost::Closed, 0)]
    );
    assert_eq!(world.ends[0].ups().len(), 1);
}

#[test]
fn names_are_resolved() {
    let (mut other, at) = World::serving(options(), &tcp());
    let port = at.socket_addr().unwrap().port();
    let mut world = World::resolving(options());
    let good = format!("tcp://localhost:{port}").parse().unwrap();
    let id = world.server().engine.connect(&good).unwrap();
    world.ends.append(&mut other.ends);
    // `localhost` may be ::1 first, where nobody listens: then the next attempt must come.
    let took = world.pass(LONG, STEP, |world| {
        std::thread::sleep(Duration::from_millis(1));
        !world.server().ups().is_empty()
    });
    assert!(took.is_some(), "localhost is not reached");
    assert_eq!(world.server().ups(), [id]);
    // One that is not there is asked for again and again, and harms nobody.
    let bad = "tcp://no-such-host.invalid:1".parse().unwrap();
    let lost = world.server().engine.connect(&bad).unwrap();
    world.pass(LONG / 10, STEP, |_| false);
    assert!(world.server().engine.outbox(lost).is_none());
    world.server().engine.close(lost);
    world.turns(100);
    assert!(!world.server().downs().contains(&(lost, Lost::Closed)));
}
