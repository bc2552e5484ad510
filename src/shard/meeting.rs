//! Getting to know a process: its welcome, and the connections to its shards.

use std::time::Duration;

use quanta::Instant;

use super::Core;
use crate::{client::Standing, engine::ConnectionId, peers::PeerId, wire::Hello};

/// For so long a peer may leave our hello without a welcome; then what waits is sent all the same.
const WELCOME_PATIENCE: Duration = Duration::from_millis(250);
/// For so long messages wait for a connection to the shard that runs them; then they go by the main
/// connection, and are routed there.
const LINK_PATIENCE: Duration = Duration::from_secs(1);

/// A connection that is to be welcomed.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) peer: PeerId,
    pub(super) until: Instant,
}

impl Core {
    /// Hello was said.
    pub(super) fn expect_welcome(&mut self, now: Instant, peer: PeerId) {
        // One to a further shard has been expected since it was begun.
        if self.side.caller.borrow().main_of(peer).is_none() {
            let until = now + WELCOME_PATIENCE;
            self.expected.push(Expected { peer, until });
        }
    }

    /// A connection is begun, or begun anew, that may lead to a further shard.
    pub(super) fn expect_link(&mut self, now: Instant, peer: PeerId) {
        self.expected.retain(|it| it.peer != peer);
        if self.side.caller.borrow().main_of(peer).is_some() {
            let until = now + LINK_PATIENCE;
            self.expected.push(Expected { peer, until });
        }
    }

    pub(super) fn on_welcome(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        payload: &mut [u8],
    ) {
        let Some((id, _)) = self.peers.dialed_at(connection) else {
            return self.nearby.on_welcome(connection, payload);
        };
        let before = self.expected.len();
        self.expected.retain(|it| it.peer != id);
        // Once, and not after a goodbye.
        let is_expected = self.expected.len() < before;
        let hello = match Hello::decode(payload) {
            Ok(hello) => hello,
            Err(error) => {
                tracing::warn!(peer = %id, %error, "cannot read the peer's welcome");
                return self.do_without(now, id);
            }
        };
        let mut caller = self.side.caller.borrow_mut();
        if !is_expected {
            // What a known process serves has changed. Who was not met, or has been replaced, has
            // nothing to add; nor has a further shard.
            if let Some(peer) = self.peers.get_mut(id)
                && let Some(met) = &mut peer.identity
                && met.instance == hello.instance
                && caller.main_of(id).is_none()
            {
                caller.learn_handlers(id, &hello);
                met.handlers = hello.handlers;
            }
            return;
        }
        if let Some(main) = caller.main_of(id) {
            if caller.is_met(main, id, &hello) {
                // Who sends by it is no stranger. Its handlers are known by the main connection.
                if let Some(peer) = self.peers.get_mut(id) {
                    peer.identity = Some(Hello::of_instance(hello.instance));
                }
                return caller.stand(id, Standing::Up);
            }
            drop(caller);
            tracing::warn!(peer = %id, "another process than expected answers for a shard");
            return self.do_without(now, id);
        }
        drop(caller);
        if let Some(hello) = self.try_nearby(id, hello) {
            self.admit(now, id, hello);
        }
    }

    /// A peer is known by its welcome: what waits for it goes out.
    pub(super) fn admit(&mut self, now: Instant, id: PeerId, hello: Hello) {
        let mut caller = self.side.caller.borrow_mut();
        let stale = caller.learn_shards(id, &hello, self.info.shard);
        caller.stand(id, Standing::Up);
        self.closing.extend(stale.into_iter().map(|id| (id, now)));
        drop(caller);
        self.know_dialed(id, hello);
    }

    /// Goes on without the welcomes that have not come.
    #[inline]
    pub(super) fn stop_expecting(&mut self, now: Instant) {
        while let Some(at) = self.expected.iter().position(|it| it.until <= now) {
            let Expected { peer, .. } = self.expected.swap_remove(at);
            self.do_without(now, peer);
        }
    }

    /// As [`do_without`](Self::do_without), for a connection to a further shard only.
    pub(super) fn do_without_link(&mut self, now: Instant, peer: PeerId) {
        if self.side.caller.borrow().main_of(peer).is_some() {
            self.do_without(now, peer);
        }
    }

    /// A peer is not welcomed: what waits for it goes all the same, by its main connection.
    #[cold]
    fn do_without(&mut self, now: Instant, peer: PeerId) {
        let mut caller = self.side.caller.borrow_mut();
        match caller.main_of(peer) {
            None => caller.stand(peer, Standing::Up),
            Some(main) => {
                caller.give_up_link(main, peer);
                self.closing.push((peer, now));
            }
        }
    }
}
