//! A server that is killed with SIGKILL under load, over and over, and comes back where it was:
//! what its callers were told is held against what its handlers wrote down before they returned.
//!
//! `CORELANE_KILLS=1000` kills it a thousand times; `CORELANE_SEED` chooses when.

#[path = "kills/calls.rs"]
mod calls;

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use calls::{PATIENCE, StopOnDrop, call_both, handlers, judge, number};
use corelane::{Config, Runtime, config::IdleStrategy};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tempfile::TempDir;

const CHILD: &str = "CORELANE_TEST_KILLED";
const TEST: &str = "a_server_that_is_killed_a_thousand_times_never_makes_a_call_lie";
/// What the test's command line may ask for more of.
const KILLS: u64 = 100;
const SLOW: Duration = Duration::from_millis(2);
/// Longest time between a server's first answer and its end.
const LIFE_US_MAX: u64 = 15_000;

fn config() -> Config {
    Config::default()
        .with_shards(1)
        .with_idle(IdleStrategy::Park)
        .with_limits(|limits| {
            limits.reconnect_min_ms = 1;
            limits.reconnect_max_ms = 5;
        })
}

/// In a process of its own, until it is killed; or until its parent goes, which closes its stdin.
fn serve(arguments: &str) {
    let mut parts = arguments.split(' ');
    let mut next = || parts.next().expect("three arguments");
    let (life, file, endpoints) = (next().parse().expect("a number"), next(), next());
    let file = OpenOptions::new().append(true).open(file);
    let runtime = Runtime::builder(config().with_listen(endpoints.split(',')))
        .handlers(handlers(file.expect("is there"), life, SLOW))
        .start();
    match runtime {
        Ok(runtime) => {
            println!("READY {}", runtime.endpoints().join(" "));
            let _ = std::io::stdin().read(&mut [0]);
        }
        Err(error) => println!("REFUSED {error}"),
    }
}

/// A life of the server. It ends, at the latest, when this is dropped.
struct Killed(Child);

impl Killed {
    fn start(life: u32, file: &Path, endpoints: &[String]) -> (Self, Vec<String>) {
        let arguments = format!("{life} {} {}", file.display(), endpoints.join(","));
        let begun = Instant::now();
        loop {
            let child = Command::new(std::env::current_exe().expect("a path"))
                .args([TEST, "--exact", "--nocapture"])
                .env(CHILD, &arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            let mut killed = Self(child.expect("can be run"));
            let stdout = BufReader::new(killed.0.stdout.take().expect("is piped"));
            let mut lines = stdout.lines().map_while(Result::ok);
            let said = lines.find_map(|line| Some(line.split_once("READY ")?.1.to_owned()));
            if let Some(bound) = said {
                return (killed, bound.split(' ').map(str::to_owned).collect());
            }
            // Between two lives its port is anybody's.
            assert!(begun.elapsed() < PATIENCE, "it does not start");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_that_is_killed_a_thousand_times_never_makes_a_call_lie() {
    if let Ok(arguments) = std::env::var(CHILD) {
        return serve(&arguments);
    }
    let (kills, seed) = (number("CORELANE_KILLS", KILLS), number("CORELANE_SEED", 1));
    let mut random = SmallRng::seed_from_u64(seed);
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("runs");
    File::create(&file).expect("a file");
    let ipc = format!("ipc://{}", directory.path().join("socket").display());
    let anywhere = ["tcp://127.0.0.1:0".to_owned(), ipc];
    let (mut server, endpoints) = Killed::start(1, &file, &anywhere);

    let caller = Runtime::builder(config()).start().expect("starts");
    let peers = [0, 1].map(|at| {
        caller
            .client()
            .connect(&endpoints[at])
            .expect("an endpoint")
    });
    let stop = AtomicBool::new(false);
    let lives = [AtomicU32::new(0), AtomicU32::new(0)];
    let begun = Instant::now();
    let told = thread::scope(|scope| {
        let calls = call_both(scope, &caller, &peers, &stop, &lives);
        let _stop = StopOnDrop(&stop);
        for life in 1..=kills as u32 {
            let born = Instant::now();
            // Each has answered over both ways before it dies.
            while lives.iter().any(|last| last.load(Relaxed) < life) {
                let is_over = calls.iter().any(|it| it.is_finished());
                assert!(
                    !is_over && born.elapsed() < PATIENCE,
                    "life {life}, seed {seed}"
                );
                thread::sleep(Duration::from_micros(100));
            }
            thread::sleep(Duration::from_micros(random.random_range(0..LIFE_US_MAX)));
            drop(server);
            server = Killed::start(life + 1, &file, &endpoints).0;
        }
        stop.store(true, Relaxed);
        let told = calls.map(|it| it.join().expect("no call lied"));
        drop(server);
        told
    });
    let took = begun.elapsed();
    let (runs, tallies) = judge(&file, &peers, &told);
    let [tcp, ipc] = &tallies;
    println!("{kills} kills in {took:.1?}, seed {seed}: {runs} runs; tcp {tcp:?}; ipc {ipc:?}");
    for tally in tallies {
        // Under load a kill finds something under way all but always.
        assert!(tally.indeterminate >= kills / 4, "{tally:?}");
    }
    let counters = caller.metrics().total();
    assert_eq!(counters.late_answers, 0, "nothing is answered twice");
    assert_eq!(counters.outstanding_now, 0, "{counters:?}");
}
