//! The engine on the shard's own sockets: ZMTP 3.1 in the reactor's turn, and no other thread.
//!
//! A round trip costs the two system calls that raw sockets need, and the polls that found nothing.
//! Connections that were active just now are read directly, a few of them each turn; all others
//! wait in one epoll set and cost nothing until they say something. A read lands in a
//! buffer that is used again, messages are handed on where they stand in it, and what the turn has
//! written to a connection leaves in one write, large payloads from where they are.
//!
//! Nothing blocks: connecting, accepting, handshakes, heartbeats and reconnects advance as the
//! poller and the clock say; host names are resolved by a thread of the runtime ([`Resolver`]).
//!
//! # Back-pressure
//!
//! An accepted connection whose outbox is full is not read, until there is room for its answers;
//! its neighbours do not feel it. If the outbox stays full for `limits.slow_consumer_ms`, the
//! connection is cut. A dialed connection is always read: what answers a call needs no room.
//!
//! Once the shard holds `limits.buffered_bytes_max`, any queue counts as full that is not empty,
//! and a message of more than a few KiB that is not whole is declined instead of waited for.

mod buffers;
mod connect;
mod dial;
mod hot;
mod link;
mod listen;
mod passing;
mod poller;
mod read;
mod resolve;
mod socket;
mod upkeep;
mod user;
mod write;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    os::fd::BorrowedFd,
    sync::Arc,
    time::Duration,
};

use quanta::Instant;
use rustix::time::Timespec;

pub use self::resolve::Resolver;
use self::{
    buffers::Buffers,
    hot::HotSet,
    link::{Link, Write},
    listen::Listener,
    poller::{Interest, Poller, Ready, Token},
    resolve::Mailbox,
    user::UidOf,
};
use super::{ConnectionId, Engine, EngineOptions, Event, Outgoing, Slots};
use crate::{
    config::Endpoint,
    error::{EngineError, Lost},
    wire::Outbox,
};

/// A shard that has hot connections looks at the others each so many turns, and each turn once it
/// found one active.
const TURNS_PER_LOOK: u32 = 8;
/// From this streak on a hot connection leaves the poller's set until the shard parks: being
/// watched costs each arrival a third of a microsecond, leaving and coming back half of one.
const UNWATCHED_STREAK: u32 = 256;
/// Connections whose socket took no more that are tried again each turn; further ones wait for the
/// poller.
const RETRIED_MAX: usize = 4;
/// Heartbeats of many connections fall due together, this often in an interval: a parked shard
/// wakes once for all of them.
const TICKS_PER_INTERVAL: u32 = 4;
/// However long that interval is.
const TICK_MAX: Duration = Duration::from_millis(250);

/// The [`Engine`] on the shard's own sockets. One per shard.
pub struct Native {
    io: Io,
    listeners: Vec<Listener>,
    links: Slots<Link>,
    hot: HotSet,
    /// To be read.
    ready: VecDeque<ConnectionId>,
    /// To be written.
    dirty: VecDeque<ConnectionId>,
    /// Lost while there was nobody to tell; the next poll does.
    gone: Vec<(ConnectionId, Lost)>,
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    resolver: Resolver,
    mailbox: Arc<Mailbox>,
    random: fastrand::Rng,
    turns_since_look: u32,
    /// Counted up each turn: which of the hot ones is read first, and who has the odd message.
    first_hot: usize,
    /// The poller tells of the shard's doorbell, too.
    is_bell_watched: bool,
    /// It may have parked since the last look.
    has_parked: bool,
    /// It may have slept since the last poll.
    has_slept: bool,
    /// The time of the last look: what the next one finds newly was not there.
    looked_at: Instant,
    /// The last look found something that is not hot.
    others_active: bool,
    /// What the last look found; kept for its memory.
    found: Vec<Ready>,
    began: Instant,
    /// The time of the last poll.
    now: Instant,
}

/// What every connection needs for its reads and writes.
struct Io {
    poller: Poller,
    buffers: Buffers,
    options: EngineOptions,
    uid_of: UidOf,
    /// Accepted connections in their handshake.
    greeting: usize,
    /// The most messages that stood in one outbox as it was written.
    outgoing_most: usize,
    /// The time of the first poll after the shard last slept: nothing was there while it did.
    woke_at: Instant,
    stats: IoStats,
}

/// System calls on connections, since the engine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Reads of a connection, those that found nothing included.
    pub reads: u64,
    /// Reads that found nothing.
    pub empty_reads: u64,
    /// Writes to a connection, those that were refused included.
    pub writes: u64,
    /// Writes that the socket had no room for.
    pub refused_writes: u64,
    /// Looks at the poller.
    pub looks: u64,
}

