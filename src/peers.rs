//! The processes that a shard talks to: who they are, whether they are there, and what may still be
//! sent to them.

use std::{
    fmt,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use rustc_hash::FxHashMap;
use serde::Serialize;
use uuid::Uuid;

use crate::wire::Hello;

/// Names a peer as this process speaks of it, as long as the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(u64);

impl PeerId {
    pub(crate) fn to_u64(self) -> u64 {
        self.0
    }

    pub(crate) fn from_u64(id: u64) -> Self {
        Self(id)
    }

    /// An id that no other peer has.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}", self.0)
    }
}

/// What may wait to be sent to one peer: so many messages, so many bytes. Callers on any thread
/// take from it, and the peer's shard gives back as messages leave.
#[derive(Debug)]
pub struct Credit {
    messages: AtomicUsize,
    bytes: AtomicUsize,
    messages_max: usize,
    bytes_max: usize,
}

impl Credit {
    /// Credit for so many messages and bytes at once.
    pub fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self {
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            messages_max,
            bytes_max,
        }
    }

    /// Takes credit for one message, or says that there is none left. A message that alone is
    /// larger than the bound passes when nothing else waits.
    pub fn try_take(&self, bytes: usize) -> bool {
        let waiting = self.messages.fetch_add(1, Relaxed);
        let before = self.bytes.fetch_add(bytes, Relaxed);
        let fits =
            waiting < self.messages_max && (waiting == 0 || before + bytes <= self.bytes_max);
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    /// A message of so many bytes waits no longer.
    pub fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Relaxed);
        self.messages.fetch_sub(1, Relaxed);
    }

    /// Messages that wait.
    pub fn waiting(&self) -> usize {
        self.messages.load(Relaxed)
    }
}

/// How each message to a peer ended. What was accepted is
/// `handled + nacked + indeterminate + not_sent + one_way_sent + lost`, plus what is still under
/// way.
#[derive(Debug, Default)]
pub struct Account {
    counts: [AtomicU64; Entry::COUNT],
}

/// One line of an [`Account`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Taken into the peer's bounded queue.
    Accepted,
    /// Answered by `ack` or `response`.
    Handled,
    /// Answered by `nack`.
    Nacked,
    /// Sent, and the answer never came.
    Indeterminate,
    /// Told to the caller as never sent.
    NotSent,
    /// One-way, and given to the connection.
    OneWaySent,
    /// One-way, and never given to a connection.
    Lost,
}

impl Entry {
    pub(crate) const COUNT: usize = 7;
}

impl Account {
    /// Adds one. Only the peer's shard writes, so this is a plain load and store.
    #[inline]
    pub fn add(&self, entry: Entry) {
        self.add_many(entry, 1);
    }

    /// Adds so many. Only the peer's shard writes.
    #[inline]
    pub fn add_many(&self, entry: Entry, many: u64) {
        let count = &self.counts[entry as usize];
        count.store(count.load(Relaxed) + many, Relaxed);
    }

    /// The counts as they stand. From any thread, while the shard runs.
    pub fn read(&self) -> AccountSnapshot {
        let count = |entry: Entry| self.counts[entry as usize].load(Relaxed);
        AccountSnapshot {
            accepted: count(Entry::Accepted),
            handled: count(Entry::Handled),
            nacked: count(Entry::Nacked),
            indeterminate: count(Entry::Indeterminate),
            not_sent: count(Entry::NotSent),
            one_way_sent: count(Entry::OneWaySent),
            lost: count(Entry::Lost),
        }
    }
}

/// An [`Account`] at one moment; the fields are as its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "each is the entry of its name")]
pub struct AccountSnapshot {
    pub accepted: u64,
    pub handled: u64,
    pub nacked: u64,
    pub indeterminate: u64,
    pub not_sent: u64,
    pub one_way_sent: u64,
    pub lost: u64,
}

impl AccountSnapshot {
    /// Messages that have come to an end.
    pub fn settled(&self) -> u64 {
        self.handled
            + self.nacked
            + self.indeterminate
            + self.not_sent
            + self.one_way_sent
            + self.lost
    }
}

/// What a peer's shard and the holders of its handle share.
#[derive(Debug)]
pub struct PeerShared {
    /// What may still be queued for it.
    pub credit: Credit,
    /// How its messages ended.
    pub account: Account,
}

/// The peers that one shard connects to, or sends to by their connections. `C` is what the engine
/// calls a connection.
#[derive(Debug)]
pub struct PeerTable<C> {
    peers: FxHashMap<PeerId, Peer<C>>,
    by_connection: FxHashMap<C, PeerId>,
}

