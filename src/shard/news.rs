//! What a shard tells the program of: its events, on their way to the hub.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use quanta::Instant;
use uuid::Uuid;

use super::{Core, listing::Introduced};
use crate::{
    config::Endpoint,
    engine::ConnectionId,
    events::{Departure, Event, Hub, PeerInfo},
    peers::PeerId,
};

/// Accepted peers that are known by their hello.
const INTRODUCED_MAX: usize = 16_384;
/// Events that wait for the hub at most; of more, the oldest are lost, and the subscribers are told
/// how many.
const WAITING_MAX: usize = 1024;
/// Events that one turn tells of: a flood of peers costs each turn no more.
const TOLD_AT_ONCE: usize = 64;
/// When the hub is asked again that was held, by a shard that has nothing else to do.
const AGAIN: Duration = Duration::from_millis(1);

/// Events that are not told yet.
#[derive(Debug)]
pub(super) struct News {
    hub: Arc<Hub>,
    waiting: VecDeque<Event>,
    missing: u64,
    /// The last connection's.
    epoch: u64,
}

impl News {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self {
            hub,
            waiting: VecDeque::new(),
            missing: 0,
            epoch: 0,
        }
    }

    /// The number of a new connection.
    pub(super) fn next_epoch(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch
    }

    /// Keeps an event, if anybody wants to know of it.
    pub(super) fn tell(&mut self, event: impl FnOnce() -> Event) {
        if !self.hub.has_subscribers() {
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
            self.missing += 1;
        }
        self.waiting.push_back(event());
    }

    /// Hands on what waits, as far as that goes without waiting.
    #[inline]
    pub(super) fn hand_on(&mut self) {
        if !self.waiting.is_empty() {
            let Self {
                hub,
                waiting,
                missing,
                ..
            } = self;
            hub.try_publish(waiting, missing, TOLD_AT_ONCE);
        }
    }

    /// When to hand on what is left.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| now + AGAIN)
    }
}

impl Core {
    /// A connection's peer has said hello. If it was dialed that is welcomed, and no more: it is
    /// known by its own welcome. Nor does a second hello make anybody another.
    pub(super) fn introduce(&mut self, now: Instant, connection: ConnectionId, instance: Uuid) {
        if self.introduced.contains_key(&connection)
            || self.introduced.len() >= INTRODUCED_MAX
            || self.peers.id_at(connection).is_some()
        {
            return;
        }
        let introduced = Introduced {
            instance,
            since: now,
            epoch: self.news.next_epoch(),
            is_draining: false,
            takes_updates: false,
        };
        self.introduced.insert(connection, introduced);
        let shard = self.info.shard;
        self.news.tell(|| Event::Up(introduced.info(shard)));
    }

    /// An accepted connection's peer is known no longer, if it was.
    pub(super) fn part_from(&mut self, connection: ConnectionId, reason: Departure) {
        if let Some(it) = self.introduced.remove(&connection) {
            let shard = self.info.shard;
            self.news.tell(|| Event::Down {
                peer: it.info(shard),
                reason,
            });
        }
    }

    /// Likewise one that was dialed.
    pub(super) fn part_from_dialed(&mut self, id: PeerId, reason: Departure) {
        let met = self.peers.part_from(id);
        self.tell_of_dialed(id, met, |peer| Event::Down { peer, reason });
    }

    /// Something has happened to a peer that was dialed and is known, with this epoch.
    pub(super) fn tell_of_dialed(
        &mut self,
        id: PeerId,
        epoch: Option<u64>,
        event: impl FnOnce(PeerInfo) -> Event,
    ) {
        let (Some(epoch), Some(instance)) = (epoch, self.peers.instance_of(id)) else {
            return;
        };
        let (caller, shard) = (&self.side.caller, self.info.shard);
        self.news.tell(|| {
            let caller = caller.borrow();
            event(PeerInfo {
                instance,
                endpoint: caller.endpoint_of(id).map(Endpoint::to_string),
                shard,
                epoch,
            })
        });
    }
}
