//! A process of two shards that is dialed, and does not welcome as it should: which way messages
//! go then, and when.

use std::time::Duration;

use corelane::{
    client::{Client, Peer},
    engine::{Engine, sim::Weather},
    wire::{Affinity, HandlerEntry, Header, Hello, Kind},
};
use uuid::Uuid;

use crate::{scenario::random_limits, stranger::Stranger, world::World};

const MS: Duration = Duration::from_millis(1);
/// What goes to and fro without a pause takes no longer.
const SOON: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_secs(10);
/// For a welcome.
const WELCOME_PATIENCE: Duration = Duration::from_millis(250);
/// For a connection to a further shard.
const LINK_PATIENCE: Duration = Duration::from_secs(1);

/// A process that has dialed the first of two shards.
struct Bench {
    world: World,
    shards: [Stranger; 2],
    client: Client,
    peer: Peer,
    /// The shard that runs the handler, by their word.
    runs_on: usize,
}

impl Bench {
    fn new() -> Self {
        let mut limits = random_limits(&mut fastrand::Rng::with_seed(0));
        (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (100, 100_000);
        limits.shard.outgoing_messages_max = 100;
        limits.shard.inbox_capacity = 100;
        (limits.heartbeat_timeout, limits.handshake) = (LONG, LONG);
        let mut world = World::new(0, Weather::default(), limits);
        world.add_process(0, 1, true, &[]);
        let shards = [Stranger::new(&world), Stranger::new(&world)];
        let client = world.processes[0].client.clone();
        let peer = client.connect(&shards[0].endpoint).unwrap();
        let mut it = Self {
            world,
            shards,
            client,
            peer,
            runs_on: 1,
        };
        it.pass(SOON);
        assert_eq!(it.shards[0].count(Kind::Hello), 1);
        it.send();
        it
    }

    /// One whose first shard has welcomed it, and to whose second shard a message is to go.
    fn welcomed() -> Self {
        let mut it = Self::new();
        it.say_welcome(0, 1);
        it.pass(SOON);
        assert_eq!(it.shards[1].count(Kind::Hello), 1);
        assert_eq!(it.heard(), [0, 0], "it waits for the other shard's welcome");
        it
    }

    fn pass(&mut self, time: Duration) {
        let until = self.world.now() + time;
        while self.world.now() < until {
            for shard in &mut self.shards {
                shard.turn(self.world.now());
            }
            self.world.settle(|_| {});
            self.world.mock.increment(MS / 10);
        }
    }

    /// A message for the second shard.
    fn send(&self) {
        let message = self.client.message("run").to(&self.peer);
        message.one_way().expect("there is room");
    }

    fn say_welcome(&mut self, shard: usize, instance: u128) {
        let welcome = Hello {
            endpoints: self.shards.iter().map(|it| it.endpoint.clone()).collect(),
            shards: 2,
            shard: Some(shard),
            handlers: vec![HandlerEntry::new("run", Affinity::Shard(self.runs_on))],
            ..Hello::of_instance(Uuid::from_u128(instance))
        };
        self.shards[shard].say(&Header::new(Kind::Welcome, 0), &welcome.encode());
    }

    /// How many messages each shard has heard.
    fn heard(&self) -> [usize; 2] {
        [0, 1].map(|shard| self.shards[shard].count(Kind::OneWay))
    }

    /// What waits is sent to the first shard after so long, and no sooner.
    fn assert_patient(&mut self, patience: Duration) {
        let before = self.heard();
        self.pass(patience - 4 * SOON);
        assert_eq!(self.heard(), before, "it is not patient");
        self.pass(5 * SOON);
        assert_eq!(self.heard(), [1, 0]);
    }

    /// The connection to the second shard is closed, and what follows goes to the first.
    fn assert_given_up(&mut self) {
        let connection = self.shards[1].up[0];
        let outbox = self.shards[1].engine.outbox(connection);
        assert!(outbox.is_none(), "nobody needs it");
        self.send();
        self.pass(SOON);
        assert_eq!(self.heard(), [2, 0]);
    }
}

#[test]
fn each_shard_that_welcomes_is_sent_what_it_runs() {
    let mut it = Bench::welcomed();
    it.say_welcome(1, 1);
    it.pass(SOON);
    assert_eq!(it.heard(), [0, 1]);
    // And keeps its connection.
    it.pass(2 * LINK_PATIENCE);
    it.send();
    it.pass(SOON);
    assert_eq!(it.heard(), [0, 2]);
}

#[test]
fn who_does_not_welcome_is_sent_to_after_a_while() {
    let mut it = Bench::new();
    it.assert_patient(WELCOME_PATIENCE);
}

#[test]
fn what_waits_for_a_shard_that_does_not_welcome_goes_by_the_first() {
    let mut it = Bench::welcomed();
    it.assert_patient(LINK_PATIENCE);
    it.assert_given_up();
}

#[test]
fn what_waits_for_a_shard_that_is_another_process_goes_by_the_first() {
    let mut it = Bench::welcomed();
    it.say_welcome(1, 2);
    it.pass(SOON);
    assert_eq!(it.heard(), [1, 0]);
    it.assert_given_up();
}

#[test]
fn a_welcome_that_cannot_be_read_is_as_good_as_none() {
    let mut it = Bench::new();
    it.shards[0].say(&Header::new(Kind::Welcome, 0), b"no hello");
    it.pass(SOON);
    assert_eq!(it.heard(), [1, 0]);
    assert_eq!(it.client.peers(), []);
    let mut it = Bench::welcomed();
    it.shards[1].say(&Header::new(Kind::Welcome, 0), b"no hello");
    it.pass(SOON);
    assert_eq!(it.heard(), [1, 0]);
    it.assert_given_up();
}

/// The first shard was started anew, as another process: its connections to others are closed.
#[test]
fn links_to_a_process_that_has_been_replaced_are_closed() {
    let mut it = Bench::welcomed();
    it.say_welcome(1, 1);
    it.pass(SOON);
    let connection = it.shards[0].up[0];
    it.shards[0].engine.close(connection);
    it.pass(20 * SOON);
    assert_eq!(it.shards[0].up.len(), 2, "it is dialed anew");
    it.say_welcome(0, 2);
    it.pass(SOON);
    let link = it.shards[1].up[0];
    assert!(it.shards[1].engine.outbox(link).is_none());
    it.send();
    it.pass(SOON);
    assert_eq!(it.shards[1].up.len(), 2);
    it.say_welcome(1, 2);
    it.pass(SOON);
    assert_eq!(it.heard(), [0, 2]);
}

#[test]
fn a_second_welcome_changes_what_is_served_and_makes_nobody_another() {
    let mut it = Bench::welcomed();
    it.say_welcome(1, 1);
    it.pass(SOON);
    it.runs_on = 0;
    // Another process than was met.
    it.say_welcome(0, 2);
    it.pass(SOON);
    it.send();
    it.pass(SOON);
    assert_eq!(it.heard(), [0, 2]);
    let known: Vec<_> = it.client.peers().iter().map(|it| it.instance).collect();
    assert_eq!(known, [Uuid::from_u128(1)]);
    it.say_welcome(0, 1);
    it.pass(SOON);
    it.send();
    it.pass(SOON);
    assert_eq!(it.heard(), [1, 2]);
}

#[test]
fn a_welcome_after_a_goodbye_is_none() {
    let mut it = Bench::new();
    it.shards[0].say(&Header::new(Kind::Goodbye, 0), &[]);
    it.say_welcome(0, 1);
    it.pass(SOON);
    assert_eq!(it.client.peers(), []);
    assert_eq!(it.shards[1].up.len(), 0);
}
