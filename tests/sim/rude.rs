//! A stranger among the processes of a scenario: it answers hellos and calls late, twice, wrongly,
//! falsely or not at all, and makes calls of its own on the connections that others have dialed.

use std::time::Duration;

use corelane::{
    engine::{ConnectionId, Engine},
    wire::{HandlerKey, Header, Hello, Kind, Reason},
};
use fastrand::Rng;
use quanta::Instant;
use uuid::Uuid;

use crate::{
    handlers::{Conduct, Order, Runs},
    stranger::Stranger,
    world::World,
};

/// The process that its runs are entered for.
pub(crate) const STRANGER: usize = usize::MAX;
/// Its own calls' ids begin here.
pub(crate) const STRANGER_IDS: u32 = 1 << 30;
/// Their lanes, one for each.
const STRANGER_LANE: u32 = 1 << 29;

pub(crate) struct Rude {
    pub(crate) stranger: Stranger,
    random: Rng,
    runs: Runs,
    /// Somebody else's endpoint, to say that it is its own.
    lie: String,
    /// What it will say, and when.
    later: Vec<(Instant, ConnectionId, Header, Vec<u8>)>,
    calls: u32,
    /// It answers, and calls nobody any more.
    is_hushed: bool,
}

impl Rude {
    pub(crate) fn new(world: &World, seed: u64, runs: Runs, lie: String) -> Self {
        Self {
            stranger: Stranger::new(world),
            random: Rng::with_seed(seed),
            runs,
            lie,
            later: Vec::new(),
            calls: 0,
            is_hushed: false,
        }
    }

    pub(crate) fn hush(&mut self) {
        self.is_hushed = true;
    }

    /// When it must be turned though nothing arrives.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let later = self.later.iter().map(|it| it.0);
        later.chain(self.stranger.engine.next_wake()).min()
    }

    /// Listens, and says what it has to say. True if there was anything.
    pub(crate) fn turn(&mut self, now: Instant) -> bool {
        let is_due = self.next_wake().is_some_and(|at| at <= now);
        if !is_due && self.stranger.engine.may_park() && self.calls > 0 {
            return false;
        }
        // The first turn finds out when there is to be another.
        self.calls = self.calls.max(1);
        let mut work = self.stranger.turn(now);
        for (connection, header, payload) in std::mem::take(&mut self.stranger.heard) {
            self.react(now, connection, &header, payload);
        }
        for (_, connection, header, payload) in self.later.extract_if(.., |it| it.0 <= now) {
            work += 1;
            if let Some(outbox) = self.stranger.engine.outbox(connection) {
                // Without room it goes unsaid.
                let _ = outbox.push(&header, &payload);
            }
        }
        work += self.stranger.engine.flush(now);
        work > 0
    }

    fn react(&mut self, now: Instant, to: ConnectionId, header: &Header, payload: Vec<u8>) {
        match header.kind {
            Kind::Hello => self.welcome(now, to),
            Kind::OneWay | Kind::Confirm | Kind::Request => self.serve(now, to, header, payload),
            _ => {}
        }
        match self.random.u8(..40) {
            0 => self.say(now, to, Header::new(Kind::Goodbye, 0), Vec::new()),
            1..8 => self.call(now, to),
            9 => (0..20).for_each(|_| self.call(now, to)),
            8 => {
                let foreign = Header::new(Kind::Response, self.random.u64(..));
                self.say(now, to, foreign, b"foreign".to_vec());
            }
            _ => {}
        }
    }

    fn say(&mut self, at: Instant, to: ConnectionId, header: Header, payload: Vec<u8>) {
        self.later.push((at, to, header, payload));
    }

    fn random_delay(&mut self) -> Duration {
        Duration::from_micros(self.random.u64(..20_000))
    }

    fn welcome(&mut self, now: Instant, to: ConnectionId) {
        let welcome = Header::new(Kind::Welcome, 0);
        let instance = Uuid::from_u128(self.random.u128(..4));
        let mut hello = Hello::of_instance(instance);
        hello.endpoints = vec![self.stranger.endpoint.clone()];
        hello.shards = self.random.usize(..2);
        match self.random.u8(..8) {
            0 => {}
            1 => self.say(now, to, welcome, b"welcome".to_vec()),
            2 => {
                let at = now + self.random_delay();
                self.say(at, to, welcome, hello.encode());
            }
            3 => {
                hello.endpoints.push(self.lie.clone());
                (hello.shards, hello.shard) = (2, Some(self.random.usize(..3)));
                self.say(now, to, welcome, hello.encode());
            }
            _ => self.say(now, to, welcome, hello.encode()),
        }
    }

    fn serve(&mut self, now: Instant, to: ConnectionId, header: &Header, payload: Vec<u8>) {
        let nack = |reason| Header {
            reason,
            ..Header::new(Kind::Nack, header.correlation)
        };
        let manners = self.random.u8(..12);
        if manners == 0 {
            return;
        }
        if header.kind == Kind::OneWay {
            self.runs.enter(&payload);
            return;
        }
        if manners == 1 {
            let refusal = nack(Reason::Overloaded);
            return self.say(now, to, refusal, b"no".to_vec());
        }
        let order = self.runs.enter(&payload);
        let (answer, payload) = match (order.conduct, header.kind) {
            (Conduct::Fail, _) => (nack(Reason::HandlerFailed), b"failed".to_vec()),
            (Conduct::Panic, _) => (nack(Reason::HandlerPanicked), b"panicked".to_vec()),
            (_, Kind::Confirm) => (Header::new(Kind::Ack, header.correlation), Vec::new()),
            _ => (Header::new(Kind::Response, header.correlation), payload),
        };
        let wrong_kind = Header {
            kind: match answer.kind {
                Kind::Ack => Kind::Response,
                Kind::Response => Kind::Ack,
                other => other,
            },
            ..answer
        };
        // Not another call's: nobody could tell that from its answer.
        let foreign = Header {
            correlation: answer.correlation ^ (1 << self.random.u32(56..64)),
            ..answer
        };
        let late = now + self.random_delay();
        match manners {
            2 => self.say(late, to, answer, payload),
            3 => {
                self.say(now, to, answer, payload.clone());
                self.say(late, to, answer, payload);
            }
            4 => self.say(now, to, wrong_kind, payload),
            5 => self.say(now, to, foreign, payload),
            _ => self.say(now, to, answer, payload),
        }
    }

    /// Calls whoever has dialed it, by the smallest numbers, again on each connection.
    fn call(&mut self, now: Instant, to: ConnectionId) {
        if self.is_hushed {
            return;
        }
        self.calls += 1;
        let order = Order {
            id: STRANGER_IDS + self.calls,
            // What does not run where it arrives may be overtaken by what does.
            lane: STRANGER_LANE + self.calls,
            sequence: self.calls,
            conduct: Conduct::Return,
            takes_us: self.random.u32(..5_000),
        };
        let handlers = ["run", "sleep", "spin", "run.last", "gather", "block"];
        let handler = handlers[self.random.usize(..handlers.len())];
        let kind = [Kind::OneWay, Kind::Confirm, Kind::Request][self.random.usize(..3)];
        let header = Header {
            handler: HandlerKey::of(handler),
            deadline_us: match kind {
                Kind::OneWay => 0,
                _ => self.random.u32(1..10_000),
            },
            ..Header::new(kind, u64::from(self.calls))
        };
        self.say(now, to, header, order.encode().to_vec());
    }
}
