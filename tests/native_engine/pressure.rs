//! What a round trip costs, and peers that do not read.

use std::time::Duration;

use corelane::{
    config::Endpoint,
    engine::{ConnectionId, Engine, EngineOptions},
    error::Lost,
};
use tempfile::TempDir;

use crate::{
    plain::{COMMAND, Plain, Said, frame, message},
    world::{Answer, Seen, World, options, tcp},
};

const STEP: Duration = Duration::from_millis(100);

fn ipc(directory: &TempDir) -> Endpoint {
    let path = directory.path().join("socket");
    format!("ipc://{}", path.display()).parse().expect("a path")
}

#[test]
fn a_round_trip_is_one_read_and_one_write_at_each_end() {
    let directory = TempDir::new().unwrap();
    for at in [tcp(), ipc(&directory)] {
        for parks in [false, true] {
            count_system_calls(&at, parks);
        }
    }
}

fn count_system_calls(at: &Endpoint, parks: bool) {
    const MESSAGES: u64 = 1_000;
    let (mut world, _, [_, dialed]) = World::pair(options(), options(), at);
    world.ends.iter_mut().for_each(|end| end.parks = parks);
    let mut ping_pong = |correlation| {
        assert!(world.ends[1].send(dialed, correlation, &[7; 64]));
        world.until("the answer", |world| !world.ends[1].seen.is_empty());
        let seen = world.ends[1].take();
        assert_eq!(seen, [Seen::Message(dialed, correlation, vec![7; 64])]);
        world.server().take();
        [0, 1].map(|end| world.ends[end].engine.stats())
    };
    let before = (0..10).map(&mut ping_pong).last().unwrap();
    let after = (0..MESSAGES).map(&mut ping_pong).last().unwrap();
    for (before, after) in before.iter().zip(after) {
        let reads = after.reads - before.reads;
        let empty = after.empty_reads - before.empty_reads;
        assert_eq!(reads - empty, MESSAGES, "{at} {parks}: {after:?}");
        assert_eq!(after.writes - before.writes, MESSAGES, "{at} {parks}");
        assert_eq!(after.refused_writes, 0);
    }
}

/// Few messages wait, so that a peer that does not read is soon noticed.
fn narrow() -> EngineOptions {
    EngineOptions {
        outgoing_messages_max: 10,
        ..options()
    }
}

/// A peer that has sent this many messages of `BYTES`, and reads nothing.
struct Stuck {
    plain: Plain,
    id: ConnectionId,
    sent: u64,
}

const BYTES: usize = 10_000;

impl Stuck {
    /// Sends until the server no longer reads it: its answers have no room.
    fn make(world: &mut World, at: &Endpoint) -> Self {
        world.server().take();
        let mut plain = Plain::dealer(at);
        world.until("it is up", |world| !world.server().ups().is_empty());
        let id = world.server().ups()[0];
        let mut sent = 0;
        loop {
            plain.queue(&message(sent, &[sent as u8; BYTES]));
            sent += 1;
            // Neither the engine nor the kernel takes more.
            if !(0..20).any(|_| {
                let is_written = plain.push(usize::MAX);
                world.turns(5);
                is_written
            }) {
                break;
            }
        }
        let outbox = world.server().engine.look(id).unwrap();
        assert!(outbox.is_full(), "{}", outbox.messages());
        Self { plain, id, sent }
    }

    fn handed_on(&self, world: &mut World) -> usize {
        let messages = world.server().messages().into_iter();
        messages.filter(|&(id, ..)| id == self.id).count()
    }
}

#[test]
fn who_does_not_read_is_not_read_and_loses_nothing() {
    let (mut world, at) = World::serving(narrow(), &tcp());
    let mut stuck = Stuck::make(&mut world, &at);
    let held = stuck.handed_on(&mut world);
    assert!((held as u64) < stuck.sent);

    // Its neighbour does not feel it.
    let mut neighbour = Plain::dealer(&at);
    for correlation in 0..100 {
        neighbour.write(&message(correlation, b"beside"));
        let mut answered = false;
        world.until("the neighbour's answer", |_| {
            answered |= neighbour
                .take_all()
                .iter()
                .any(|said| *said == Said::Message(correlation, b"beside".to_vec()));
            answered
        });
    }
    assert_eq!(stuck.handed_on(&mut world), held, "nothing of it was read");

    // It reads again: everything comes, in order.
    let mut answers = Vec::new();
    world.until("all its answers", |_| {
        stuck.plain.push(usize::MAX);
        answers.extend(stuck.plain.take_all());
        answers.len() as u64 > stuck.sent
    });
    assert!(answers[0].is_command("READY"));
    for (correlation, said) in answers[1..].iter().enumerate() {
        let expected = vec![correlation as u8; BYTES];
        assert!(
            *said == Said::Message(correlation as u64, expected),
            "{correlation}"
        );
    }
    assert!(world.server().downs().is_empty());
}

