//! What time does: heartbeats and deadlines, under a clock of the test's own.

use std::{net::TcpListener, time::Duration};

use corelane::{
    engine::{Engine, EngineOptions},
    error::Lost,
};

use crate::{
    plain::{COMMAND, Plain, Said, frame, greeting, introduction, message, ping, ready},
    world::{Seen, World, options, tcp},
};

const STEP: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(60);

fn pong() -> Vec<u8> {
    frame(COMMAND, b"\x04PONG")
}

#[test]
fn who_is_silent_is_sent_a_ping_and_lives_if_it_answers() {
    let (mut world, at) = World::serving(options(), &tcp());
    let mut plain = Plain::dealer(&at);
    world.until("it is up", |world| !world.server().ups().is_empty());
    let id = world.server().ups()[0];
    plain.take_all();
    let mut pings = 0;
    let lost = world.pass(LONG, STEP, |world| {
        for said in plain.take_all() {
            assert!(said.is_command("PING"), "{said:?}");
            // A TTL of the timeout, in tenths of a second, and no context.
            assert_eq!(said, Said::Command(b"\x04PING\x00\x1e".to_vec()));
            pings += 1;
            plain.write(&pong());
        }
        !world.server().downs().is_empty()
    });
    assert_eq!(lost, None);
    // One each interval, rounded up by a quarter at most.
    assert!((45..=61).contains(&pings), "{pings}");

    // It answers no more.
    let took = world.pass(LONG, STEP, |world| !world.server().downs().is_empty());
    assert_eq!(world.server().downs(), [(id, Lost::Silent)]);
    let took = took.unwrap();
    let timeout = options().heartbeat_timeout;
    assert!(took >= timeout / 2 && took < 2 * timeout, "{took:?}");
    world.until("it is closed", |_| plain.read().is_closed);
}

#[test]
fn two_engines_keep_each_other_alive() {
    let (mut world, _, _) = World::pair(options(), options(), &tcp());
    let lost = world.pass(LONG, STEP, |world| {
        world.ends.iter().any(|end| !end.seen.is_empty())
    });
    assert_eq!(lost, None);
}

#[test]
fn a_ping_is_answered_with_its_context() {
    let (mut world, at) = World::serving(options(), &tcp());
    let mut plain = Plain::dealer(&at);
    let contexts: [&[u8]; 4] = [b"", b"x", b"0123456789abcdef", b"\0\xff"];
    let mut said = Vec::new();
    for context in contexts {
        plain.write(&ping(100, context));
    }
    // Between the frames of a message, too.
    let whole = message(9, b"payload");
    plain.write(&whole[..42]);
    plain.write(&ping(100, b"within"));
    plain.write(&whole[42..]);
    world.until("the answers", |_| {
        said.extend(plain.take_all());
        said.len() == 1 + contexts.len() + 2
    });
    let mut expected: Vec<Said> = contexts
        .iter()
        .map(|context| Said::Command([b"\x04PONG", *context].concat()))
        .collect();
    expected.push(Said::Command(b"\x04PONGwithin".to_vec()));
    expected.push(Said::Message(9, b"payload".to_vec()));
    assert_eq!(said[1..], expected);
}

#[test]
fn who_speaks_no_heartbeats_is_sent_none_and_may_be_silent() {
    let (mut world, at) = World::serving(options(), &tcp());
    let mut plain = Plain::connect(&at);
    plain.write(&[greeting(0), ready("DEALER")].concat());
    world.until("it is up", |world| !world.server().ups().is_empty());
    plain.take_all();
    let lost = world.pass(LONG, STEP, |world| !world.server().downs().is_empty());
    assert_eq!(lost, None);
    assert_eq!(plain.take_all(), []);
}

/// The shard did nothing for ten seconds, and what its peers said meanwhile waits in their sockets.
/// Beside other connections that are busy: then it does not even look at all of them at once.
#[test]
fn a_stalled_shard_thinks_no_live_peer_dead() {
    for busy in 0..6 {
        let (mut world, at) = World::serving(options(), &tcp());
        let mut quiet: Vec<Plain> = (0..3).map(|_| Plain::dealer(&at)).collect();
        world.until("they are up", |world| world.server().ups().len() == 3);
        let mut hot: Vec<Plain> = (0..busy).map(|_| Plain::dealer(&at)).collect();
        for correlation in 0..100 {
            hot.iter_mut()
                .for_each(|it| it.write(&message(correlation, b"")));
            world.turns(3);
            hot.iter_mut().for_each(|it| drop(it.take_all()));
        }
        quiet.iter_mut().for_each(|it| drop(it.take_all()));
        world.server().take();
        // Until the quiet ones have their PINGs.
        world.pass(LONG, STEP, |_| {
            hot.iter_mut().for_each(|it| {
                it.write(&message(1, b""));
                it.take_all();
            });
            quiet.iter_mut().all(|it| !it.take_all().is_empty())
        });
        let lost = world.server().downs();
        assert_eq!(lost, []);
        quiet.iter_mut().for_each(|it| it.write(&pong()));
        for (index, it) in hot.iter_mut().enumerate() {
            // More than one turn hands on.
            for correlation in 0..(if index == 0 { 1_000 } else { 1 }) {
                it.write(&message(correlation, b""));
            }
        }
        world.now += Duration::from_secs(10);
        world.turns(50);
        assert_eq!(world.server().downs(), [], "beside {busy}");
    }
}

/// Whatever the heartbeats' interval is.
#[test]
fn who_does_not_finish_its_handshake_is_cut_in_time() {
    for interval in [Duration::from_secs(1), Duration::from_secs(3_600)] {
        let options = EngineOptions {
            heartbeat_interval: interval,
            heartbeat_timeout: 3 * interval,
            ..options()
        };
        let (mut world, at) = World::serving(options.clone(), &tcp());
        let mut silent = Plain::connect(&at);
        let mut slow = Plain::connect(&at);
        slow.queue(&introduction()[..80]);
        let mut began = None;
        let took = world.pass(LONG, STEP, |world| {
            slow.push(1);
            began.get_or_insert(world.now);
            silent.read().is_closed & slow.read().is_closed
        });
        let took = took.expect("both are cut");
        assert!(
            took >= options.handshake && took < 2 * options.handshake,
            "{took:?}"
        );
        assert_eq!(world.server().seen, [], "nobody was told");
    }
}

/// A listener that accepts and says nothing: the dialing end gives up as well, and tries again.
#[test]
fn who_accepts_and_is_silent_is_dialed_again() {
    for interval in [Duration::from_secs(1), Duration::from_secs(3_600)] {
        let options = EngineOptions {
            heartbeat_interval: interval,
            heartbeat_timeout: 3 * interval,
            ..options()
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = format!("tcp://{}", listener.local_addr().unwrap());
        let mut world = World::new([options.clone()]);
        let id = world.server().engine.connect(&at.parse().unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut accepted = Vec::new();
        world.until("it is dialed", |_| {
            accepted.extend(listener.accept());
            !accepted.is_empty()
        });
        let took = world.pass(LONG, STEP, |_| {
            accepted.extend(listener.accept());
            accepted.len() == 2
        });
        let most = options.handshake + options.reconnect_min + 2 * STEP;
        assert!(took.is_some_and(|took| took <= most), "{took:?}");
        let mut plain = Plain::accepted(accepted.pop().unwrap().0);
        plain.write(&[greeting(1), ready("ROUTER")].concat());
        world.until("it is up", |world| world.server().seen == [Seen::Up(id)]);
    }
}
