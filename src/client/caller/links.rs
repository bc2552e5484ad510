//! The connections to the other shards of a process, beside its main one.

use std::time::Duration;

use quanta::Instant;
use uuid::Uuid;

use super::{Caller, Queue};
use crate::{
    client::{
        Connect, Standing, Target,
        queue::Waiting,
        shards::{Shards, Way},
    },
    config::Endpoint,
    peers::{PeerId, PeerShared},
    wire::{HandlerKey, Header, Hello, Outbox},
};

/// A connection that this process was asked to make.
#[derive(Clone, Copy, Debug)]
pub struct Acquaintance<'a> {
    /// By which the caller speaks of it.
    pub peer: PeerId,
    /// Where it leads.
    pub endpoint: &'a Endpoint,
    /// How things stand with it.
    pub standing: Standing,
    /// Whether it leads to a further shard of a process, beside its main connection.
    pub is_link: bool,
    /// Its process's credit and account.
    pub shared: &'a PeerShared,
}

impl Caller {
    /// The connection by which a message to this process goes: straight to the shard that runs it,
    /// as far as that is known. Opens it if it is the first.
    #[inline]
    pub(super) fn way_to(&mut self, peer: PeerId, handler: HandlerKey, route_key: u64) -> PeerId {
        match self.knows_shards {
            true => self.way_by_shard(peer, handler, route_key),
            false => peer,
        }
    }

    fn way_by_shard(&mut self, peer: PeerId, handler: HandlerKey, route_key: u64) -> PeerId {
        let Some(queue) = self.queues.get_mut(&peer) else {
            return peer;
        };
        if let Some(&latest) = queue.callers.last() {
            return latest;
        }
        let shards = queue.shards.as_deref_mut();
        let way = shards.map(|shards| shards.way(handler, route_key));
        match way {
            Some(Way::Open(link)) => link,
            Some(Way::Opening(shard, endpoint)) => self.open_link(peer, shard, endpoint),
            Some(Way::Main) | None => peer,
        }
    }

    fn open_link(&mut self, main: PeerId, shard: usize, endpoint: Endpoint) -> PeerId {
        let link = PeerId::unique();
        let Some(queue) = self.queues.get_mut(&main) else {
            return main;
        };
        if let Some(shards) = &mut queue.shards {
            shards.open(shard, link);
        }
        let connect = Connect {
            peer: link,
            to: Target::Endpoint(endpoint),
            shared: queue.shared.clone(),
            is_routed: false,
            prefers_ipc: false,
        };
        self.open(&connect);
        if let Some(queue) = self.queues.get_mut(&link) {
            queue.main = Some(main);
        }
        self.wanted.push_back(connect);
        link
    }

    /// A connection to another shard that a message waits for, to be begun.
    pub fn pop_wanted(&mut self) -> Option<Connect> {
        self.wanted.pop_front()
    }

    /// Whether any is to be begun.
    #[inline]
    pub fn wants_links(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// The process that this connection leads to, if it is not its main one.
    pub fn main_of(&self, link: PeerId) -> Option<PeerId> {
        self.queues.get(&link)?.main
    }

    /// Where the connection to this peer was dialed.
    pub fn endpoint_of(&self, peer: PeerId) -> Option<&Endpoint> {
        self.queues.get(&peer)?.endpoint.as_ref()
    }

    /// Whether the process of this instance may be reached by ipc instead of tcp.
    pub fn may_move(&self, peer: PeerId, instance: Uuid) -> bool {
        self.queues.get(&peer).is_some_and(|queue| {
            let is_tcp = matches!(queue.endpoint, Some(Endpoint::Tcp { .. }));
            queue.may_move && is_tcp && queue.moved_to.is_none() && queue.stays != Some(instance)
        })
    }

    /// It is reached by this way from now on.
    pub fn move_to(&mut self, now: Instant, peer: PeerId, endpoint: Endpoint) {
        if let Some(queue) = self.queues.get_mut(&peer) {
            queue.moved_to = Some(endpoint);
            queue.moved_at = Some(now);
        }
    }

    /// The process of this instance is not reached so any more, if it was. Returns how often in a
    /// row that has been so before, each time sooner than `soon` after it was reached so.
    pub fn lose_way(
        &mut self,
        now: Instant,
        peer: PeerId,
        instance: Option<Uuid>,
        soon: Duration,
    ) -> Option<u32> {
        let queue = self.queues.get_mut(&peer)?;
        let moved_at = queue.moved_at.take()?;
        queue.stays = instance;
        if now.saturating_duration_since(moved_at) >= soon {
            queue.losses = 0;
        }
        let before = queue.losses;
        queue.losses = before.saturating_add(1);
        Some(before)
    }

    /// It is to be dialed as at first: there.
    pub fn move_back(&mut self, peer: PeerId) -> Option<Endpoint> {
        let queue = self.queues.get_mut(&peer)?;
        queue.moved_to = None;
        queue.endpoint.clone()
    }

    /// What goes to this peer goes by another connection from now on, which has this outbox.
    /// Nothing may be on its way by the former one.
    pub fn rebind(&mut self, peer: PeerId, outbox: Option<&Outbox>) {
        let Some(queue) = self.queues.get_mut(&peer) else {
            return;
        };
        match outbox {
            Some(outbox) => queue.begin_anew(outbox),
            None => queue.begin_anew(&Outbox::new(0, 0)),
        }
    }

    /// By which way it is reached instead of the one that was dialed.
    pub fn moved_to(&self, peer: PeerId) -> Option<&Endpoint> {
        self.queues.get(&peer)?.moved_to.as_ref()
    }

    /// All peers that were dialed, their main connections and those to further shards.
    pub fn acquaintances(&self) -> impl Iterator<Item = Acquaintance<'_>> {
        self.queues.iter().filter_map(|(&peer, queue)| {
            Some(Acquaintance {
                peer,
                endpoint: queue.endpoint.as_ref()?,
                standing: queue.standing,
                is_link: queue.main.is_some(),
                shared: &queue.shared,
            })
        })
    }

