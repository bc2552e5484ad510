//! Peers that have connected to this shard: who they are, and how the program sends to them.

use std::collections::hash_map::Entry;

use quanta::Instant;
use rustc_hash::FxHashMap;
use uuid::Uuid;

use super::{Core, Shard, listing::Introduced};
use crate::{
    client::{Origin, Said, Standing},
    engine::{ConnectionId, Engine},
    events::{Departure, Event},
    handler::Asker,
    peers::{PeerId, PeerTable},
    wire::{Hello, Outbox},
};

/// Accepted peers that are known by their hello.
const INTRODUCED_MAX: usize = 16_384;
/// Of what a peer says about where it listens, so many bytes are kept.
const SAID_BYTES_MAX: usize = 1024;

/// The processes that have connected, and those that the program speaks of. No message's way leads
/// by here.
#[derive(Debug, Default)]
pub(super) struct Callers {
    /// Their connections that have said hello, the latest last.
    connections: FxHashMap<Uuid, Vec<ConnectionId>>,
    spoken_of: FxHashMap<Uuid, SpokenOf>,
    /// Of whom another connection is the latest now.
    unbound: Vec<Uuid>,
}

/// A process that the program has handles to.
#[derive(Debug)]
struct SpokenOf {
    id: PeerId,
    /// Each was asked for once, and is let go once.
    handles: usize,
}

impl Callers {
    /// A connection has come or gone.
    fn look_at(&mut self, instance: Uuid) {
        if self.spoken_of.contains_key(&instance) {
            self.unbound.push(instance);
        }
    }

    fn latest(&self, instance: Uuid) -> Option<ConnectionId> {
        self.connections.get(&instance)?.last().copied()
    }

    /// Another handle. Returns the id that the process was spoken of by, if that was another.
    fn add_handle(&mut self, instance: Uuid, id: PeerId) -> Option<PeerId> {
        match self.spoken_of.entry(instance) {
            Entry::Occupied(mut it) if it.get().id == id => {
                it.get_mut().handles += 1;
                None
            }
            Entry::Occupied(mut it) => Some(it.insert(SpokenOf { id, handles: 1 }).id),
            Entry::Vacant(it) => {
                it.insert(SpokenOf { id, handles: 1 });
                None
            }
        }
    }

    /// One handle less. Whether it was the last.
    pub(super) fn drop_handle(&mut self, instance: Uuid, id: PeerId) -> bool {
        match self.spoken_of.get_mut(&instance) {
            Some(it) if it.id == id => {
                it.handles = it.handles.saturating_sub(1);
                it.handles == 0
            }
            _ => true,
        }
    }

    /// Nobody speaks of it any more.
    pub(super) fn forget(&mut self, instance: Uuid, id: PeerId) {
        if let Entry::Occupied(it) = self.spoken_of.entry(instance)
            && it.get().id == id
        {
            it.remove();
        }
    }
}

/// Who is at the other end of a connection, if a handler asks.
#[derive(Debug)]
pub(super) struct At<'a> {
    pub(super) connection: ConnectionId,
    pub(super) shard: usize,
    pub(super) introduced: &'a FxHashMap<ConnectionId, Introduced>,
    pub(super) peers: &'a PeerTable<ConnectionId>,
}

impl Asker for At<'_> {
    fn origin(&self) -> Option<Origin> {
        let (instance, dialed) = match self.introduced.get(&self.connection) {
            Some(it) => (it.instance, None),
            None => {
                let (id, peer) = self.peers.dialed_at(self.connection)?;
                (peer.identity.as_ref()?.instance, Some(id))
            }
        };
        Some(Origin {
            instance,
            shard: self.shard,
            dialed,
        })
    }
}

impl<E: Engine> Shard<E> {
    /// The program speaks of a process that connects to this one.
    pub(super) fn speak_of(&mut self, instance: Uuid, id: PeerId) {
        if let Some(former) = self.core.callers.add_handle(instance, id) {
            self.stop_speaking_of(former);
        }
        let again = self.core.side.caller.borrow().links_of(id);
        let closing = &mut self.core.closing;
        closing.retain(|(closing, _)| *closing != id && !again.contains(closing));
        self.bind(instance);
    }

    /// Has what is sent to processes go by their latest connections. A connection that comes or
    /// goes is news.
    #[cold]
    pub(super) fn bind_callers(&mut self) {
        while let Some(instance) = self.core.callers.unbound.pop() {
            self.bind(instance);
        }
    }

    fn bind(&mut self, instance: Uuid) {
        let Self { engine, core } = self;
        let Some(SpokenOf { id, .. }) = core.callers.spoken_of.get(&instance) else {
            return;
        };
        let mut caller = core.side.caller.borrow_mut();
        let latest = core.callers.latest(instance);
        let Some((connection, outbox)) = latest.and_then(|it| Some((it, engine.look(it)?))) else {
            return caller.miss(*id);
        };
        if core.peers.id_at(connection).is_some() {
            return;
        }
        let is_draining = core
            .introduced
            .get(&connection)
            .is_some_and(|it| it.is_draining);
        let standing = match is_draining {
            true => Standing::Draining,
            false => Standing::Up,
        };
        if let Some(link) = caller.bind(*id, standing, outbox) {
            core.peers.insert_accepted(link, connection);
            if let Some(outbox) = engine.outbox(connection) {
                outbox.bring_answers();
            }
        }
    }

    /// Ends what is sent to a process under this id, at once.
    fn stop_speaking_of(&mut self, id: PeerId) {
        let links = self.core.side.caller.borrow().links_of(id);
        for link in links {
            self.let_go_of(link);
        }
        self.core.side.caller.borrow_mut().close(id, None);
        self.core.closing.retain(|(closing, _)| *closing != id);
    }

