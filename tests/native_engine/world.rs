//! Engines driven by hand in one thread: the sockets are real, the clock is not.

use std::{fmt, thread, time};

use corelane::{
    config::Endpoint,
    engine::{
        ConnectionId, Engine, EngineOptions, Event,
        native::{Native, Resolver},
    },
    error::Lost,
    wire::{Header, Kind, Outbox, Reason, Received},
};
use quanta::Instant;

/// Far beyond what any step takes, on a busy machine too.
pub(crate) const PATIENCE: time::Duration = time::Duration::from_secs(30);
/// How much later each turn is than the one before: nothing, against every limit.
const TURN: time::Duration = time::Duration::from_nanos(100);
/// What a shard takes in a turn.
pub(crate) const TURN_MESSAGES_MAX: usize = 256;

/// The defaults of the configuration.
pub(crate) fn options() -> EngineOptions {
    let ms = time::Duration::from_millis;
    EngineOptions {
        message_bytes_max: 1 << 20,
        frames_max: 16,
        outgoing_messages_max: 1_000,
        outgoing_bytes_max: 4 << 20,
        buffered_bytes_max: 256 << 20,
        slow_consumer: ms(5_000),
        handshake: ms(5_000),
        handshake_bytes_max: 4_096,
        unauthenticated_max: 128,
        heartbeat_interval: ms(1_000),
        heartbeat_timeout: ms(3_000),
        reconnect_min: ms(100),
        reconnect_max: ms(5_000),
        hwm: 0,
        linger: ms(0),
    }
}

pub(crate) fn tcp() -> Endpoint {
    "tcp://127.0.0.1:0".parse().expect("an endpoint")
}

/// What an engine told of, kept.
#[derive(Clone, PartialEq)]
pub(crate) enum Seen {
    Up(ConnectionId),
    Message(ConnectionId, u64, Vec<u8>),
    Declined(ConnectionId, u64, Reason),
    Malformed(ConnectionId, usize),
    /// With the messages that have not left.
    Down(ConnectionId, Lost, usize),
}

/// Payloads by their length: some are a mebibyte.
impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seen::Up(id) => write!(f, "Up({id:?})"),
            Seen::Message(id, correlation, payload) => {
                write!(f, "Message({id:?}, {correlation}, {} bytes)", payload.len())
            }
            Seen::Declined(id, correlation, reason) => {
                write!(f, "Declined({id:?}, {correlation}, {reason:?})")
            }
            Seen::Malformed(id, frames) => write!(f, "Malformed({id:?}, {frames})"),
            Seen::Down(id, why, unsent) => write!(f, "Down({id:?}, {why:?}, {unsent})"),
        }
    }
}

/// What a message is answered with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Answer {
    Nothing,
    /// Its payload, copied.
    Copy,
    /// Its payload, from where it is.
    Buffer,
}

/// One engine, and what its shard would be.
pub(crate) struct End {
    pub(crate) engine: Native,
    pub(crate) answer: Answer,
    pub(crate) seen: Vec<Seen>,
    /// Asks whether it may park after each turn without work, as a shard does that parks.
    pub(crate) parks: bool,
}

impl End {
    fn new(options: EngineOptions, resolver: Resolver, now: Instant) -> Self {
        Self {
            engine: Native::new(options, resolver, now).expect("an engine"),
            answer: Answer::Nothing,
            seen: Vec::new(),
            parks: false,
        }
    }

    /// A turn of its shard. Whether anything happened.
    pub(crate) fn turn(&mut self, now: Instant) -> bool {
        let Self {
            engine,
            answer,
            seen,
            ..
        } = self;
        let mut work = engine.poll(now, TURN_MESSAGES_MAX, &mut |event| {
            seen.push(keep(event, *answer));
        });
        work += engine.flush(now);
        if work == 0 && self.parks {
            self.engine.may_park();
        }
        work > 0
    }

    /// Takes what was seen.
    pub(crate) fn take(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.seen)
    }

    pub(crate) fn ups(&self) -> Vec<ConnectionId> {
        let up = |seen: &Seen| match seen {
            Seen::Up(id) => Some(*id),
            _ => None,
        };
        self.seen.iter().filter_map(up).collect()
    }

    pub(crate) fn downs(&self) -> Vec<(ConnectionId, Lost)> {
        let down = |seen: &Seen| match seen {
            Seen::Down(id, why, _) => Some((*id, why.clone())),
            _ => None,
        };
        self.seen.iter().filter_map(down).collect()
    }

    pub(crate) fn messages(&self) -> Vec<(ConnectionId, u64, &[u8])> {
        let message = |seen| match seen {
            &Seen::Message(id, correlation, ref payload) => Some((id, correlation, &payload[..])),
            _ => None,
        };
        self.seen.iter().filter_map(message).collect()
    }

    /// Sends if there is room.
    pub(crate) fn send(&mut self, to: ConnectionId, correlation: u64, payload: &[u8]) -> bool {
        let header = Header::new(Kind::OneWay, correlation);
        let outbox = self.engine.outbox(to);
        outbox.is_some_and(|outbox| outbox.push(&header, payload).is_ok())
    }
}