    /// The connections to a process beside its main one.
    pub fn links_of(&self, main: PeerId) -> Vec<PeerId> {
        let Some(queue) = self.queues.get(&main) else {
            return Vec::new();
        };
        let to_shards = queue.shards.iter().flat_map(|shards| shards.open_links());
        to_shards.chain(queue.callers.iter().copied()).collect()
    }

    /// A process has said on its main connection what its shards are, to the shard with this
    /// number. Returns the connections that lead nowhere now, to be closed; what waited for them
    /// goes by the main one.
    pub fn learn_shards(&mut self, main: PeerId, hello: &Hello, own: usize) -> Vec<PeerId> {
        let Some(queue) = self.queues.get_mut(&main) else {
            return Vec::new();
        };
        let before = queue.shards.take();
        if let Some(endpoint) = queue.moved_to.as_ref().or(queue.endpoint.as_ref())
            && !queue.is_routed
        {
            queue.shards = Shards::learn(hello, endpoint, own).map(Box::new);
        }
        self.knows_shards |= queue.shards.is_some();
        let stale = match (before, &mut queue.shards) {
            (Some(before), Some(shards)) => shards.inherit(&before),
            (Some(before), None) => before.open_links().collect(),
            (None, _) => Vec::new(),
        };
        for &link in &stale {
            self.take_over(main, link);
        }
        self.sort_waiting(main);
        stale
    }

    /// A process that is known has changed what it serves.
    pub fn learn_handlers(&mut self, main: PeerId, hello: &Hello) {
        let shards = self.queues.get_mut(&main);
        if let Some(shards) = shards.and_then(|it| it.shards.as_deref_mut()) {
            shards.learn_handlers(hello);
        }
    }

    /// Whether a process has a connection beside this one.
    pub fn has_links(&self, main: PeerId) -> bool {
        self.links_of(main).iter().any(|link| self.knows(*link))
    }

    /// What was submitted before the shards were known goes by the same ways as what follows, or it
    /// might be overtaken.
    fn sort_waiting(&mut self, main: PeerId) {
        let waiting = self.queues.get_mut(&main).map(Queue::move_waiting);
        for waiting in waiting.into_iter().flatten() {
            let Header {
                handler, route_key, ..
            } = waiting.header;
            let peer = self.way_to(main, handler, route_key);
            self.wait_for(peer, waiting);
        }
    }

    /// Whether whoever has answered on this connection is the shard that it should lead to.
    pub fn is_met(&self, main: PeerId, link: PeerId, hello: &Hello) -> bool {
        let shards = self.queues.get(&main).and_then(|it| it.shards.as_ref());
        shards.is_some_and(|shards| shards.is_met(link, hello))
    }

    /// This connection to another shard leads nowhere: what waits for it goes by the main one, as
    /// all that follows.
    pub fn give_up_link(&mut self, main: PeerId, link: PeerId) {
        if let Some(shards) = self
            .queues
            .get_mut(&main)
            .and_then(|it| it.shards.as_deref_mut())
        {
            shards.give_up(link);
        }
        self.take_over(main, link);
    }

    /// Moves what waits for a connection to the main one's queue, in its order.
    fn take_over(&mut self, main: PeerId, link: PeerId) {
        self.wanted.retain(|it| it.peer != link);
        if !self.knows(main) {
            return;
        }
        let waiting = self.queues.get_mut(&link).map(Queue::move_waiting);
        for waiting in waiting.into_iter().flatten() {
            self.wait_for(main, waiting);
        }
    }

    pub(super) fn wait_for(&mut self, peer: PeerId, waiting: Waiting) {
        if let Some(call) = self.calls.get_mut(waiting.header.correlation) {
            call.peer = peer;
        }
        let Some(queue) = self.queues.get_mut(&peer) else {
            return;
        };
        queue.wait(waiting);
        self.wants_load = true;
        if queue.note() {
            self.busy.push(peer);
        }
    }
}