impl Native {
    /// An engine that has this resolver asked for host names.
    pub fn new(
        options: EngineOptions,
        resolver: Resolver,
        now: Instant,
    ) -> Result<Self, EngineError> {
        let refused = |errno: rustix::io::Errno| EngineError::Socket(errno.to_string());
        let poller = Poller::new().map_err(refused)?;
        let mailbox = Mailbox::new()?;
        poller
            .add(&mailbox.rung, Token::Resolver, Interest::READABLE)
            .map_err(refused)?;
        Ok(Self {
            io: Io {
                poller,
                buffers: Buffers::new(options.buffered_bytes_max),
                options,
                uid_of: user::uid_of,
                greeting: 0,
                outgoing_most: 0,
                woke_at: now,
                stats: IoStats::default(),
            },
            listeners: Vec::new(),
            links: Slots::new(),
            hot: HotSet::default(),
            ready: VecDeque::new(),
            dirty: VecDeque::new(),
            gone: Vec::new(),
            timers: BinaryHeap::new(),
            resolver,
            mailbox,
            random: fastrand::Rng::new(),
            turns_since_look: 0,
            first_hot: 0,
            is_bell_watched: false,
            has_parked: false,
            has_slept: false,
            looked_at: now,
            others_active: false,
            found: Vec::new(),
            began: now,
            now,
        })
    }

    /// The system calls made so far.
    pub fn stats(&self) -> IoStats {
        self.io.stats
    }
}

impl Engine for Native {
    fn listen(&mut self, at: &Endpoint) -> Result<Endpoint, EngineError> {
        let number = self.listeners.len() as u32;
        let (listener, bound) = Listener::new(at, number)?;
        self.listeners.push(listener);
        Ok(bound)
    }

    fn stop_listening(&mut self) {
        self.listeners.clear();
    }

    fn connect(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError> {
        self.begin_to_dial(to, false)
    }

    fn connect_once(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError> {
        self.begin_to_dial(to, true)
    }

    fn close(&mut self, connection: ConnectionId) {
        self.forget(connection);
    }

    fn redial(&mut self, connection: ConnectionId) {
        if self.links.get(connection).is_some_and(Link::is_up) {
            self.part(connection, Lost::Unreadable);
        }
    }

    #[inline]
    fn outbox(&mut self, connection: ConnectionId) -> Option<&mut Outbox> {
        let link = self.links.get_mut(connection)?;
        if !link.is_up() {
            return None;
        }
        if !link.is_dirty && link.write != Write::Awaited {
            link.is_dirty = true;
            self.dirty.push_back(connection);
        }
        Some(&mut link.outbox)
    }

    fn look(&self, connection: ConnectionId) -> Option<&Outbox> {
        Some(&self.links.get(connection)?.outbox)
    }

    fn poll(
        &mut self,
        now: Instant,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        self.now = now;
        if std::mem::take(&mut self.has_slept) {
            (self.io.woke_at, self.looked_at) = (now, now);
        }
        let mut work = self.tell_of_the_gone(messages_max, sink);
        let hot_max = messages_max - self.reserve_for_others(messages_max);
        let hot = self.hot.len();
        for index in 0..hot {
            // One that is let go leaves its place to another, which the next turn asks.
            if let Some(id) = self.hot.get((self.first_hot + index) % hot)
                && work < hot_max
            {
                work += self.harvest(id, now, hot_max - work, sink);
            }
        }
        // What ended the last wait.
        self.take_found();
        if self.is_look_due(work > 0) {
            self.look_at_poller();
        }
        // Each once, from the front; one with more to give goes to the back.
        for _ in 0..self.ready.len() {
            if work >= messages_max {
                break;
            }
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            if let Some(link) = self.links.get_mut(id) {
                link.is_ready = false;
                work += self.harvest(id, now, messages_max - work, sink);
            }
        }
        // After the reads: whoever has just been heard is not silent.
        work + self.fire_timers(now, sink)
    }

    fn flush(&mut self, now: Instant) -> usize {
        let mut messages = 0;
        for _ in 0..self.dirty.len() {
            let Some(id) = self.dirty.pop_front() else {
                break;
            };
            messages += self.flush_one(id, now);
        }
        messages
    }

    fn outgoing(&self) -> Outgoing {
        let outboxes = self.links.iter().map(|(_, link)| link.outbox.messages());
        Outgoing {
            now: outboxes.max().unwrap_or(0),
            most: self.io.outgoing_most,
        }
    }

    fn is_flushed(&self) -> bool {
        self.links
            .iter()
            .all(|(_, link)| !link.is_up() || !link.has_pending())
    }

    fn next_wake(&self) -> Option<Instant> {
        let rested = self.listeners.iter().filter_map(Listener::rests_until);
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        rested.chain(timer).min()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.io.poller.descriptor())
    }

    fn may_park(&mut self) -> bool {
        if !self.gone.is_empty() || !self.ready.is_empty() {
            return false;
        }
        self.hot.end_streaks();
        for index in 0..self.hot.len() {
            if let Some(id) = self.hot.get(index) {
                self.watch(id);
            }
        }
        self.await_blocked();
        self.watch_listeners();
        self.has_parked = true;
        self.has_slept = true;
        // What is ready in the poller now makes its descriptor readable: no need to look. But one
        // that could not be watched has just been lost.
        !self.is_dirty() && self.gone.is_empty()
    }

    fn wait(&mut self, bell: BorrowedFd<'_>, at_most: Option<Timespec>) {
        self.wait_in_poller(bell, at_most);
    }
}
