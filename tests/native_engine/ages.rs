//! Since when a message may have waited, as the engine tells: never later than it was sent, and not
//! much earlier than its connection began to have something to read.

use std::time::Duration;

use corelane::{
    config::Endpoint,
    engine::{ConnectionId, Engine, EngineOptions, Event},
    wire::Header,
};
use fastrand::Rng;
use quanta::Instant;
use tempfile::TempDir;

use crate::world::{World, options};

const PEERS: usize = 9;
const STEP: Duration = Duration::from_millis(1);
/// How long some connections are not looked at while others have something to be read.
const SLACK: Duration = Duration::from_millis(40);

/// A message, by the number that it bears.
struct Sent {
    peer: usize,
    at: Instant,
    /// When its connection began to have something to be read, without a pause until it was sent.
    busy_since: Instant,
}

#[test]
fn what_is_read_is_no_older_than_its_connection_was_busy_and_no_younger_than_it_is() {
    for seed in 0..20 {
        // A Unix socket: what was sent is there, at once.
        let directory = TempDir::new().unwrap();
        let at = format!("ipc://{}/socket", directory.path().display());
        try_seed(seed, &at.parse().unwrap());
    }
}

fn try_seed(seed: u64, at: &Endpoint) {
    let mut random = Rng::with_seed(seed);
    let hour = Duration::from_secs(3_600);
    let quiet = EngineOptions {
        heartbeat_interval: hour,
        heartbeat_timeout: hour,
        ..options()
    };
    let mut world = World::new(vec![quiet; PEERS + 1]);
    let bound = world.server().engine.listen(at).unwrap();
    let connect = |world: &mut World, peer: usize| world.ends[peer].engine.connect(&bound).unwrap();
    let ids: Vec<_> = (1..=PEERS).map(|it| connect(&mut world, it)).collect();
    world.until("all are connected", |world| {
        let up = world.ends[1..].iter().all(|end| !end.ups().is_empty());
        up && world.ends[0].ups().len() == PEERS
    });
    let mut sent: Vec<Sent> = Vec::new();
    let mut unread = [0; PEERS];
    let mut busy_since = [world.now; PEERS];
    let (mut slept, mut oldest) = (0, Duration::ZERO);
    for step in 0..2_000 {
        world.now += STEP;
        let now = world.now;
        let is_quiet = unread.iter().all(|it| *it == 0);
        if is_quiet && random.u8(..5) == 0 && world.server().engine.may_park() {
            world.now += Duration::from_secs(1);
            slept += 1;
            continue;
        }
        // Some hundred steps of too much, then of little, then of nothing.
        let most = [4, 1, 0][step / 100 % 3];
        for _ in 0..random.usize(0..=most) {
            let peer = random.usize(..PEERS);
            if unread[peer] == 0 {
                busy_since[peer] = now;
            }
            unread[peer] += 1;
            send(&mut world, peer, ids[peer], sent.len() as u64);
            sent.push(Sent {
                peer,
                at: now,
                busy_since: busy_since[peer],
            });
        }
        for (number, since) in read(&mut world, random.usize(1..4)) {
            let message = &sent[number as usize];
            unread[message.peer] -= 1;
            assert!(
                since <= message.at,
                "seed {seed}, step {step}: it was sent before"
            );
            let early = message.busy_since.saturating_duration_since(since);
            assert!(
                early <= SLACK,
                "seed {seed}, step {step}: {early:?} before anything was there"
            );
            oldest = oldest.max(now - since);
        }
    }
    assert!(
        slept > 10 && oldest > SLACK,
        "seed {seed}: {slept}, {oldest:?}"
    );
}

fn send(world: &mut World, peer: usize, id: ConnectionId, number: u64) {
    let now = world.now;
    let end = &mut world.ends[peer + 1];
    assert!(end.send(id, number, b"x"), "there is room");
    end.engine.flush(now);
}

/// A turn that takes so many messages at most: their numbers, and since when.
fn read(world: &mut World, most: usize) -> Vec<(u64, Instant)> {
    let now = world.now;
    let mut read = Vec::new();
    world.server().engine.poll(now, most, &mut |event| {
        if let Event::Message(incoming) = event {
            let header = Header::decode(incoming.message.header()).unwrap();
            let since = incoming.since.expect("the engine knows");
            read.push((header.correlation, since));
        }
    });
    read
}
