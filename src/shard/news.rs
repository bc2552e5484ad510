//! What a shard tells the program of: its events, on their way to the hub.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use quanta::Instant;
use rustc_hash::FxHashMap;

use super::{Core, callers::keep};
use crate::{
    client::{Client, Directory, Row, RowKey},
    config::Endpoint,
    events::{Departure, Event, Hub, PeerInfo},
    peers::PeerId,
    wire::Hello,
};

/// Events that wait for the hub at most; of more, the oldest are lost, and the subscribers are told
/// how many.
const WAITING_MAX: usize = 1024;
/// Events that one turn tells of: a flood of peers costs each turn no more.
const TOLD_AT_ONCE: usize = 64;
/// When the hub is asked again that was held, by a shard that has nothing else to do.
const AGAIN: Duration = Duration::from_millis(1);

/// Events that are not told yet, and peers that are not in the directory yet, or still.
#[derive(Debug)]
pub(super) struct News {
    shard: usize,
    hub: Arc<Hub>,
    directory: Arc<Directory>,
    /// No more than came and went while the directory was held.
    rows: FxHashMap<RowKey, Option<Row>>,
    waiting: VecDeque<Event>,
    missing: u64,
    /// The last connection's.
    epoch: u64,
    /// There is something to hand on; else a turn looks no further.
    pub(super) is_due: bool,
}

impl News {
    pub(super) fn new(shard: usize, client: &Client) -> Self {
        Self {
            shard,
            hub: client.hub().clone(),
            directory: client.directory().clone(),
            rows: FxHashMap::default(),
            waiting: VecDeque::new(),
            missing: 0,
            epoch: 0,
            is_due: false,
        }
    }

    /// The number of a new connection.
    pub(super) fn next_epoch(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch
    }

    /// A connection to a peer stands.
    pub(super) fn enter(&mut self, key: RowKey, row: Row) {
        self.rows.insert(key, Some(row));
        self.is_due = true;
    }

    /// It does no longer.
    pub(super) fn take_out(&mut self, key: RowKey) {
        self.rows.insert(key, None);
        self.is_due = true;
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
        self.is_due = true;
    }

    /// Hands on what waits, as far as that goes without waiting. Who is told of a peer finds it in
    /// the directory.
    #[inline]
    pub(super) fn hand_on(&mut self) {
        if self.is_due {
            self.try_hand_on();
        }
    }

    #[cold]
    fn try_hand_on(&mut self) {
        let Self {
            shard,
            hub,
            directory,
            rows,
            waiting,
            missing,
            ..
        } = self;
        if rows.is_empty() || directory.try_enter(*shard, rows) {
            hub.try_publish(waiting, missing, TOLD_AT_ONCE);
            self.is_due = !self.waiting.is_empty();
        }
    }

    /// When to hand on what is left.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        self.is_due.then(|| now + AGAIN)
    }
}

impl Core {
    /// A connection that was dialed stands no longer: if its peer was known by it, it is no more.
    pub(super) fn part_from_dialed(&mut self, id: PeerId, reason: Departure) {
        let met = self.peers.part_from(id);
        if let (Some(_), Some(instance)) = (met, self.peers.instance_of(id)) {
            self.news.take_out((instance, Some(id)));
        }
        self.tell_of_dialed(id, met, |peer| Event::Down { peer, reason });
    }

    /// A peer that was dialed has said who it is.
    pub(super) fn know_dialed(&mut self, id: PeerId, hello: Hello) {
        let (epoch, shard) = (self.news.next_epoch(), self.info.shard);
        let (instance, said) = (hello.instance, Arc::new(keep(hello.clone())));
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        peer.identity = Some(hello);
        peer.epoch = Some(epoch);
        peer.is_draining = false;
        let caller = self.side.caller.borrow();
        let info = PeerInfo {
            instance,
            endpoint: caller.endpoint_of(id).map(Endpoint::to_string),
            shard,
            epoch,
        };
        drop(caller);
        self.news.tell(|| Event::Up(info.clone()));
        self.news.enter((instance, Some(id)), Row { info, said });
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

#[cfg(test)]
mod tests {
    use quanta::Clock;

    use super::*;
    use crate::client::ClientOptions;

    #[test]
    fn events_are_told_some_at_a_time_and_those_that_were_too_many_are_counted() {
        let options = ClientOptions {
            message_bytes_max: 1,
            outgoing_messages_max: 1,
            outgoing_bytes_max: 1,
            deadline: Duration::from_secs(1),
        };
        let client = Client::new(Vec::new(), Clock::new(), options);
        let mut events = client.events();
        let mut news = News::new(0, &client);
        let event = |number: usize| Event::HandlerRegistered {
            name: number.to_string(),
        };
        const MISSED: usize = 6;
        (0..WAITING_MAX + MISSED).for_each(|number| news.tell(|| event(number)));
        let mut turns = 0;
        while news.is_due {
            news.hand_on();
            turns += 1;
        }
        assert_eq!(turns, WAITING_MAX / TOLD_AT_ONCE);
        assert_eq!(events.try_recv(), Ok(Event::Missed(MISSED as u64)));
        for number in MISSED..WAITING_MAX + MISSED {
            assert_eq!(events.try_recv(), Ok(event(number)));
        }
    }
}
