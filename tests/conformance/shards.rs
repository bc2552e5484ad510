//! Messages by route key, from peers that share no code with the library.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use corelane::wire::shard_of_key;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::Value;

use crate::{
    has_python,
    process::{Served, all_cpus},
    python,
    raw::{self, Dealer, RAW, REQUEST, RESPONSE},
    skip,
};

const RANDOM_KEYS: usize = 20_000;
const DEADLINE_US: u32 = 30_000_000;

/// Reads lines of a key and a number of shards, and writes the shard of each.
const MAP: &str = "
import sys
sys.path.insert(0, sys.argv[1])
from python_client import shard_of_key
for line in sys.stdin:
    print(shard_of_key(*map(int, line.split())))
";

#[test]
fn python_and_rust_know_the_same_shard_of_a_key() {
    if !has_python("") {
        return skip("the route-key map of examples/python_client.py: no python3");
    }
    let mut random = SmallRng::seed_from_u64(1);
    let mut pairs: Vec<(u64, usize)> = Vec::new();
    for shards in [1, 2, 3, 7, 8, 64, 1_000, u32::MAX as usize] {
        let edges = [1, 2, 1 << 31, 1 << 63, u64::MAX - 1, u64::MAX];
        pairs.extend(edges.map(|key| (key, shards)));
    }
    pairs.extend((0..RANDOM_KEYS).map(|_| (random.random(), random.random_range(1..=256))));

    let mut child = Command::new("python3")
        .args(["-c", MAP, concat!(env!("CARGO_MANIFEST_DIR"), "/examples")])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 can be run");
    let mut stdin = child.stdin.take().expect("is piped");
    let lines = pairs
        .iter()
        .map(|(key, shards)| format!("{key} {shards}\n"));
    let lines: String = lines.collect();
    let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().expect("an end");
    writing.join().expect("no panic").expect("is read");
    let told = String::from_utf8(output.stdout).expect("text");
    let told: Vec<usize> = told
        .lines()
        .map(|it| it.parse().expect("a shard"))
        .collect();
    assert_eq!(told.len(), pairs.len());
    for (told, (key, shards)) in told.into_iter().zip(pairs) {
        assert_eq!(told, shard_of_key(key, shards), "{key} of {shards}");
    }
}

/// With a shard on each CPU.
#[test]
fn the_python_client_causes_no_hop() {
    if !has_python("import zmq") {
        return skip("examples/python_client.py with several shards: no pyzmq");
    }
    for scheme in ["tcp", "ipc"] {
        let served = Served::start(&["--cpus", &all_cpus()]);
        let shards = shards(&served);
        let output = python("examples/python_client.py", &[&served.endpoint(scheme)]);
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stdout}\n{stderr}");
        let by_key = if shards > 1 { 2 * shards } else { 0 };
        let lines = stdout.lines().filter(|line| line.starts_with("by key "));
        assert_eq!(lines.count(), by_key, "{stdout}");
        let stopped = served.stop();
        assert_eq!(stopped["hopped"], 0, "{stopped}");
        // Two of `count` and one of `sum`.
        assert_eq!(stopped["handled"], 3 + by_key, "{stopped}");
    }
}

/// It knows of no shards, and is answered on the connection that it has.
#[test]
fn whoever_says_no_hello_is_routed_from_any_shard() {
    for engine in ["native", "libzmq"] {
        let served = Served::start(&["--engine", engine, "--cpus", &all_cpus()]);
        let shards = shards(&served);
        let mut hops = 0;
        for dialed in 0..shards {
            let endpoints = &served.ready["shards"][dialed]["endpoints"];
            for endpoint in endpoints.as_array().expect("endpoints") {
                let mut dealer = Dealer::connect(endpoint.as_str().expect("a text"));
                for key in 1..=20 {
                    let place = ask_by_key(&mut dealer, key);
                    let owner = shard_of_key(key, shards);
                    assert_eq!(place["shard"], owner, "{engine} {endpoint} {key}");
                    hops += usize::from(owner != dialed);
                }
            }
        }
        assert_eq!(served.stop()["hopped"], hops, "{engine}");
    }
}

fn shards(served: &Served) -> usize {
    served.ready["shards"].as_array().expect("shards").len()
}

fn ask_by_key(dealer: &mut Dealer, route_key: u64) -> Value {
    let correlation = dealer.correlation();
    let handler = raw::key("where.key");
    let mut header = raw::header(REQUEST, correlation, handler, RAW, DEADLINE_US);
    header[24..32].copy_from_slice(&route_key.to_le_bytes());
    dealer.send_header(header, b"");
    let answer = dealer.answer_to(correlation);
    assert_eq!(answer.kind, RESPONSE, "{answer:?}");
    serde_json::from_slice(&answer.payload).expect("JSON")
}
