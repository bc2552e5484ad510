//! What moves messages between a shard and its peers.
//!
//! An [`Engine`] belongs to one shard and is driven by its reactor alone: [`poll`](Engine::poll)
//! hands over what has arrived, [`flush`](Engine::flush) takes what stands in the outboxes. No call
//! blocks. All that an engine knows of a peer is a [`ConnectionId`]; no type of the library below
//! leaks through the contract.
//!
//! - [`native`]: ZMTP on the shard's own non-blocking sockets; the default.
//! - [`libzmq`]: the reference library, through the crate `zmq`.
//! - [`sim`]: a seeded network in memory, for tests that run whole shards under a virtual clock.

use std::{fmt, num::NonZeroU32, os::fd::BorrowedFd, time::Duration};

use quanta::Instant;
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};

pub use self::pauses::Pauses;
use crate::{
    config::Endpoint,
    error::{EngineError, Lost},
    wire::{Outbox, Reason, Received},
};

pub mod libzmq;
pub mod native;
mod pauses;
pub mod sim;
mod socket_file;

/// The contract between a shard's reactor and what moves its messages.
pub trait Engine {
    /// Begins to accept connections at this endpoint and returns the one that was really bound:
    /// port 0 becomes a free port.
    fn listen(&mut self, at: &Endpoint) -> Result<Endpoint, EngineError>;

    /// Accepts no connection from now on, as far as the engine can; those that there are stay.
    fn stop_listening(&mut self);

    /// Begins to connect, and reconnects by itself for as long as the connection is not closed.
    /// [`Event::Up`] and [`Event::Down`] tell of each success and loss; between them the
    /// connection keeps its id.
    fn connect(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError>;

    /// As `connect`, but tries once: what cannot be made, or is lost, is told of by
    /// [`Event::Down`], and there is no such connection from then on.
    fn connect_once(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError>;

    /// Forgets a connection with all that waits in its outbox. No event follows.
    fn close(&mut self, connection: ConnectionId);

    /// Loses a connection that was dialed, as if its peer had gone: [`Event::Down`] follows, and it
    /// is made again. Does nothing to one that is not up.
    fn redial(&mut self, connection: ConnectionId);

    /// Where messages to this peer are written. `None` if the connection is not up.
    fn outbox(&mut self, connection: ConnectionId) -> Option<&mut Outbox>;

    /// The same, only to look at: what waits in it, and what has left. `None` if there is no such
    /// connection.
    fn look(&self, connection: ConnectionId) -> Option<&Outbox>;

    /// Hands at most `messages_max` messages to `sink`, and whatever else happened. Returns how
    /// much it did: 0 if it found nothing.
    fn poll(
        &mut self,
        now: Instant,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize;

    /// Takes from the outboxes as much as goes out without blocking. Returns how many messages
    /// left.
    fn flush(&mut self, now: Instant) -> usize;

    /// What waits in the outboxes.
    fn outgoing(&self) -> Outgoing;

    /// Whether every outbox is empty.
    fn is_flushed(&self) -> bool;

    /// When `poll` must be called though nothing arrives: a timer of the engine's own.
    fn next_wake(&self) -> Option<Instant>;

    /// Readable once there may be something to poll or room to flush; what a parked shard waits
    /// for. `None`: only timers and the doorbell wake it.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// The last look before parking: true if nothing can be polled now, as far as the engine knows
    /// without asking, and whatever is there or comes later makes the descriptor readable.
    fn may_park(&mut self) -> bool;

    /// Blocks the thread until there may be something to poll or room to flush, `bell` is readable,
    /// or the time is over. To be called right after `may_park` has allowed it.
    fn wait(&mut self, bell: BorrowedFd<'_>, at_most: Option<Timespec>) {
        let bell = PollFd::from_borrowed_fd(bell, PollFlags::IN);
        let own = self.descriptor();
        let own = own.map(|own| PollFd::from_borrowed_fd(own, PollFlags::IN));
        let mut awaited = [bell.clone(), own.unwrap_or(bell)];
        // EINTR and the like: the next turn looks again.
        let _ = poll(&mut awaited, at_most.as_ref());
    }
}

/// How full the outboxes of an engine are, or have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// Messages in the fullest one now.
    pub now: usize,
    /// The most that stood in one as it was flushed.
    pub most: usize,
}

/// The limits and intervals that every engine keeps; derived from the checked configuration.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bytes of the largest payload that is accepted.
    pub message_bytes_max: usize,
    /// Frames of a multipart message; whoever sends more is cut off.
    pub frames_max: usize,
    /// Messages that one outbox holds.
    pub outgoing_messages_max: usize,
    /// Bytes that one outbox holds.
    pub outgoing_bytes_max: usize,
    /// Bytes that one shard holds for all its peers, read and not handled or written and not sent.
    pub buffered_bytes_max: usize,
    /// For so long a peer's queue may stay full before it is cut off.
    pub slow_consumer: Duration,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// Bytes of metadata in a handshake.
    pub handshake_bytes_max: usize,
    /// Accepted connections that are in their handshake at once.
    pub unauthenticated_max: usize,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// Silence after which a peer is lost.
    pub heartbeat_timeout: Duration,
    /// First pause before a reconnect; it doubles with each failure.
    pub reconnect_min: Duration,
    /// Longest pause before a reconnect.
    pub reconnect_max: Duration,
    /// Messages in each of libzmq's own queues.
    pub hwm: i32,
    /// How long closing may wait for what is not yet written.
    pub linger: Duration,
}

impl EngineOptions {
    /// Before a reconnect.
    pub fn pauses(&self) -> Pauses {
        Pauses {
            first: self.reconnect_min,
            longest: self.reconnect_max,
        }
    }
}

/// One connection of one shard's engine. A number that is never used for another connection while
/// the engine lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    slot: u32,
    generation: u32,
}

