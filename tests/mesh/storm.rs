//! Everybody sends to everybody through rings of one place.

use std::time::{Duration, Instant};

use bytes::Bytes;
use corelane::{
    client::{LocalCall, Peer},
    error::{HandlerError, NotSent},
    handler::{Handler, TaskContext, inline_raw_with, spawned_raw},
};

use crate::{number, start_at};

const SHARDS: usize = 8;
/// Calls of each kind that a task has under way to each shard.
const DEPTH: usize = 4;

/// `to.3` runs inline on shard 3 and sees to it that the messages of each sender come in their
/// order; `later.3` is spawned there.
fn handlers() -> Vec<Handler> {
    let inline = (0..SHARDS).map(|shard| {
        let handler = inline_raw_with(&format!("to.{shard}"), move |info| {
            assert_eq!(info.shards, SHARDS);
            let mut last = [0; SHARDS];
            move |payload, reply, cx| {
                let (sender, sequence) = read(payload);
                if cx.shard().shard != shard || sequence <= last[sender] {
                    let text = format!("{sequence} of {sender} after {}", last[sender]);
                    return Err(HandlerError::new(text));
                }
                last[sender] = sequence;
                reply.extend_from_slice(payload);
                Ok(())
            }
        });
        handler.on_shard(shard)
    });
    let spawned = (0..SHARDS).map(|shard| {
        let handler = spawned_raw(&format!("later.{shard}"), |payload: Bytes, cx| async move {
            cx.sleep(Duration::from_micros(50)).await;
            Ok(payload)
        });
        handler.on_shard(shard)
    });
    inline.chain(spawned).collect()
}

fn write(sender: usize, sequence: u64) -> Bytes {
    let mut payload = sequence.to_le_bytes().to_vec();
    payload.push(sender as u8);
    payload.into()
}

fn read(payload: &[u8]) -> (usize, u64) {
    let sequence = payload[..8].try_into().expect("eight bytes");
    (payload[8].into(), u64::from_le_bytes(sequence))
}

/// What a task has sent.
#[derive(Debug, Default)]
struct Sent {
    calls: u64,
    one_way: u64,
}

/// Sends to all shards until then, from one of them and through it, and sees that each call is
/// answered.
async fn blow(cx: TaskContext, peer: Peer, until: Instant) -> Sent {
    let client = cx.client();
    let sender = cx.shard().shard;
    let mut sequences = [0; SHARDS];
    let mut sent = Sent::default();
    while Instant::now() < until {
        let mut requests: Vec<(Bytes, LocalCall<_>)> = Vec::new();
        let mut confirms = Vec::new();
        for (shard, sequence) in sequences.iter_mut().enumerate() {
            let mut next = || {
                *sequence += 1;
                write(sender, *sequence)
            };
            for _ in 0..DEPTH {
                for name in [format!("to.{shard}"), format!("later.{shard}")] {
                    let payload = next();
                    let message = client.message(&name).raw(payload.clone()).to(&peer);
                    requests.push((payload, message.request().send().expect("has room")));
                }
                let one_way = client.message(&format!("to.{shard}")).raw(next()).to(&peer);
                match one_way.one_way() {
                    Ok(()) => sent.one_way += 1,
                    Err(refused) => assert_eq!(refused.why, NotSent::Full),
                }
                let confirm = client.message(&format!("to.{shard}")).raw(next()).to(&peer);
                confirms.push(confirm.confirm().send().expect("has room"));
            }
        }
        sent.calls += (requests.len() + confirms.len()) as u64;
        for (payload, request) in requests {
            assert_eq!(request.await.expect("is answered"), payload);
        }
        for confirm in confirms {
            confirm.await.expect("is confirmed");
        }
    }
    sent
}

/// `CORELANE_STORM_S=60` lets it blow for a minute.
#[test]
fn all_to_all_through_rings_of_one_place_neither_locks_up_nor_loses_nor_swaps() {
    let anywhere = ["tcp://127.0.0.1:0".to_owned()];
    let runtime = start_at(&anywhere, SHARDS, handlers(), |limits| {
        limits.ring_capacity = 1;
    });
    let until = Instant::now() + Duration::from_secs(number("CORELANE_STORM_S", 3));
    let client = runtime.client();
    let endpoints: Vec<String> = runtime.shards().map(|(_, it)| it[0].clone()).collect();
    let tasks = endpoints.iter().enumerate().map(|(shard, endpoint)| {
        let peer = client.connect_routed(shard, endpoint).expect("connects");
        runtime.run_on(shard, move |cx| blow(cx, peer, until))
    });
    let tasks: Vec<_> = tasks.collect();
    let mut sent = Sent::default();
    for task in tasks {
        let Sent { calls, one_way } = task.wait().expect("no task panicked");
        sent.calls += calls;
        sent.one_way += one_way;
    }
    let counters = runtime.metrics().total();
    let totals = runtime.drain();
    println!(
        "{} calls, {} one-way messages, {} hops, {} shards woken",
        sent.calls, sent.one_way, counters.hopped_out, counters.shards_woken
    );
    assert_eq!(totals.accepted, sent.calls + sent.one_way);
    assert_eq!(totals.handled, totals.accepted, "{totals:?}");
    // Of eight messages, seven are for another shard.
    assert!(counters.hopped_in > totals.accepted / 2);
}
