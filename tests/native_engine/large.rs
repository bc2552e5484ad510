//! Large messages, however they are cut, and what stands behind them.

use corelane::{engine::EngineOptions, wire::ATTACHED_BYTES_MIN};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    plain::{Plain, Said, message},
    world::{Answer, World, options, tcp},
};

/// Around each size at which something changes: the short form's end, what is attached, what one
/// read asks for, and the message limit.
const SIZES: [usize; 20] = [
    0,
    1,
    255,
    256,
    4_095,
    4_096,
    ATTACHED_BYTES_MIN - 1,
    ATTACHED_BYTES_MIN,
    ATTACHED_BYTES_MIN + 1,
    (64 << 10) - 1,
    64 << 10,
    // With its header and heads just within one read's buffer, and just not.
    (128 << 10) - 51,
    (128 << 10) - 50,
    (128 << 10) - 1,
    128 << 10,
    (128 << 10) + 1,
    300_000,
    (1 << 20) - 51,
    (1 << 20) - 1,
    1 << 20,
];

fn payload(random: &mut SmallRng, bytes: usize) -> Vec<u8> {
    let mut payload = vec![0; bytes];
    random.fill(&mut payload[..]);
    payload
}

/// Sends these bytes in chunks that `chunk` chooses, reads what comes, and holds it against the
/// payloads that were sent, in order.
fn exchange(
    world: &mut World,
    plain: &mut Plain,
    payloads: &[Vec<u8>],
    mut chunk: impl FnMut() -> usize,
) {
    for (correlation, payload) in payloads.iter().enumerate() {
        plain.queue(&message(correlation as u64, payload));
    }
    let mut answers = 0;
    world.until("all answers", |_| {
        plain.push(chunk());
        for said in plain.take_all() {
            if said.is_command("READY") {
                continue;
            }
            let Said::Message(correlation, payload) = said else {
                panic!("{answers}: another command");
            };
            assert_eq!(correlation, answers as u64);
            assert!(
                payload == payloads[answers],
                "{answers} is not what was sent"
            );
            answers += 1;
        }
        answers == payloads.len()
    });
    for (answers, (_, correlation, seen)) in world.server().messages().iter().enumerate() {
        assert_eq!(*correlation, answers as u64);
        assert!(
            *seen == payloads[answers],
            "{answers} did not arrive as it was sent"
        );
    }
    world.server().take();
}

#[test]
fn messages_of_every_size_come_and_go_in_any_chunks() {
    for (seed, answer) in [(1, Answer::Copy), (2, Answer::Buffer)] {
        let mut random = SmallRng::seed_from_u64(seed);
        let (mut world, at) = World::serving(options(), &tcp());
        world.server().answer = answer;
        let mut plain = Plain::dealer(&at);
        for chunk_max in [usize::MAX, 200_000, 70_000] {
            let payloads = SIZES.map(|bytes| payload(&mut random, bytes));
            let mut chunks = random.clone();
            exchange(&mut world, &mut plain, &payloads, || {
                chunks.random_range(1..=chunk_max)
            });
        }
        // Mixed, so that small ones stand behind large ones in the same read.
        for _ in 0..20 {
            let sizes: [usize; 30] = std::array::from_fn(|_| match random.random_range(0..4) {
                0 => SIZES[random.random_range(6..SIZES.len())],
                _ => random.random_range(0..1_000),
            });
            let payloads = sizes.map(|bytes| payload(&mut random, bytes));
            let mut chunks = random.clone();
            exchange(&mut world, &mut plain, &payloads, || {
                chunks.random_range(1..=400_000)
            });
        }
    }
}

#[test]
fn messages_come_byte_by_byte() {
    for answer in [Answer::Copy, Answer::Buffer] {
        let mut random = SmallRng::seed_from_u64(3);
        let (mut world, at) = World::serving(options(), &tcp());
        world.server().answer = answer;
        let mut plain = Plain::dealer(&at);
        let payloads =
            [0, 1, 254, 255, 256, 257, 3, 4_090, 4_200].map(|it| payload(&mut random, it));
        exchange(&mut world, &mut plain, &payloads, || 1);
    }
}

/// The end of a mebibyte in crumbs: the rest must not be moved for each of them.
#[test]
fn the_end_of_a_large_message_comes_byte_by_byte() {
    let mut random = SmallRng::seed_from_u64(4);
    let (mut world, at) = World::serving(options(), &tcp());
    let mut plain = Plain::dealer(&at);
    // As others are busy, this one is not asked directly, and is let rest after each byte.
    let mut others: Vec<Plain> = (0..5).map(|_| Plain::dealer(&at)).collect();
    others.iter_mut().for_each(|it| it.write(&message(0, b"")));
    world.until("they are served", |world| {
        world.server().messages().len() == 5
    });
    world.server().take();
    let payloads = [payload(&mut random, 1 << 20)];
    let mut left = (1_usize << 20) + 51;
    exchange(&mut world, &mut plain, &payloads, || {
        let chunk = if left > 3_000 { left - 3_000 } else { 1 };
        left = left.saturating_sub(chunk);
        chunk
    });
}

/// Two engines, many large messages both ways at once: more than the sockets take.
#[test]
fn large_messages_go_both_ways_between_two_engines() {
    const COUNT: u64 = 20;
    for answer in [Answer::Copy, Answer::Buffer] {
        let wide = EngineOptions {
            outgoing_bytes_max: 64 << 20,
            ..options()
        };
        let (mut world, _, [_, dialed]) = World::pair(wide.clone(), wide, &tcp());
        world.server().answer = answer;
        let mut random = SmallRng::seed_from_u64(5);
        let payloads: Vec<Vec<u8>> = (0..COUNT)
            .map(|n| payload(&mut random, if n % 3 == 0 { 100 } else { 1 << 20 }))
            .collect();
        for (correlation, payload) in payloads.iter().enumerate() {
            assert!(world.ends[1].send(dialed, correlation as u64, payload));
        }
        world.until("all answers", |world| {
            world.ends[1].messages().len() as u64 == COUNT
        });
        for (answers, (_, correlation, seen)) in world.ends[1].messages().iter().enumerate() {
            assert_eq!(*correlation, answers as u64);
            assert!(*seen == payloads[answers], "{answers} is not what was sent");
        }
    }
}
