//! A service and its client in one process: 100,000 requests over ipc, 100,000 over tcp, and what
//! they took.
//!
//!     cargo run --release --example quickstart
//!
//! With two CPUs or more the client has a shard of its own; one CPU is enough. The histograms that
//! the shards recorded meanwhile are dumped to a file, which `corelane hist FILE` reads.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use corelane::{
    Config, Runtime,
    client::Peer,
    error::CallError,
    handler::{TaskContext, inline},
    metrics::Percentiles,
    runtime::Running,
};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const REQUESTS: u64 = 100_000;
/// Requests under way at once. Each waits for its answer before its next.
const OUTSTANDING: u64 = 4;

#[derive(Serialize, Deserialize)]
struct Sum {
    a: u64,
    b: u64,
}

#[derive(Serialize, Deserialize)]
struct Total {
    total: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory =
        std::env::temp_dir().join(format!("corelane-quickstart-{}", std::process::id()));
    let shards = corelane::placement::probe()?.usable_ids().len().min(2);
    let config = Config::default()
        .with_shards(shards)
        .with_listen([
            format!("ipc://{}/socket", directory.display()),
            "tcp://127.0.0.1:0".into(),
        ])
        .with_dump_dir(&directory);

    let runtime = Runtime::builder(config)
        .handler(inline("sum", |sum: Sum, _cx| {
            Ok(Total {
                total: sum.a + sum.b,
            })
        }))
        .start()?;

    let mut answered = 0;
    println!(
        "{REQUESTS} requests each, {OUTSTANDING} outstanding, {shards} shard(s); microseconds:"
    );
    println!(
        "{:<6}{}",
        "",
        Percentiles::HEADS
            .map(|head| format!("{head:>12}"))
            .concat()
    );
    for endpoint in runtime.endpoints() {
        let (scheme, _) = endpoint.split_once(':').expect("an endpoint has a scheme");
        // On the last shard, while the first one serves.
        let peer = runtime.client().connect_from(shards - 1, endpoint)?;
        let lanes: Vec<Running<_>> = (0..OUTSTANDING)
            .map(|lane| {
                let peer = peer.clone();
                runtime.run_on(shards - 1, move |cx| ask(cx, peer, lane))
            })
            .collect();
        let mut round_trips = Histogram::<u64>::new(3)?;
        for lane in lanes {
            round_trips.add(lane.wait().ok_or("the shard stopped")??)?;
        }
        answered += round_trips.len();
        let cells = Percentiles::from(&round_trips).cells();
        println!(
            "{scheme:<6}{}",
            cells.map(|cell| format!("{cell:>12}")).concat()
        );
    }

    let dump = runtime.dump_path().expect("the config names a directory");
    let totals = runtime.drain();
    println!("{answered} answered, {} lost", 2 * REQUESTS - answered);
    println!(
        "served: {} accepted, {} handled",
        totals.accepted, totals.handled
    );
    println!("histograms: {}", dump.display());
    Ok(())
}

/// Sends every fourth request from the shard that this runs on, and returns their round trips in
/// nanoseconds.
async fn ask(cx: TaskContext, peer: Peer, lane: u64) -> Result<Histogram<u64>, String> {
    let mut round_trips = Histogram::new(3).map_err(|error| error.to_string())?;
    for a in (lane..REQUESTS).step_by(OUTSTANDING as usize) {
        let begun = Instant::now();
        let reply = sum(&cx, &peer, Sum { a, b: 1 })
            .await
            .map_err(|error| error.to_string())?;
        round_trips
            .record(begun.elapsed().as_nanos() as u64)
            .map_err(|error| error.to_string())?;
        assert_eq!(reply.total, a + 1);
    }
    Ok(round_trips)
}

async fn sum(cx: &TaskContext, peer: &Peer, sum: Sum) -> Result<Total, CallError> {
    cx.client()
        .message("sum")
        .json(&sum)?
        .to(peer)
        .request()
        .within(Duration::from_secs(5))
        .await
}
