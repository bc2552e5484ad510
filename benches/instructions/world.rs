//! The shards of one process, turned in one thread under a virtual clock.

use std::{rc::Rc, sync::Arc, time::Duration};

use corelane::{
    client::{self, Client, ClientOptions, LocalClient, ShardPort},
    engine::Pauses,
    handler::{Handler, HandlerError, Registry, ShardInfo, inline, inline_raw},
    route::{self, Doorbell, Mesh, inbox},
    shard::{BlockingPorts, Parcel, Parts, Shard, ShardOptions},
    wire::{Codec, HandlerKey, Header, Hello, Kind},
};
use quanta::{Clock, Mock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::memory::{Memory, Peer};

/// Messages that one turn reads at most: the default of `limits.turn_messages_max`.
pub(crate) const TURN_MESSAGES_MAX: usize = 32;
/// What is echoed.
pub(crate) const PAYLOAD: [u8; 64] = [7; 64];
/// An echoed payload and what stands before it: two frames, their flags and lengths.
const ECHO_BYTES: usize = 2 + 40 + 2 + PAYLOAD.len();
const RING_CAPACITY: usize = 1_024;
/// Longer than a shard waits for a welcome.
const WELCOME_PATIENCE: Duration = Duration::from_secs(1);
/// The time goes on by so much in each round.
const ROUND: Duration = Duration::from_micros(1);

/// What the handler `sum` is sent.
#[derive(Deserialize)]
struct Sum {
    a: i64,
    b: i64,
}

/// What it replies.
#[derive(Serialize)]
struct Total {
    total: i64,
}

/// `echo` runs where its message arrives, `far` on the last shard.
pub(crate) fn handlers() -> [Handler; 3] {
    let echo = |name: &str| {
        inline_raw(name, |payload, reply, _| {
            reply.extend_from_slice(payload);
            Ok(())
        })
    };
    let sum = inline("sum", |Sum { a, b }, _| {
        Ok::<_, HandlerError>(Total { total: a + b })
    });
    [echo("echo"), echo("far").on_last_shard(), sum]
}

pub(crate) fn request(handler: &str, codec: Codec) -> Header {
    Header {
        codec,
        handler: HandlerKey::of(handler),
        deadline_us: 30_000_000,
        ..Header::new(Kind::Request, 0x0123_4567_89ab_cdef)
    }
}

/// Not at zero, as no machine is.
pub(crate) fn clock() -> (Clock, Arc<Mock>) {
    let (clock, mock) = Clock::mock();
    mock.increment(Duration::from_secs(1));
    (clock, mock)
}

pub(crate) fn shard_info(shard: usize, shards: usize) -> ShardInfo {
    ShardInfo {
        shard,
        shards,
        cpu: shard,
        numa_node: 0,
    }
}

/// The meshes of so many shards, made in one thread.
pub(crate) fn meshes<T>(doorbells: &[Arc<Doorbell>]) -> Vec<Mesh<T>> {
    let seats = route::seats(doorbells.len()).into_iter();
    let joining: Vec<_> = seats.map(|seat| seat.offer(RING_CAPACITY)).collect();
    let complete = joining.into_iter().map(|it| it.complete(doorbells));
    complete.map(|it| it.expect("all have offered")).collect()
}

pub(crate) fn doorbells(shards: usize) -> Vec<Arc<Doorbell>> {
    (0..shards).map(|_| Arc::default()).collect()
}

pub(crate) struct World {
    clock: Clock,
    mock: Arc<Mock>,
    pub(crate) shards: Vec<Shard<Memory>>,
    /// Of each shard, the one that sends to it.
    peers: Vec<Rc<Peer>>,
}

impl World {
    /// So many shards, on each of which requests to this handler arrive.
    pub(crate) fn serving(shards: usize, handler: &str) -> Self {
        let header = request(handler, Codec::Raw);
        Self::new(shards, || Memory::accepting(&header, &PAYLOAD))
    }

    /// One shard, and its connection to another process, which echoes.
    pub(crate) fn calling() -> (Self, LocalClient, client::Peer) {
        let mut world = Self::new(1, || Memory::dialing(&PAYLOAD));
        let client = world.shards[0].client().clone();
        let peer = client.connect("tcp://192.0.2.1:7400");
        // It comes up, and its hello leaves; a welcome never comes.
        world.turn_all();
        world.mock.increment(WELCOME_PATIENCE);
        world.turn_all();
        (world, client, peer.expect("is an endpoint"))
    }

    fn new(shards: usize, engine: impl Fn() -> Memory) -> Self {
        let (clock, mock) = clock();
        let doorbells = doorbells(shards);
        let mut ports = Vec::new();
        let mut inboxes = Vec::new();
        for doorbell in &doorbells {
            let (connects, to_connect) = inbox(64, doorbell);
            let (submissions, to_submit) = inbox(64, doorbell);
            ports.push(ShardPort {
                connects,
                submissions,
            });
            inboxes.push((to_connect, to_submit, inbox(16, doorbell).1));
        }
        let client = Client::new(ports, clock.clone(), CLIENT_OPTIONS);
        let mut meshes = meshes::<Parcel>(&doorbells).into_iter();
        let hello = Hello::of_instance(Uuid::from_u128(1));
        let (mut made, mut peers) = (Vec::new(), Vec::new());
        for (number, (connects, submissions, commands)) in inboxes.into_iter().enumerate() {
            let info = shard_info(number, shards);
            let engine = engine();
            peers.push(engine.peer());
            let parts = Parts {
                info,
                options: SHARD_OPTIONS,
                clock: clock.clone(),
                registry: Registry::new(&handlers(), &info),
                connects,
                submissions,
                commands,
                doorbell: doorbells[number].clone(),
                mesh: meshes.next().expect("is one for each"),
                client: client.clone(),
                spawner: Box::new(|_| unreachable!("no handler here spawns")),
                jobs: BlockingPorts::default(),
            };
            made.push(Shard::new(engine, &hello, parts));
        }
        let mut world = Self {
            clock,
            mock,
            shards: made,
            peers,
        };
        // The connections come up.
        world.turn_all();
        world
    }

    /// So many more messages come to a shard.
    pub(crate) fn send(&mut self, shard: usize, messages: usize) {
        let due = &self.peers[shard].due;
        due.set(due.get() + messages);
    }

    /// A turn of each shard, by one and the same time.
    pub(crate) fn turn_all(&mut self) {
        self.mock.increment(ROUND);
        let now = self.clock.now();
        for shard in &mut self.shards {
            shard.turn(now);
        }
    }

    /// How many messages the shards have echoed.
    ///
    /// # Panics
    ///
    /// If anything else came back.
    pub(crate) fn echoed(&self) -> u64 {
        let bytes: usize = self.peers.iter().map(|it| it.sent_bytes.get()).sum();
        let sent = self.sent();
        assert_eq!(bytes as u64, sent * ECHO_BYTES as u64, "not all are echoes");
        sent
    }

    /// How many messages have left.
    pub(crate) fn sent(&self) -> u64 {
        self.peers.iter().map(|it| it.sent.get()).sum()
    }
}

const CLIENT_OPTIONS: ClientOptions = ClientOptions {
    message_bytes_max: 1 << 20,
    outgoing_messages_max: 1_000,
    outgoing_bytes_max: 4 << 20,
    deadline: Duration::from_secs(30),
};

const SHARD_OPTIONS: ShardOptions = ShardOptions {
    turn_messages_max: TURN_MESSAGES_MAX,
    message_bytes_max: 1 << 20,
    frames_max: 16,
    close_within: Duration::from_secs(1),
    spawned_max: 16,
    outstanding_max: 1_024,
    outgoing_messages_max: 1_000,
    outgoing_bytes_max: 4 << 20,
    buffered_bytes_max: 256 << 20,
    inbox_capacity: 64,
    reconnect: Pauses {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(5),
    },
    inline_budget: Duration::from_millis(1),
    has_histograms: true,
    shedding: None,
};
