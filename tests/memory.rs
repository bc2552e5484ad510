//! Memory stays flat, however many one-way messages have gone through: 10 million in release or
//! with `CORELANE_LONG=1`, 300,000 unoptimised.
//!
//! A file of its own, because what is measured is the whole process.

use std::{fs, thread, time::Duration};

use bytes::Bytes;
use corelane::{
    Config, Runtime,
    client::{Client, Outgoing, Raw},
    config::IdleStrategy,
    error::NotSent,
    handler::inline_raw,
};

/// What the process may grow by between the warm-up's end and the last message: a fraction of a
/// byte a message over ten million, and less than the queues on the way hold when they are full.
const GROWTH_BYTES_MAX: i64 = 4 << 20;

const PAYLOAD_BYTES: usize = 64;

#[test]
fn memory_stays_flat_over_millions_of_one_way_messages() {
    let is_long = !cfg!(debug_assertions) || std::env::var_os("CORELANE_LONG").is_some();
    let messages: u64 = if is_long { 10_000_000 } else { 300_000 };
    let config = Config::default()
        .with_shards(1)
        .with_idle(IdleStrategy::Adaptive)
        .with_listen(["tcp://127.0.0.1:0"]);
    let runtime = Runtime::builder(config)
        .handler(inline_raw("count", |payload, _, _| {
            assert_eq!(payload.len(), PAYLOAD_BYTES);
            Ok(())
        }))
        .start()
        .unwrap();
    let peer = runtime.client().connect(&runtime.endpoints()[0]).unwrap();
    let send = |count: u64| {
        for _ in 0..count {
            let mut payload = vec![7; PAYLOAD_BYTES].into();
            // Back-pressure: it comes back, and is sent again once there is room.
            while let Err(refused) = message(&runtime, payload).to(&peer).one_way() {
                assert_eq!(refused.why, NotSent::Full);
                payload = refused.payload;
                thread::sleep(Duration::from_micros(20));
            }
        }
        // All that was sent before has been handled once this is.
        let last = || message(&runtime, vec![7; PAYLOAD_BYTES].into());
        let call = std::iter::from_fn(|| Some(last().to(&peer).confirm().send()));
        let call = call
            .filter_map(Result::ok)
            .next()
            .expect("there is room at last");
        call.wait().unwrap();
    };

    // Fills every queue on the way at least once.
    let warm_up = messages / 10;
    send(warm_up);
    let before = resident_bytes();
    let mut most = before;
    for _ in 0..10 {
        send(messages / 10);
        most = most.max(resident_bytes());
    }
    let grown = most - before;
    println!("{messages} messages: {before} bytes resident before, {grown} more at most");
    assert!(
        grown <= GROWTH_BYTES_MAX,
        "grew by {grown} bytes over {messages} messages"
    );

    let account = peer.account();
    assert_eq!(
        (account.one_way_sent, account.lost),
        (warm_up + messages, 0)
    );
    let totals = runtime.drain();
    assert_eq!((totals.handled, totals.lost), (warm_up + messages + 11, 0));
}

fn message(runtime: &Runtime, payload: Bytes) -> Outgoing<'_, Client, Raw> {
    runtime.client().message("count").raw(payload)
}

/// Resident memory of this process.
fn resident_bytes() -> i64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<i64>().ok());
    kib.expect("a number of kB") << 10
}
