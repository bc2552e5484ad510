//! What all peers of a shard together may make it hold.

use std::time::Duration;

use corelane::{
    engine::{ConnectionId, Engine, EngineOptions},
    error::Lost,
    wire::Reason,
};

use crate::{
    plain::{COMMAND, MORE, Plain, Said, frame, message},
    world::{Answer, Seen, World, options, tcp},
};

const MIB: usize = 1 << 20;

/// Each says that a mebibyte comes, and sends it only later: what they all ask for together is
/// held against the bound before it is there.
#[test]
fn beyond_the_bound_of_a_shard_messages_are_declined_and_connections_live() {
    let options = EngineOptions {
        buffered_bytes_max: 5 * MIB,
        ..options()
    };
    let (mut world, at) = World::serving(options, &tcp());
    let mut plains: Vec<Plain> = (0..20).map(|_| Plain::dealer(&at)).collect();
    world.until("they are up", |world| world.server().ups().len() == 20);
    world.server().take();
    for plain in &mut plains {
        plain.queue(&message(7, &vec![7; MIB]));
        plain.push(60);
    }
    world.turns(50);
    for plain in &mut plains {
        plain.push(1_000);
    }
    world.turns(50);
    let seen = world.server().take();
    let declined = |seen: &Seen| matches!(seen, Seen::Declined(_, 7, Reason::Overloaded));
    assert!(seen.iter().all(declined), "{seen:?}");
    assert!(seen.len() >= 15 && seen.len() < 20, "{}", seen.len());
    // All of it is sent, and what has room is handed on; then there is room for all again.
    for correlation in [7, 8] {
        let expected = match correlation {
            7 => 20 - seen.len(),
            _ => 20,
        };
        let mut all = 0;
        let mut answers = 0;
        for plain in &mut plains {
            if correlation == 8 {
                plain.queue(&message(8, &vec![7; MIB]));
            }
            let before = all;
            world.until("what was taken in comes", |world| {
                let is_sent = plain.push(usize::MAX);
                let said = plain.take_all();
                answers += said
                    .iter()
                    .filter(|it| matches!(it, Said::Message(..)))
                    .count();
                all += world.server().messages().len();
                assert!(!world.server().seen.iter().any(declined), "there is room");
                world.server().take();
                is_sent && (correlation == 7 || all > before)
            });
        }
        world.until("the answers", |_| {
            for plain in &mut plains {
                let said = plain.take_all();
                answers += said
                    .iter()
                    .filter(|it| matches!(it, Said::Message(..)))
                    .count();
            }
            answers == expected
        });
    }
    assert!(plains.iter_mut().all(|plain| !plain.read().is_closed));
}

/// One large message lets the next one be expected: that is no leave to hold memory.
#[test]
fn what_is_expected_is_within_the_bound_too() {
    let options = EngineOptions {
        // Those few that were active last may hold on to theirs.
        buffered_bytes_max: 8 * MIB,
        ..options()
    };
    let (mut world, at) = World::serving(options, &tcp());
    world.server().answer = Answer::Nothing;
    let mut plains: Vec<Plain> = (0..20).map(|_| Plain::dealer(&at)).collect();
    for plain in &mut plains {
        plain.queue(&message(7, &vec![7; MIB]));
        // The beginning of another one.
        plain.queue(&[MORE]);
        world.until("it is handed on", |world| {
            let is_sent = plain.push(usize::MAX);
            let is_there = !world.server().messages().is_empty();
            (is_sent && is_there)
                .then(|| world.server().take())
                .is_some()
        });
    }
    world.turns(100);
    // There is room for one more.
    let mut last = Plain::dealer(&at);
    last.queue(&message(8, &vec![7; MIB]));
    world.until("it is there", |world| {
        last.push(usize::MAX);
        world.server().seen.len() == 2
    });
    let seen = &world.server().seen;
    assert!(matches!(seen[1], Seen::Message(_, 8, _)), "{:?}", &seen[1]);
}