    /// Nothing more is sent by this connection of a peer's, which stays as it is.
    pub(super) fn let_go_of(&mut self, link: PeerId) {
        let Self { engine, core } = self;
        let connection = core.peers.connection_of(link);
        let outbox = connection.and_then(|it| engine.look(it));
        core.side.caller.borrow_mut().let_go(link, outbox);
        core.peers.remove(link);
    }
}

impl Core {
    /// Who has sent what comes by this connection, if it has said so.
    pub(super) fn asker_at(&self, connection: ConnectionId) -> Option<Origin> {
        let at = At {
            connection,
            shard: self.info.shard,
            introduced: &self.introduced,
            peers: &self.peers,
        };
        at.origin()
    }

    /// A connection's peer has said hello. If it was dialed that is welcomed, and no more: it is
    /// known by its own welcome. Nor does a second hello make anybody another.
    pub(super) fn introduce(&mut self, now: Instant, connection: ConnectionId, hello: Hello) {
        if self.introduced.contains_key(&connection)
            || self.introduced.len() >= INTRODUCED_MAX
            || self.peers.id_at(connection).is_some()
            || self.nearby.is_tried(connection)
            || self.nearby.is_left(connection)
        {
            return;
        }
        let instance = hello.instance;
        let introduced = Introduced {
            instance,
            since: now,
            epoch: self.news.next_epoch(),
            is_draining: false,
            takes_updates: hello.takes_updates(),
            said: keep(hello).into(),
        };
        let shard = self.info.shard;
        self.news.enter((instance, None), introduced.row(shard));
        self.news.tell(|| Event::Up(introduced.info(shard)));
        self.introduced.insert(connection, introduced);
        let connections = self.callers.connections.entry(instance).or_default();
        connections.push(connection);
        self.callers.look_at(instance);
    }

    /// An accepted connection's peer is known no longer, if it was.
    pub(super) fn part_from(&mut self, connection: ConnectionId, reason: Departure) {
        let Some(it) = self.introduced.remove(&connection) else {
            return;
        };
        let (instance, shard) = (it.instance, self.info.shard);
        if let Entry::Occupied(mut left) = self.callers.connections.entry(instance) {
            left.get_mut().retain(|&other| other != connection);
            if left.get().is_empty() {
                left.remove();
            }
        }
        self.callers.look_at(instance);
        let latest = self.callers.latest(instance);
        match latest.and_then(|it| self.introduced.get(&it)) {
            Some(latest) => self.news.enter((instance, None), latest.row(shard)),
            None => self.news.take_out((instance, None)),
        }
        self.news.tell(|| Event::Down {
            peer: it.info(shard),
            reason,
        });
    }

    /// What was sent by a peer's own connection ends with it. False if nothing was.
    pub(super) fn end_sent_by(&mut self, connection: ConnectionId, outbox: &mut Outbox) -> bool {
        match self.peers.id_at(connection) {
            Some(link) if self.peers.is_accepted(link) => {
                let answers = self.side.caller.borrow_mut().part(link, outbox);
                self.recorder.counters.answers_lost += answers as u64;
                self.peers.remove(link);
                true
            }
            _ => false,
        }
    }
}

/// What is kept of what a peer says: it decides how much that is.
pub(super) fn keep(hello: Hello) -> Said {
    let mut left = SAID_BYTES_MAX;
    let mut endpoints = hello.endpoints;
    let kept = endpoints.iter().take_while(|it| {
        let cost = it.len() + size_of::<String>();
        let fits = cost <= left;
        left = left.saturating_sub(cost);
        fits
    });
    endpoints.truncate(kept.count());
    endpoints.shrink_to_fit();
    Said {
        endpoints,
        shards: hello.shards,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handle by a former name is none to who is spoken of now, nor does its end forget that one.
    #[test]
    fn the_handles_by_one_name_are_counted_and_those_by_others_are_not() {
        let instance = Uuid::from_u128(1);
        let mut callers = Callers::default();
        let [former, id] = [PeerId::unique(), PeerId::unique()];
        assert_eq!(callers.add_handle(instance, former), None);
        assert_eq!(callers.add_handle(instance, former), None);
        assert!(!callers.drop_handle(instance, former), "there is another");
        assert!(callers.drop_handle(instance, former));

        assert_eq!(callers.add_handle(instance, id), Some(former));
        assert_eq!(callers.add_handle(instance, id), None);
        assert!(callers.drop_handle(instance, former));
        callers.forget(instance, former);
        assert!(!callers.drop_handle(instance, id), "there is another");
        assert!(callers.drop_handle(instance, id));
        callers.forget(instance, id);
        assert!(callers.spoken_of.is_empty());
        assert!(callers.drop_handle(instance, id), "nobody speaks of it");
    }

    #[test]
    fn a_peer_that_says_much_is_kept_in_part() {
        let mut hello = Hello::of_instance(Uuid::from_u128(1));
        hello.shards = 7;
        hello.endpoints = vec!["tcp://127.0.0.1:7400".to_owned(); 10_000];
        let said = keep(hello.clone());
        assert_eq!((said.shards, said.endpoints.len()), (7, 23));
        hello.endpoints = vec!["x".repeat(SAID_BYTES_MAX)];
        assert_eq!(keep(hello.clone()).endpoints.len(), 0);
        hello.endpoints = vec!["x".repeat(SAID_BYTES_MAX - size_of::<String>())];
        assert_eq!(keep(hello).endpoints.len(), 1);
    }
}
