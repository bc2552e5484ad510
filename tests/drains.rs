//! A service that drains under load, over and over, and comes back where it was: each drain is over
//! in its time, and what became of each message is told alike at both ends.
//!
//! `CORELANE_DRAINS=1000` drains a thousand times; `CORELANE_SEED` chooses when.

#[path = "kills/calls.rs"]
mod calls;

use std::{
    fs::{File, OpenOptions},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use calls::{PATIENCE, StopOnDrop, call_both, handlers, judge, number};
use corelane::{Config, Runtime, config::IdleStrategy, runtime::Totals};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tempfile::TempDir;

/// What the test's command line may ask for more of.
const DRAINS: u64 = 60;
/// Longest time between a service's first answer and its drain.
const LIFE_US_MAX: u64 = 15_000;
/// In turn. The first stops at once, the second runs out of time, the third has enough of it.
const LIMITS_MS: [u64; 3] = [0, 10, 5_000];
const SLOW: Duration = Duration::from_millis(40);
/// For threads to be run and joined, on a machine that does much else: once, and as a rule.
const SLACK: Duration = Duration::from_secs(5);
const SLACK_MEDIAN: Duration = Duration::from_millis(250);
const SHARDS: usize = 2;

fn config() -> Config {
    Config::default()
        .with_idle(IdleStrategy::Park)
        .with_limits(|limits| {
            limits.reconnect_min_ms = 1;
            limits.reconnect_max_ms = 5;
        })
}

fn serve(life: u32, file: &Path, endpoints: &[String]) -> Runtime {
    let file = OpenOptions::new().append(true).open(file);
    let handlers = handlers(file.expect("is there"), life, SLOW);
    let drain_ms = LIMITS_MS[life as usize % LIMITS_MS.len()];
    let config = config()
        .with_shards(SHARDS)
        .with_oversubscribe(true)
        .with_listen(endpoints)
        .with_limits(|limits| limits.drain_ms = drain_ms);
    let begun = Instant::now();
    loop {
        let builder = Runtime::builder(config.clone()).handlers(handlers.clone());
        match builder.start() {
            Ok(runtime) => return runtime,
            // Between two lives its ports are anybody's.
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until this life has answered both callers.
fn wait_for(life: u32, lives: &[AtomicU32; 2], is_over: impl Fn() -> bool) {
    let begun = Instant::now();
    while lives.iter().any(|last| last.load(Relaxed) < life) {
        let is_late = begun.elapsed() > PATIENCE;
        assert!(!is_late && !is_over(), "life {life} does not answer");
        thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn a_thousand_drains_under_load_are_over_in_time_and_account_for_all() {
    let (drains, seed) = (
        number("CORELANE_DRAINS", DRAINS),
        number("CORELANE_SEED", 1),
    );
    let mut random = SmallRng::seed_from_u64(seed);
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("runs");
    File::create(&file).expect("a file");
    let ipc = format!("ipc://{}", directory.path().join("socket").display());
    let mut service = serve(1, &file, &["tcp://127.0.0.1:0".to_owned(), ipc]);
    let endpoints = service.endpoints().to_vec();

    let caller = Runtime::builder(config().with_shards(1))
        .start()
        .expect("starts");
    let client = caller.client();
    // One goes straight to the shards, the other's messages cross from the first to the last.
    let peers = [
        client.connect(&endpoints[0]).expect("an endpoint"),
        client
            .connect_routed(0, &endpoints[1])
            .expect("an endpoint"),
    ];
    let stop = AtomicBool::new(false);
    let lives = [AtomicU32::new(0), AtomicU32::new(0)];
    let begun = Instant::now();
    let mut lates = Vec::new();
    let mut all = Totals::default();
    let told = thread::scope(|scope| {
        let calls = call_both(scope, &caller, &peers, &stop, &lives);
        let _stop = StopOnDrop(&stop);
        for life in 1..=drains as u32 {
            wait_for(life, &lives, || calls.iter().any(|it| it.is_finished()));
            thread::sleep(Duration::from_micros(random.random_range(0..LIFE_US_MAX)));
            let limit = Duration::from_millis(LIMITS_MS[life as usize % LIMITS_MS.len()]);
            let drained = Instant::now();
            let totals = service.drain();
            let late = drained.elapsed().saturating_sub(limit);
            assert!(late < SLACK, "drain {life} of {limit:?}: {late:?} late");
            lates.push(late);
            add(&mut all, totals);
            service = serve(life + 1, &file, &endpoints);
        }
        stop.store(true, Relaxed);
        let told = calls.map(|it| it.join().expect("no call lied"));
        add(&mut all, service.drain());
        told
    });
    let took = begun.elapsed();
    lates.sort();
    let (median, most) = (lates[lates.len() / 2], lates[lates.len() - 1]);
    let (runs, tallies) = judge(&file, &peers, &told);
    println!(
        "{drains} drains in {took:.1?}, seed {seed}, {median:.1?} late, at most {most:.1?}: \
         {all:?}; {runs} runs; {tallies:?}"
    );
    assert!(median < SLACK_MEDIAN, "{lates:?}");
    let sum = |of: fn(&calls::Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    // What the callers were told is some of what the service says of the same messages: answers are
    // lost with their connections.
    assert!(sum(|it| it.handled) <= all.handled);
    assert!(sum(|it| it.nacked) <= all.nacked);
    let left = sum(|it| it.handled + it.nacked + it.indeterminate + it.one_way);
    assert!(all.accepted <= left);
    // And what ran is what it handled, and some of what it cannot know of.
    assert!((all.handled..=all.handled + all.indeterminate).contains(&runs));
    assert!(all.indeterminate > drains / 3 && all.hopped > 0, "{all:?}");
    let counters = caller.metrics().total();
    assert_eq!(counters.late_answers, 0, "nothing is answered twice");
}

/// Each life's account is whole.
fn add(all: &mut Totals, one: Totals) {
    let ended = one.handled + one.nacked + one.indeterminate + one.lost;
    assert_eq!(one.accepted, ended, "{one:?}");
    all.accepted += one.accepted;
    all.handled += one.handled;
    all.nacked += one.nacked;
    all.indeterminate += one.indeterminate;
    all.lost += one.lost;
    all.hopped += one.hopped;
}