/// Each asks for answers that it does not take: within its own bound, and together far over the
/// shard's.
#[test]
fn answers_that_nobody_takes_are_within_the_bound() {
    const PEERS: usize = 20;
    // Small enough to be kept while they are not whole: none is declined.
    const BYTES: usize = 3_000;
    let options = EngineOptions {
        buffered_bytes_max: 8 * MIB,
        ..options()
    };
    let (mut world, at) = World::serving(options.clone(), &tcp());
    let mut plains: Vec<Plain> = (0..PEERS).map(|_| Plain::dealer(&at)).collect();
    world.until("they are up", |world| world.server().ups().len() == PEERS);
    let ids = world.server().ups();
    // 5 MiB each: as much again as its kernel takes.
    let sent = 7 * options.outgoing_messages_max as u64;
    for plain in &mut plains {
        for correlation in 0..sent {
            plain.queue(&message(correlation, &[7; BYTES]));
        }
    }
    let held = |world: &mut World, ids: &[ConnectionId]| -> usize {
        let bytes = |&id| world.server().engine.look(id).map_or(0, |it| it.bytes());
        ids.iter().map(bytes).sum()
    };
    // What is not whole while there is no memory is declined, and not answered here.
    let mut declined = [0; PEERS];
    let mut count_declined = |world: &mut World| {
        for seen in world.server().take() {
            if let Seen::Declined(id, _, reason) = seen {
                assert_eq!(reason, Reason::Overloaded);
                declined[ids.iter().position(|&it| it == id).unwrap()] += 1;
            }
        }
        declined
    };
    for _ in 0..300 {
        for plain in &mut plains {
            plain.push(usize::MAX);
        }
        world.turns(3);
        count_declined(&mut world);
        let held = held(&mut world, &ids);
        // What one turn answers may come on top.
        assert!(held <= 12 * MIB, "{held}");
    }
    assert!(
        held(&mut world, &ids) > 4 * MIB,
        "they do fill it, with read buffers"
    );

    // A peer that takes its answers gets them all the same.
    let mut good = Plain::dealer(&at);
    let mut answered = 0;
    for correlation in 0..100 {
        good.queue(&message(correlation, b"good"));
    }
    world.until("its answers", |world| {
        count_declined(world);
        good.push(usize::MAX);
        let good = good.take_all().into_iter();
        answered += good.filter(|it| matches!(it, Said::Message(..))).count();
        answered == 100
    });

    // Half of them read at last; the others are cut.
    let mut answers = [0; PEERS / 2];
    world.until("all answers of those that read", |world| {
        let declined = count_declined(world);
        for (plain, answers) in plains.iter_mut().zip(&mut answers) {
            plain.push(usize::MAX);
            let said = plain.take_all().into_iter();
            *answers += said.filter(|it| matches!(it, Said::Message(..))).count() as u64;
        }
        let mut ends = answers
            .iter()
            .zip(declined)
            .map(|(&it, declined)| it + declined);
        ends.all(|ended| ended == sent)
    });
    world.server().take();
    world.pass(
        3 * options.slow_consumer,
        Duration::from_millis(100),
        |world| {
            good.write(&message(0, b"good"));
            good.take_all();
            plains[..PEERS / 2].iter_mut().for_each(|it| {
                it.write(&message(0, b"good"));
                it.take_all();
            });
            world.server().downs().len() == PEERS / 2
        },
    );
    let downs = world.server().downs();
    assert_eq!(downs.len(), PEERS / 2);
    assert!(
        downs.iter().all(|(_, why)| *why == Lost::SlowConsumer),
        "{downs:?}"
    );
    assert_eq!(held(&mut world, &ids), 0);
}

/// Each sends most of a message that is not large, and no more.
#[test]
fn beginnings_of_messages_are_within_the_bound() {
    let options = EngineOptions {
        buffered_bytes_max: 8 * MIB,
        ..options()
    };
    let (mut world, at) = World::serving(options, &tcp());
    let mut plains: Vec<Plain> = (0..110).map(|_| Plain::dealer(&at)).collect();
    world.until("they are up", |world| {
        world.server().ups().len() == plains.len()
    });
    world.server().take();
    for plain in &mut plains {
        plain.queue(&message(7, &[7; 100_000]));
        while !plain.push(90_000) && plain.waiting() > 10_100 {
            world.turn();
        }
    }
    world.turns(100);
    let declined = |seen: &Seen| matches!(seen, Seen::Declined(_, 7, Reason::Overloaded));
    let seen = world.server().take();
    assert!(seen.iter().all(declined), "{seen:?}");
    assert!(seen.len() > 40 && seen.len() < 110, "{}", seen.len());
    let mut arrived = 0;
    world.until("the others are handed on", |world| {
        plains.iter_mut().for_each(|it| {
            it.push(usize::MAX);
            it.read();
        });
        arrived += world.server().messages().len();
        world.server().take();
        arrived == 110 - seen.len()
    });
    for plain in &mut plains {
        plain.write(&message(8, b"next"));
    }
    world.until("all live", |world| world.server().messages().len() == 110);
}

/// Whoever writes now and then keeps its buffer; a burst long ago holds no memory.
#[test]
fn a_quiet_connection_gives_its_write_buffer_back() {
    const BYTES: usize = 500;
    const COUNT: u64 = 1_000;
    let (mut world, at) = World::serving(options(), &tcp());
    let mut plain = Plain::dealer(&at);
    world.until("it is up", |world| !world.server().ups().is_empty());
    let id = world.server().ups()[0];
    for correlation in 0..COUNT {
        assert!(world.server().send(id, correlation, &[7; BYTES]));
    }
    world.until("all has left", |world| {
        plain.read();
        world.server().engine.look(id).unwrap().is_empty()
    });
    let capacity = |world: &mut World| world.server().engine.look(id).unwrap().capacity();
    let full = capacity(&mut world);
    assert!(full > BYTES * COUNT as usize);

    let step = Duration::from_millis(100);
    let interval = options().heartbeat_interval;
    for is_used in [true, false] {
        world.pass(3 * interval, step, |world| {
            plain.write(&frame(COMMAND, b"\x04PONG"));
            plain.read();
            assert!(!is_used || world.server().send(id, 1, b"now and then"));
            false
        });
        let left = capacity(&mut world);
        assert!(if is_used { left == full } else { left <= 4096 }, "{left}");
    }
    assert_eq!(world.server().downs(), []);
}