fn keep(event: Event<'_>, answer: Answer) -> Seen {
    match event {
        Event::Up(id) => Seen::Up(id),
        Event::Message(incoming) => {
            let mut message = incoming.message;
            let header = Header::decode(message.header()).expect("a header");
            let payload = message.payload().to_vec();
            reply(answer, header.correlation, &mut message, incoming.outbox);
            Seen::Message(incoming.connection, header.correlation, payload)
        }
        Event::Declined {
            connection,
            header,
            reason,
            ..
        } => {
            let header = Header::decode(header).expect("a header");
            Seen::Declined(connection, header.correlation, reason)
        }
        Event::Malformed { connection, frames } => Seen::Malformed(connection, frames),
        Event::Down {
            connection,
            why,
            outbox,
        } => Seen::Down(connection, why, outbox.messages()),
    }
}

fn reply(answer: Answer, correlation: u64, message: &mut Received<'_>, outbox: &mut Outbox) {
    let header = Header::new(Kind::Response, correlation);
    match answer {
        Answer::Nothing => {}
        Answer::Copy => outbox.push(&header, message.payload()).expect("room"),
        Answer::Buffer => {
            let (buffer, payload) = message.take_buffer();
            let draft = outbox.draft(&header).expect("room");
            draft.commit_with_buffer(buffer, payload);
        }
    }
}

/// Some ends and their clock.
pub(crate) struct World {
    pub(crate) ends: Vec<End>,
    pub(crate) now: Instant,
}

impl World {
    /// One end for each, whose names nobody resolves.
    pub(crate) fn new(each: impl IntoIterator<Item = EngineOptions>) -> Self {
        let now = Instant::now();
        let (resolver, _) = Resolver::new();
        let end = |options| End::new(options, resolver.clone(), now);
        Self {
            ends: each.into_iter().map(end).collect(),
            now,
        }
    }

    /// A listening end, and where it listens. It answers with copies.
    pub(crate) fn serving(options: EngineOptions, at: &Endpoint) -> (Self, Endpoint) {
        let mut world = Self::new([options]);
        let bound = world.ends[0].engine.listen(at).expect("an endpoint");
        world.ends[0].answer = Answer::Copy;
        (world, bound)
    }

    /// A listening end and one that is connected to it: their ids for each other come last.
    pub(crate) fn pair(
        serving: EngineOptions,
        calling: EngineOptions,
        at: &Endpoint,
    ) -> (Self, Endpoint, [ConnectionId; 2]) {
        let mut world = Self::new([serving, calling]);
        let bound = world.ends[0].engine.listen(at).expect("an endpoint");
        world.ends[0].answer = Answer::Copy;
        let dialed = world.ends[1].engine.connect(&bound).expect("an endpoint");
        world.until("they are connected", |world| {
            world.ends.iter().all(|end| !end.ups().is_empty())
        });
        let accepted = world.ends[0].ups()[0];
        world.ends.iter_mut().for_each(|end| drop(end.take()));
        (world, bound, [accepted, dialed])
    }

    /// An end that has a thread resolve names for it.
    pub(crate) fn resolving(options: EngineOptions) -> Self {
        let now = Instant::now();
        let (resolver, serve) = Resolver::new();
        thread::spawn(serve);
        Self {
            ends: vec![End::new(options, resolver, now)],
            now,
        }
    }

    pub(crate) fn server(&mut self) -> &mut End {
        &mut self.ends[0]
    }

    /// One turn of each end. Whether anything happened.
    pub(crate) fn turn(&mut self) -> bool {
        self.now += TURN;
        let now = self.now;
        let worked = self.ends.iter_mut().map(|end| end.turn(now));
        worked.fold(false, |any, worked| any | worked)
    }

    /// So many turns.
    pub(crate) fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.turn();
        }
    }

    /// Turns until it holds; virtual time all but stands still.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let began = time::Instant::now();
        loop {
            let worked = self.turn();
            if holds(self) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "not reached: {what}");
            if !worked {
                // The kernel, the resolver or the other end may need this CPU.
                thread::sleep(time::Duration::from_micros(50));
            }
        }
    }

    /// Lets time pass in steps of this length, with turns after each, until it holds. Returns how
    /// long that was.
    #[track_caller]
    pub(crate) fn pass(
        &mut self,
        at_most: time::Duration,
        step: time::Duration,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> Option<time::Duration> {
        let began = self.now;
        while self.now - began < at_most {
            self.now += step;
            self.turns(20);
            if holds(self) {
                return Some(self.now - began);
            }
        }
        None
    }
}
