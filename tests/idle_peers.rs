//! Ten thousand idle connections beside a busy one: what they cost it, counted in system calls.

#[path = "native_engine/descriptors.rs"]
mod descriptors;
#[path = "native_engine/plain.rs"]
#[allow(dead_code)] // what other tests need of it
mod plain;
#[path = "native_engine/world.rs"]
#[allow(dead_code)]
mod world;

use std::time::{Duration, Instant};

use corelane::engine::{EngineOptions, native::IoStats};
use plain::Plain;
use world::{Seen, World, options, tcp};

const IDLE_MAX: usize = 10_000;
/// For everything that is no connection of the test.
const DESCRIPTORS_ELSE: u64 = 200;
const PING_PONGS: u64 = 10_000;

/// As many as this process may have with both of their ends in it.
fn idle_peers() -> usize {
    let maximum = descriptors::raise_limit();
    let may_have = maximum.unwrap_or(u64::MAX).saturating_sub(DESCRIPTORS_ELSE) / 2;
    let idle = usize::try_from(may_have).unwrap_or(IDLE_MAX).min(IDLE_MAX);
    if idle < IDLE_MAX {
        eprintln!("only {idle} idle connections: `ulimit -Hn` allows {maximum:?} descriptors");
    }
    idle
}

struct Run {
    stats: IoStats,
    p50: Duration,
    turns: u64,
}

/// Ping-pongs between two engines, of which one has so many idle connections.
fn run(idle: usize) -> Run {
    let hour = Duration::from_secs(3_600);
    let options = EngineOptions {
        heartbeat_interval: hour,
        heartbeat_timeout: 3 * hour,
        ..options()
    };
    let (mut world, at, [_, dialed]) = World::pair(options.clone(), options, &tcp());
    let mut idlers = Vec::with_capacity(idle);
    while idlers.len() < idle {
        // As many at once as may be in their handshake.
        let more = (idle - idlers.len()).min(100);
        idlers.extend((0..more).map(|_| Plain::dealer(&at)));
        world.until("they are up", |world| {
            world.server().ups().len() == idlers.len()
        });
    }
    let mut turns = 0;
    let mut round_trip = |world: &mut World, correlation| {
        let began = Instant::now();
        assert!(world.ends[1].send(dialed, correlation, &[7; 64]));
        world.until("the answer", |world| {
            turns += 1;
            !world.ends[1].seen.is_empty()
        });
        let took = began.elapsed();
        let answer = Seen::Message(dialed, correlation, vec![7; 64]);
        assert_eq!(world.ends[1].take(), [answer]);
        world.server().seen.clear();
        took
    };
    for correlation in 0..1_000 {
        round_trip(&mut world, correlation);
    }
    let before = world.server().engine.stats();
    let mut round_trips: Vec<Duration> = (0..PING_PONGS)
        .map(|correlation| round_trip(&mut world, correlation))
        .collect();
    round_trips.sort();
    let after = world.server().engine.stats();
    assert!(idlers.iter_mut().all(|it| !it.read().is_closed));
    Run {
        stats: IoStats {
            reads: after.reads - before.reads,
            empty_reads: after.empty_reads - before.empty_reads,
            writes: after.writes - before.writes,
            refused_writes: after.refused_writes - before.refused_writes,
            looks: after.looks - before.looks,
        },
        p50: round_trips[round_trips.len() / 2],
        turns,
    }
}

#[test]
fn ten_thousand_idle_connections_cost_a_busy_one_no_system_call() {
    let idle = idle_peers();
    let (few, many) = (run(10), run(idle));
    for (idle, run) in [(10, &few), (idle, &many)] {
        let Run { stats, p50, turns } = run;
        println!("beside {idle}: p50 {p50:?}, {turns} turns, {stats:?}");
        assert_eq!(stats.writes, PING_PONGS);
        assert_eq!(stats.reads - stats.empty_reads, PING_PONGS);
        // The poller is asked now and then only, with a few looks for what it found.
        assert!(stats.looks <= turns / 4 + 100, "{stats:?}");
    }
    let close = |few: u64, many: u64| many <= few + few / 10 + 100;
    assert!(
        close(few.stats.looks, many.stats.looks),
        "{:?} {:?}",
        few.stats,
        many.stats
    );
    // Each turn that finds nothing is one empty read, and how many there are is the scheduler's
    // business; of the idle ones there is none.
    let empty = |run: &Run| run.stats.empty_reads * 1_000 / run.turns;
    assert!(
        close(empty(&few), empty(&many)),
        "{:?} {:?}",
        few.stats,
        many.stats
    );
}
