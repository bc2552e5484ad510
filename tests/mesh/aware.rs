//! Clients that know the shards of the process that they call.

use std::time::Duration;

use bytes::Bytes;
use corelane::{
    Runtime,
    client::Peer,
    handler::{Handler, TaskContext, inline_raw},
    wire::shard_of_key,
};

use crate::{caller, number, start, start_at};

const SHARDS: usize = 3;
/// Calls under way at once.
const DEPTH: u64 = 48;

/// Says on which shard it runs.
fn place(name: &str) -> Handler {
    inline_raw(name, |_, reply, cx| {
        reply.extend_from_slice(&[cx.shard().shard as u8]);
        Ok(())
    })
}

fn places() -> Vec<Handler> {
    vec![
        place("local"),
        place("last").on_last_shard(),
        place("key").by_route_key(),
    ]
}

/// Calls the three handlers in turn, and sees that each message ran where it belongs.
async fn call_all(cx: TaskContext, peer: Peer, messages: u64) {
    let client = cx.client();
    for first in (0..messages).step_by(DEPTH as usize) {
        let calls: Vec<_> = (first..messages.min(first + DEPTH))
            .map(|n| {
                let key = n + 1;
                let (name, expected) = match n % 3 {
                    0 => ("local", 0),
                    1 => ("last", SHARDS - 1),
                    _ => ("key", shard_of_key(key, SHARDS)),
                };
                let message = client.message(name).route_key(key).to(&peer);
                (expected, message.request().send().expect("has room"))
            })
            .collect();
        for (expected, call) in calls {
            let ran_on = call.await.expect("is answered");
            assert_eq!(ran_on, [expected as u8][..]);
        }
    }
}

/// `CORELANE_MESSAGES=1000000` makes it a million.
#[test]
fn nothing_hops_that_a_client_sends_who_knows_the_shards() {
    let messages = number("CORELANE_MESSAGES", 30_000);
    let (runtime, caller) = (start(SHARDS, places()), caller(1));
    let peer = caller.client().connect(&runtime.endpoints()[0]).unwrap();
    let account = peer.clone();
    let calling = caller.run_on(0, move |cx| call_all(cx, peer, messages));
    calling.wait().expect("the task did not panic");
    let account = account.account();
    assert_eq!((account.accepted, account.handled), (messages, messages));
    let counters = runtime.metrics().total();
    assert_eq!((counters.handled, counters.hopped_in), (messages, 0));
    println!("{messages} messages, {} hops", counters.hopped_in);
}

/// So that two processes share the work without anybody's choosing.
#[test]
fn local_handlers_are_called_from_shard_to_shard() {
    let (runtime, caller) = (start(2, places()), caller(3));
    let client = caller.client();
    for own in 0..3 {
        let peer = client.connect_from(own, &runtime.endpoints()[0]).unwrap();
        let ran_on = client.message("local").to(&peer).request().wait().unwrap();
        assert_eq!(ran_on, [own as u8 % 2][..]);
    }
    // Who dials another shard than the first means it.
    let second = runtime.shards().nth(1).unwrap().1[0].clone();
    let peer = client.connect_from(0, &second).unwrap();
    let ran_on = client.message("local").to(&peer).request().wait().unwrap();
    assert_eq!(ran_on, [1][..]);
    assert_eq!(runtime.metrics().total().hopped_in, 0);
}

fn last(caller: &Runtime, peer: &Peer) -> Bytes {
    let message = caller.client().message("last").to(peer);
    message.request().wait().expect("is answered")
}

#[test]
fn a_shard_that_cannot_be_reached_is_reached_by_a_hop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("service");
    let endpoint = format!("ipc://{}", path.display());
    let runtime = start_at(std::slice::from_ref(&endpoint), 2, places(), |_| {});
    // As behind a firewall that lets the first port through.
    std::fs::remove_file(path.with_extension("1")).unwrap();
    let caller = caller(1);
    let peer = caller.client().connect(&endpoint).unwrap();
    for hops in 1..=3 {
        assert_eq!(last(&caller, &peer), [1][..]);
        assert_eq!(runtime.metrics().total().hopped_in, hops);
    }
}

/// Its shards are others, and more.
#[test]
fn a_restarted_process_is_learnt_anew() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = format!("ipc://{}", directory.path().join("service").display());
    let caller = caller(1);
    let peer = caller.client().connect(&endpoint).unwrap();
    for shards in [2, 3, 1, 4] {
        let runtime = start_at(std::slice::from_ref(&endpoint), shards, places(), |_| {});
        // The first one may find the old connections in the middle of their ends.
        let within = Duration::from_secs(20);
        let until = std::time::Instant::now() + within;
        let ran_on = loop {
            let message = caller.client().message("last").to(&peer);
            match message.request().within(Duration::from_secs(5)).wait() {
                Ok(ran_on) => break ran_on,
                Err(error) if std::time::Instant::now() > until => panic!("{error}"),
                Err(_) => {}
            }
        };
        assert_eq!(ran_on, [shards as u8 - 1][..]);
        assert_eq!(last(&caller, &peer), [shards as u8 - 1][..]);
        let totals = runtime.drain();
        assert_eq!(totals.accepted, totals.handled + totals.nacked);
    }
}