/// One of them.
#[derive(Debug)]
pub struct Peer<C> {
    /// The connection; one that was dialed the engine keeps making anew.
    pub connection: C,
    /// The peer has made it.
    pub is_accepted: bool,
    /// What it said of itself.
    pub identity: Option<Hello>,
    /// The number of the connection on which it said so, while that stands.
    pub epoch: Option<u64>,
    /// It has said goodbye on that.
    pub is_draining: bool,
}

impl<C: Copy + Eq + std::hash::Hash> PeerTable<C> {
    /// No peers.
    pub fn new() -> Self {
        Self {
            peers: FxHashMap::default(),
            by_connection: FxHashMap::default(),
        }
    }

    /// Adds a peer whose connection we make.
    pub fn insert(&mut self, id: PeerId, connection: C) {
        self.add(id, connection, false);
    }

    /// Adds a peer by a connection that it has made.
    pub fn insert_accepted(&mut self, id: PeerId, connection: C) {
        self.add(id, connection, true);
    }

    fn add(&mut self, id: PeerId, connection: C, is_accepted: bool) {
        self.by_connection.insert(connection, id);
        let peer = Peer {
            connection,
            is_accepted,
            identity: None,
            epoch: None,
            is_draining: false,
        };
        self.peers.insert(id, peer);
    }

    /// A peer has another connection now. Returns the one that it had.
    pub fn rebind(&mut self, id: PeerId, connection: C) -> Option<C> {
        let peer = self.peers.get_mut(&id)?;
        let former = std::mem::replace(&mut peer.connection, connection);
        self.by_connection.remove(&former);
        self.by_connection.insert(connection, id);
        Some(former)
    }

    /// Forgets a peer.
    pub fn remove(&mut self, id: PeerId) -> Option<Peer<C>> {
        let peer = self.peers.remove(&id)?;
        self.by_connection.remove(&peer.connection);
        Some(peer)
    }

    /// The connection of the peer with this id.
    #[inline]
    pub fn connection_of(&self, id: PeerId) -> Option<C> {
        self.peers.get(&id).map(|peer| peer.connection)
    }

    /// Which peer is at the other end of this connection, if we dialed it or send by it.
    #[inline]
    pub fn id_at(&self, connection: C) -> Option<PeerId> {
        self.by_connection.get(&connection).copied()
    }

    /// The peer at the other end of this connection, if we dialed it.
    pub fn dialed_at(&self, connection: C) -> Option<(PeerId, &Peer<C>)> {
        let id = *self.by_connection.get(&connection)?;
        let peer = self.peers.get(&id)?;
        (!peer.is_accepted).then_some((id, peer))
    }

    /// Whether this peer has made its connection.
    pub fn is_accepted(&self, id: PeerId) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.is_accepted)
    }

    /// The peer with this id.
    pub fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer<C>> {
        self.peers.get_mut(&id)
    }

    /// The connection on which this peer was met stands no longer. Returns its number, if there was
    /// one.
    pub fn part_from(&mut self, id: PeerId) -> Option<u64> {
        self.peers.get_mut(&id)?.epoch.take()
    }

    /// This peer has said goodbye. Returns the number of its connection, if that is news.
    pub fn note_goodbye(&mut self, id: PeerId) -> Option<u64> {
        let peer = self.peers.get_mut(&id)?;
        let is_news = !std::mem::replace(&mut peer.is_draining, true);
        peer.epoch.filter(|_| is_news)
    }

    /// What the peer with this id calls itself, once it has told.
    pub fn instance_of(&self, id: PeerId) -> Option<Uuid> {
        let identity = self.peers.get(&id)?.identity.as_ref()?;
        Some(identity.instance)
    }

    /// The names of all handlers that peers have told of, by key.
    pub fn handler_names(&self) -> impl Iterator<Item = &str> {
        let identities = self
            .peers
            .values()
            .filter_map(|peer| peer.identity.as_ref());
        identities.flat_map(|hello| hello.handlers.iter().map(|handler| handler.name.as_str()))
    }
}

impl<C: Copy + Eq + std::hash::Hash> Default for PeerTable<C> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_ends_at_its_bounds_and_comes_back() {
        let credit = Credit::new(2, 100);
        assert!(credit.try_take(1000), "a large message passes alone");
        assert!(!credit.try_take(1));
        credit.give_back(1000);
        assert!(credit.try_take(50) && credit.try_take(50));
        assert!(!credit.try_take(0));
        credit.give_back(50);
        credit.give_back(50);
        assert_eq!(credit.waiting(), 0);
    }
}
