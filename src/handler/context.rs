//! What a handler knows of its call and of where it runs.

use std::{fmt, rc::Rc, time::Duration};

use quanta::Instant;
use uuid::Uuid;

use super::{Sleep, Timers};
use crate::client::{Client, ConnectError, LocalClient, Origin, Peer};

/// Tells who has sent a message, if it is asked: to know it costs a look.
pub trait Asker: fmt::Debug {
    /// Who, if it is a peer.
    fn origin(&self) -> Option<Origin>;
}

impl Asker for Option<Origin> {
    fn origin(&self) -> Option<Origin> {
        *self
    }
}

/// The shard that a handler runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// Its number, from 0.
    pub shard: usize,
    /// How many shards its process runs.
    pub shards: usize,
    /// The CPU that it is pinned to.
    pub cpu: usize,
    /// The NUMA node of that CPU.
    pub numa_node: usize,
}

/// The call that an inline handler answers.
#[derive(Debug)]
pub struct Context<'a> {
    pub(super) shard: &'a ShardInfo,
    pub(super) client: &'a LocalClient,
    pub(super) asker: &'a dyn Asker,
    pub(super) now: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) route_key: u64,
    pub(super) wants_reply: bool,
}

impl Context<'_> {
    /// Where it runs.
    pub fn shard(&self) -> &ShardInfo {
        self.shard
    }

    /// When the reactor began with this message.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// By when the caller wants its answer.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The route key of the message; 0 for none.
    pub fn route_key(&self) -> u64 {
        self.route_key
    }

    /// Whether the caller waits for a reply: a one-way or confirmed message's is thrown away.
    pub fn wants_reply(&self) -> bool {
        self.wants_reply
    }

    /// The instance of the process that has sent the message, if it has said hello, or was dialed
    /// by this one and has welcomed it.
    pub fn caller(&self) -> Option<Uuid> {
        Some(self.asker.origin()?.instance)
    }

    /// A handle to that process, by which it can be called back: see [`Client::peer`]. Takes a lock
    /// that is held for moments, and a new handle is an allocation and one more thing for the
    /// shard to open and close: who calls back often keeps it.
    pub fn peer(&self) -> Result<Peer, ConnectError> {
        self.client.peer_of(self.asker.origin())
    }

    /// Sends from this shard. To wait for an answer takes a spawned handler; an inline one can send
    /// one-way messages.
    pub fn client(&self) -> &LocalClient {
        self.client
    }
}

/// The call that a spawned handler answers, and what a task on a shard has to live on.
#[derive(Clone, Debug)]
pub struct TaskContext {
    pub(crate) shard: Rc<ShardInfo>,
    pub(crate) client: LocalClient,
    pub(crate) timers: Rc<Timers>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) route_key: u64,
    pub(crate) wants_reply: bool,
    pub(crate) origin: Option<Origin>,
}

impl TaskContext {
    /// Where it runs.
    pub fn shard(&self) -> &ShardInfo {
        &self.shard
    }

    /// By when the caller wants its answer.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The route key of the message; 0 for none.
    pub fn route_key(&self) -> u64 {
        self.route_key
    }

    /// What is left until then, at least nothing. Reads the clock.
    pub fn remaining(&self) -> Option<Duration> {
        let deadline = self.deadline?;
        Some(deadline.saturating_duration_since(self.client.now()))
    }

    /// Whether the caller waits for a reply: a one-way or confirmed message's is thrown away.
    pub fn wants_reply(&self) -> bool {
        self.wants_reply
    }

    /// The instance of the process that has sent the message, if it has said hello, or was dialed
    /// by this one and has welcomed it.
    pub fn caller(&self) -> Option<Uuid> {
        Some(self.origin?.instance)
    }

    /// A handle to that process, by which it can be called back: see [`Client::peer`]. Takes a lock
    /// that is held for moments, and a new handle is an allocation and one more thing for the
    /// shard to open and close: who calls back often keeps it.
    pub fn peer(&self) -> Result<Peer, ConnectError> {
        self.client.peer_of(self.origin)
    }

    /// Sends from this shard; the answers may be awaited. Its calls, and those of its clones, end
    /// no later than the one that is served here, unless they say otherwise by `within`.
    pub fn client(&self) -> &LocalClient {
        &self.client
    }

    /// Waits, by the shard's clock: the task goes on in the first turn after this time has passed.
    /// A time that the clock cannot count, centuries, never passes.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        Timers::sleep(&self.timers, duration)
    }
}

/// The call that a blocking handler answers.
#[derive(Clone, Debug)]
pub struct BlockingContext {
    pub(super) shard: ShardInfo,
    pub(super) client: Client,
    pub(super) deadline: Option<Instant>,
    pub(super) route_key: u64,
    pub(super) origin: Option<Origin>,
}

impl BlockingContext {
    /// The shard that read the message, and will answer it. The handler runs elsewhere.
    pub fn shard(&self) -> &ShardInfo {
        &self.shard
    }

    /// By when the caller wants its answer. It had not passed when the handler began.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// What is left until then, at least nothing. Reads the clock.
    pub fn remaining(&self) -> Option<Duration> {
        let deadline = self.deadline?;
        Some(deadline.saturating_duration_since(self.client.now()))
    }

    /// The route key of the message; 0 for none.
    pub fn route_key(&self) -> u64 {
        self.route_key
    }

    /// The instance of the process that has sent the message, if it has said hello, or was dialed
    /// by this one and has welcomed it.
    pub fn caller(&self) -> Option<Uuid> {
        Some(self.origin?.instance)
    }

    /// A handle to that process, by which it can be called back: see [`Client::peer`]. Takes a lock
    /// that is held for moments, and a new handle is an allocation and one more thing for the
    /// shard to open and close: who calls back often keeps it.
    pub fn peer(&self) -> Result<Peer, ConnectError> {
        self.client.peer_of(self.origin)
    }

    /// Sends from any thread. To wait for an answer blocks a thread of the pool, and no shard. Its
    /// calls, and those of its clones, end no later than the one that is served here, unless they
    /// say otherwise by `within`.
    pub fn client(&self) -> &Client {
        &self.client
    }
}
