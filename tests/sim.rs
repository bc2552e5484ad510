//! Whole shards on the `sim` engine, in one thread, under a virtual clock: seeded scenarios of
//! requests, confirmed and one-way messages, with delays, small limits, slow handlers, cancelled
//! calls and drains; connections that are cut or half-open; shards and processes that stand still
//! or crash, and are started again; two processes of one name; strangers who keep no rules; jumps
//! of the clock. After each of them what `semantics.md` promises.
//!
//! `CORELANE_SEEDS=100000` runs more seeds, from `CORELANE_SEEDS_FROM` on (0 if that is not set),
//! and `--nocapture` shows how many per second; `CORELANE_SEED=17` runs one, and prints its trace.

#[path = "sim/actions.rs"]
mod actions;
#[path = "sim/batches.rs"]
mod batches;
#[path = "sim/blocking.rs"]
mod blocking;
#[path = "sim/bounds.rs"]
mod bounds;
#[path = "sim/callers.rs"]
mod callers;
#[path = "sim/cancelling.rs"]
mod cancelling;
#[path = "sim/changing.rs"]
mod changing;
#[path = "sim/check.rs"]
mod check;
#[path = "sim/closing.rs"]
mod closing;
#[path = "sim/crossing.rs"]
mod crossing;
#[path = "sim/draining.rs"]
mod draining;
#[path = "sim/epochs.rs"]
mod epochs;
#[path = "sim/handlers.rs"]
mod handlers;
#[path = "sim/ledger.rs"]
mod ledger;
#[path = "sim/load.rs"]
mod load;
#[path = "sim/meeting.rs"]
mod meeting;
#[path = "sim/nearby.rs"]
mod nearby;
#[path = "sim/ordered.rs"]
mod ordered;
#[path = "sim/overload.rs"]
mod overload;
#[path = "sim/peers.rs"]
mod peers;
#[path = "sim/planted.rs"]
mod planted;
#[path = "sim/pool.rs"]
mod pool;
#[path = "sim/process.rs"]
mod process;
#[path = "sim/rude.rs"]
mod rude;
#[path = "sim/scenario.rs"]
mod scenario;
#[path = "sim/seen.rs"]
mod seen;
#[path = "sim/stranger.rs"]
mod stranger;
#[path = "sim/tampered.rs"]
mod tampered;
#[path = "sim/unanswered.rs"]
mod unanswered;
#[path = "sim/world.rs"]
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use corelane::engine::sim::Weather;
use scenario::{Trace, simulate};
use seen::Seen;
use world::World;

/// How many seeds a plain `cargo test` runs: a few seconds' worth.
const SEEDS: u64 = 1_000;

#[test]
fn every_call_ends_once_and_every_message_is_accounted_for() {
    if let Some(seed) = number("CORELANE_SEED") {
        simulate(seed);
        return;
    }
    let began = std::time::Instant::now();
    let seeds = number("CORELANE_SEEDS").unwrap_or(SEEDS);
    let seen = run_all(number("CORELANE_SEEDS_FROM").unwrap_or(0), seeds);
    let took = began.elapsed().as_secs_f64();
    println!("{seeds} seeds, {:.0} per second", seeds as f64 / took);
    seen.print();
    seen.assert_enough();
}

/// Each seed's whole world lives in one thread; there is one for each CPU.
fn run_all(first: u64, seeds: u64) -> Seen {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, end) = (AtomicU64::new(first), first + seeds);
    let work = || {
        let mut seen = Seen::default();
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= end {
                return seen;
            }
            let trace = catch_unwind(|| run(seed)).unwrap_or_else(|panic| {
                // The others need not go on.
                next.store(end, Relaxed);
                resume_unwind(panic)
            });
            seen.add(&trace);
            let done = seed - first + 1;
            if done.is_multiple_of(10_000) {
                println!("{done} seeds");
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let seen = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        seen.fold(Seen::default(), Seen::and)
    })
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1_000_000..1_000_020 {
        let (first, second) = (run(seed), run(seed));
        let differs = first.iter().zip(&second).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
    assert_ne!(run(1), run(2), "a trace shows nothing");
}

/// A shard's own tasks may submit as much as one turn takes, in every turn.
#[test]
fn a_shards_own_tasks_do_not_keep_other_threads_waiting() {
    let mut limits = scenario::random_limits(&mut fastrand::Rng::with_seed(0));
    limits.shard.turn_messages_max = 4;
    limits.shard.shedding = None;
    limits.shard.inbox_capacity = 100;
    let mut world = World::new(0, Weather::default(), limits);
    world.add_process(0, 1, true, &[]);
    let process = &world.processes[0];
    let peer = process.client.connect("tcp://127.0.0.1:9999").unwrap();
    process.client.message("run").to(&peer).one_way().unwrap();
    let local = process.shards[0].client().unwrap().clone();
    for _ in 0..3 {
        for _ in 0..8 {
            let other = local.connect("tcp://127.0.0.1:9998").unwrap();
            local.message("run").to(&other).one_way().unwrap();
        }
        world.turn_all();
    }
    assert_eq!(peer.account().accepted, 1, "it was taken from the inbox");
}

fn run(seed: u64) -> Trace {
    catch_unwind(AssertUnwindSafe(|| simulate(seed))).unwrap_or_else(|panic| {
        eprintln!("seed {seed} failed; CORELANE_SEED={seed} runs it alone");
        resume_unwind(panic)
    })
}

/// Whether one seed runs, and all that happens in it is shown.
fn is_replay() -> bool {
    static IS_REPLAY: OnceLock<bool> = OnceLock::new();
    *IS_REPLAY.get_or_init(|| number("CORELANE_SEED").is_some())
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number of seeds"))
}