/// Whether it has answered the server's PINGs does not matter: it is not read.
#[test]
fn who_never_reads_is_cut_as_a_slow_consumer_and_nobody_else_is() {
    for parks in [false, true] {
        let (mut world, at) = World::serving(narrow(), &tcp());
        world.server().parks = parks;
        let mut neighbour = Plain::dealer(&at);
        world.until("it is up", |world| !world.server().ups().is_empty());
        // More than are tried again each turn.
        let stuck: Vec<Stuck> = (0..6).map(|_| Stuck::make(&mut world, &at)).collect();
        world.server().take();
        // What they have sent and nobody reads keeps no shard awake.
        world.turns(100);
        assert!(!world.turn() && world.server().engine.may_park());
        let took = world.pass(Duration::from_secs(20), STEP, |world| {
            neighbour.write(&message(1, b"beside"));
            neighbour.read();
            world.server().downs().len() == stuck.len()
        });
        for (id, why) in world.server().downs() {
            assert_eq!(why, Lost::SlowConsumer);
            assert!(stuck.iter().any(|it| it.id == id));
        }
        let took = took.expect("they are cut");
        let limit = options().slow_consumer;
        // Virtual: as many steps as that, and a heartbeat's rounding.
        assert!(took + STEP >= limit && took < 3 * limit, "{took:?}");
        assert!(!neighbour.is_closed);
    }
}

/// Not reading its messages, we cannot hear it: its silence says nothing.
#[test]
fn a_slow_consumer_that_reads_in_time_is_not_lost_for_silence() {
    let (mut world, at) = World::serving(narrow(), &tcp());
    let mut stuck = Stuck::make(&mut world, &at);
    let almost = options().slow_consumer - Duration::from_millis(300);
    world.pass(almost, STEP, |_| false);
    assert_eq!(world.server().downs(), []);
    let mut answers = 0;
    world.until("all its answers", |_| {
        stuck.plain.push(usize::MAX);
        let said = stuck.plain.take_all();
        answers += said
            .iter()
            .filter(|it| matches!(it, Said::Message(..)))
            .count() as u64;
        answers == stuck.sent
    });
    assert_eq!(world.server().downs(), []);
}

/// The socket takes no more, the poller is to say when it does, and only then the queue fills.
#[test]
fn a_queue_that_fills_while_the_socket_takes_nothing_counts_too() {
    let (mut world, at) = World::serving(options(), &tcp());
    world.server().parks = true;
    let mut plain = Plain::dealer(&at);
    world.until("it is up", |world| !world.server().ups().is_empty());
    let id = world.server().ups()[0];
    // One at a time: the queue never holds many.
    let mut refused = false;
    while !refused {
        assert!(world.server().send(id, 1, &[7; BYTES]));
        world.turns(2);
        refused = world.server().engine.look(id).unwrap().messages() > 0;
    }
    world.turns(10);
    while world.server().send(id, 1, &[7; BYTES]) {}
    assert!(world.server().engine.look(id).unwrap().is_full());
    let took = world.pass(Duration::from_secs(30), STEP, |world| {
        // It is alive, and heard.
        plain.write(&frame(COMMAND, b"\x04PONG"));
        !world.server().downs().is_empty()
    });
    assert_eq!(world.server().downs(), [(id, Lost::SlowConsumer)]);
    assert!(took.unwrap() < 3 * options().slow_consumer, "{took:?}");
}

/// Under a load that never lets the shard park, too.
#[test]
fn one_that_is_asked_directly_is_written_to_again_once_it_reads() {
    let (mut world, at) = World::serving(options(), &tcp());
    let mut hot = Plain::dealer(&at);
    world.until("it is up", |world| !world.server().ups().is_empty());
    let id = world.server().ups()[0];
    // Active so often that the poller no longer watches it.
    for correlation in 0..600 {
        hot.write(&message(correlation, b"hot"));
        world.until("it is handed on", |world| {
            !world.server().messages().is_empty()
        });
        hot.read();
        world.server().take();
    }
    let others: Vec<Plain> = (0..5).map(|_| Plain::dealer(&at)).collect();
    world.until("they are up", |world| {
        world.server().ups().len() == others.len()
    });
    let others = world.server().ups();
    // Its socket takes no more, and all the others have something to say in the same turn.
    while world.server().engine.look(id).unwrap().messages() < 10 {
        assert!(world.server().send(id, 1, &[7; BYTES]));
        world.turn();
    }
    for _ in 0..5 {
        for &other in &others {
            assert!(world.server().send(other, 1, b"other"));
        }
        world.turn();
    }
    world.until("it is written to again", |world| {
        hot.read();
        world.server().engine.look(id).unwrap().is_empty()
    });
}

/// As many as are read directly each turn, and each of them brings more than a turn takes.
#[test]
fn nobody_starves_beside_those_that_never_stop() {
    const FLOODS: usize = 4;
    let directory = TempDir::new().unwrap();
    // No window that has to open again before more comes.
    let (mut world, at) = World::serving(options(), &ipc(&directory));
    world.server().answer = Answer::Nothing;
    let mut floods: Vec<Plain> = (0..FLOODS).map(|_| Plain::dealer(&at)).collect();
    world.until("they are up", |world| world.server().ups().len() == FLOODS);
    let flood = message(1, &[7; 64]).repeat(1_000);
    let mut turn = |world: &mut World| {
        for plain in &mut floods {
            if plain.waiting() < flood.len() {
                plain.queue(&flood);
            }
            plain.push(usize::MAX);
        }
        world.turn();
        world.server().take()
    };
    for _ in 0..500 {
        turn(&mut world);
    }
    let mut quiet = Plain::dealer(&at);
    quiet.write(&message(2, b"me too"));
    let is_quiet = |it: &Seen| matches!(it, Seen::Message(_, 2, _));
    assert!((0..1_500).any(|_| turn(&mut world).iter().any(is_quiet)));
}