impl ConnectionId {
    /// For an engine of one's own: a slot may come again, with another generation.
    pub const fn new(slot: u32, generation: NonZeroU32) -> Self {
        Self {
            slot,
            generation: generation.get(),
        }
    }

    /// As epoll keeps it. Never below 2^32: generations begin at 1.
    pub(crate) fn to_u64(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.slot)
    }

    fn from_u64(data: u64) -> Self {
        Self {
            slot: data as u32,
            generation: (data >> 32) as u32,
        }
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

/// What [`Engine::poll`] tells of.
#[derive(Debug)]
pub enum Event<'a> {
    /// The connection is usable: its handshake is done. Its outbox is empty.
    Up(ConnectionId),
    /// A message of two frames.
    Message(Incoming<'a>),
    /// A message whose payload is not taken in: it is too large, or there is no memory for it.
    Declined {
        /// Where it came from.
        connection: ConnectionId,
        /// The header frame, not yet decoded.
        header: &'a [u8],
        /// Why: `TooLarge` or `Overloaded`.
        reason: Reason,
        /// Where a nack goes.
        outbox: &'a mut Outbox,
    },
    /// A multipart message that cannot be an active message.
    Malformed {
        /// Where it came from.
        connection: ConnectionId,
        /// How many frames it had.
        frames: usize,
    },
    /// The connection is lost, or cannot be made and was to be tried once.
    Down {
        /// Which one.
        connection: ConnectionId,
        /// Why.
        why: Lost,
        /// What has not left; it is emptied afterwards.
        outbox: &'a mut Outbox,
    },
}

/// A message that has arrived, still where the engine read it to.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// Where it came from.
    pub connection: ConnectionId,
    /// When it was not there yet: the last time at which nothing was that this connection brought.
    /// It has waited since then at most. `None`: the engine does not know.
    pub since: Option<Instant>,
    /// Its two frames.
    pub message: Received<'a>,
    /// Where an answer goes.
    pub outbox: &'a mut Outbox,
}

/// Slots with a generation each, so that an id never means another connection later.
#[derive(Debug)]
struct Slots<T> {
    slots: slab::Slab<(u32, T)>,
    generation: u32,
}

impl<T> Slots<T> {
    fn new() -> Self {
        Self {
            slots: slab::Slab::new(),
            generation: 0,
        }
    }

    fn insert(&mut self, value: T) -> ConnectionId {
        // 0 is nobody's, after 2^32 connections too.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let slot = self.slots.insert((self.generation, value));
        ConnectionId {
            slot: slot as u32,
            generation: self.generation,
        }
    }

    fn get(&self, id: ConnectionId) -> Option<&T> {
        match self.slots.get(id.slot as usize) {
            Some((generation, value)) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    fn get_mut(&mut self, id: ConnectionId) -> Option<&mut T> {
        match self.slots.get_mut(id.slot as usize) {
            Some((generation, value)) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    fn remove(&mut self, id: ConnectionId) -> Option<T> {
        self.get_mut(id)?;
        Some(self.slots.remove(id.slot as usize).1)
    }

    fn iter(&self) -> impl Iterator<Item = (ConnectionId, &T)> {
        self.slots.iter().map(|(slot, (generation, value))| {
            (
                ConnectionId {
                    slot: slot as u32,
                    generation: *generation,
                },
                value,
            )
        })
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = (ConnectionId, &mut T)> {
        self.slots.iter_mut().map(|(slot, (generation, value))| {
            (
                ConnectionId {
                    slot: slot as u32,
                    generation: *generation,
                },
                value,
            )
        })
    }
}

/// For unit tests: nothing is over soon.
#[cfg(test)]
fn plain_options() -> EngineOptions {
    let second = Duration::from_secs(1);
    EngineOptions {
        message_bytes_max: 1_000,
        frames_max: 2,
        outgoing_messages_max: 10,
        outgoing_bytes_max: 1_000,
        buffered_bytes_max: 1_000_000,
        slow_consumer: 100 * second,
        handshake: 100 * second,
        handshake_bytes_max: 1_000,
        unauthenticated_max: 10,
        heartbeat_interval: 100 * second,
        heartbeat_timeout: 300 * second,
        reconnect_min: second / 10,
        reconnect_max: second,
        hwm: 0,
        linger: Duration::ZERO,
    }
}
