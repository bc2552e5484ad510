//! What the engine does around its reads and writes, and its looks at the poller.

use std::os::fd::BorrowedFd;

use quanta::Instant;
use rustix::time::Timespec;

use super::{
    Native, RETRIED_MAX, TURNS_PER_LOOK, UNWATCHED_STREAK,
    link::{Phase, Write},
    poller::{Interest, Ready, Token},
};
use crate::{
    engine::{ConnectionId, Event},
    error::Lost,
};

/// Reading and writing.
impl Native {
    /// Reads one connection. Returns how much came of it.
    #[inline]
    pub(super) fn harvest(
        &mut self,
        id: ConnectionId,
        now: Instant,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        let Some(link) = self.links.get_mut(id) else {
            return 0;
        };
        let harvest = match link.harvest(id, now, messages_max, &mut self.io, sink) {
            Ok(harvest) => harvest,
            Err(why) => {
                self.lose(id, why, sink);
                return 1;
            }
        };
        if !harvest.heard && harvest.events == 0 {
            return 0;
        }
        if harvest.more && !link.is_ready {
            link.is_ready = true;
            self.ready.push_back(id);
        }
        if link.has_pending() && !link.is_dirty {
            if link.write == Write::Awaited {
                // No flush comes to do it.
                link.settle_outbox(&mut self.io.buffers);
            } else {
                link.is_dirty = true;
                self.dirty.push_back(id);
            }
        }
        self.note_active(id);
        harvest.events.max(1)
    }

    /// How many of a turn's messages are kept for those that are not read directly: half of them,
    /// if any wait. However much the hot ones bring, nobody starves beside them.
    #[inline]
    pub(super) fn reserve_for_others(&mut self, messages_max: usize) -> usize {
        self.first_hot = self.first_hot.wrapping_add(1);
        // Hot ones wait, too, with what they had no room for; all but a few that wait are others.
        let is_other = |&id: &ConnectionId| !self.hot.contains(id);
        match self.ready.iter().any(is_other) {
            true => (messages_max + self.first_hot % 2) / 2,
            false => 0,
        }
    }

    /// A connection was active: it may become hot, leave the poller's set for a while, or have the
    /// poller wait for something else.
    #[inline]
    fn note_active(&mut self, id: ConnectionId) {
        let (streak, let_go) = self.hot.enter(id);
        if let Some(cold) = let_go {
            self.cool(cold);
        }
        if streak <= 1 || streak == UNWATCHED_STREAK {
            self.note_streak(id, streak);
        }
    }

    #[cold]
    fn note_streak(&mut self, id: ConnectionId, streak: u32) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        match streak {
            // One of many.
            0 => self.let_rest(id),
            1 => {
                link.is_hot = true;
                // It may be paused, or up since just now.
                self.watch(id);
            }
            _ => link.unwatch(&self.io),
        }
    }

    /// A connection is no longer read each turn.
    fn cool(&mut self, id: ConnectionId) {
        if let Some(link) = self.links.get_mut(id) {
            link.is_hot = false;
        }
        self.let_rest(id);
    }

    /// A connection is not asked directly: the poller watches it, and it holds no large buffer.
    fn let_rest(&mut self, id: ConnectionId) {
        self.watch(id);
        if let Some(link) = self.links.get_mut(id)
            && !link.is_ready
        {
            link.rest(&mut self.io);
        }
    }

    pub(super) fn flush_one(&mut self, id: ConnectionId, now: Instant) -> usize {
        let Some(link) = self.links.get_mut(id) else {
            return 0;
        };
        link.is_dirty = false;
        let messages = match link.flush(now, &mut self.io) {
            Ok(messages) => messages,
            Err(why) => {
                self.part(id, why);
                return 0;
            }
        };
        let due = link
            .full_since
            .map(|since| since + self.io.options.slow_consumer);
        if link.is_paused && !link.is_congested(!self.io.buffers.has_room(0)) {
            link.is_paused = false;
            if !link.is_ready {
                link.is_ready = true;
                self.ready.push_back(id);
            }
        }
        let is_watched = link.watched.is_some();
        if link.write == Write::Retried {
            if self.dirty.len() < RETRIED_MAX {
                link.is_dirty = true;
                self.dirty.push_back(id);
            } else {
                self.await_room(id);
            }
        }
        if is_watched {
            self.watch(id);
        }
        if let Some(due) = due {
            self.schedule(id, due);
        }
        messages
    }

    /// Has the poller wait for the sockets that took no more: the shard is about to park.
    pub(super) fn await_blocked(&mut self) {
        for _ in 0..self.dirty.len() {
            let Some(id) = self.dirty.pop_front() else {
                break;
            };
            let Some(link) = self.links.get_mut(id) else {
                continue;
            };
            if link.write == Write::Retried {
                link.is_dirty = false;
                self.await_room(id);
            } else {
                self.dirty.push_back(id);
            }
        }
    }

    /// The poller tells when the socket takes more. Until then nothing flushes the connection, so
    /// that a timer has to see whether its queue is full.
    fn await_room(&mut self, id: ConnectionId) {
        if let Some(link) = self.links.get_mut(id) {
            link.write = Write::Awaited;
        }
        self.watch(id);
        self.schedule(id, self.now + self.io.options.slow_consumer);
    }

    /// Whether something can be written now.
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }
}

/// The poller.
impl Native {
    /// Whether to look at those that are not hot: each turn if there are no hot ones, or others
    /// were active; else now and then. What woke a parked shard is looked for only if the hot ones
    /// turn out not to have been it.
    #[inline]
    pub(super) fn is_look_due(&mut self, hot_worked: bool) -> bool {
        self.turns_since_look += 1;
        self.has_parked &= !hot_worked;
        self.hot.is_empty()
            || self.others_active
            || self.has_parked
            || self.turns_since_look >= TURNS_PER_LOOK
    }

    pub(super) fn look_at_poller(&mut self) {
        self.turns_since_look = 0;
        self.others_active = false;
        self.has_parked = false;
        self.watch_listeners();
        self.io.stats.looks += 1;
        let found = &mut self.found;
        self.io.poller.look(|ready| found.push(ready));
        self.take_found();
        self.looked_at = self.now;
    }

    /// Waits in the poller itself: one wake-up less on the way than to wait for its descriptor.
    pub(super) fn wait_in_poller(&mut self, bell: BorrowedFd<'_>, at_most: Option<Timespec>) {
        if !self.is_bell_watched {
            match self.io.poller.add(bell, Token::Bell, Interest::READABLE) {
                Ok(()) => self.is_bell_watched = true,
                // Out of memory: a short sleep stands in for it.
                Err(errno) => tracing::error!(%errno, "cannot watch the doorbell"),
            }
        }
        let a_millisecond = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        let at_most = match self.is_bell_watched {
            true => at_most,
            false => Some(a_millisecond),
        };
        let found = &mut self.found;
        self.io
            .poller
            .wait(at_most.as_ref(), |ready| found.push(ready));
        // The next poll deals with it: it knows the time.
        self.has_parked = false;
    }

    #[inline]
    pub(super) fn take_found(&mut self) {
        if !self.found.is_empty() {
            self.deal_with_found();
        }
    }

    fn deal_with_found(&mut self) {
        let mut found = std::mem::take(&mut self.found);
        for ready in found.drain(..) {
            self.on_ready(ready);
        }
        self.found = found;
    }

    fn on_ready(&mut self, ready: Ready) {
        let id = match ready.token {
            Token::Listener(number) => return self.accept(number as usize),
            Token::Resolver => return self.take_answers(),
            // Whoever waits reads it.
            Token::Bell => return,
            Token::Link(id) => id,
        };
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if let Phase::Connecting { .. } = link.phase {
            return self.on_connected(id);
        }
        if ready.writable && link.write == Write::Awaited {
            link.write = Write::Retried;
            if !link.is_dirty {
                link.is_dirty = true;
                self.dirty.push_back(id);
            }
        }
        if ready.readable && !link.is_ready {
            link.is_ready = true;
            link.emptied_at = link.emptied_at.max(self.looked_at);
            self.ready.push_back(id);
            self.others_active |= !self.hot.contains(id);
        }
    }

    pub(super) fn watch(&mut self, id: ConnectionId) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if let Err(errno) = link.watch(Token::Link(id), &self.io) {
            self.part(id, Lost::Broken(errno.to_string()));
        }
    }

    pub(super) fn watch_listeners(&mut self) {
        let has_room = self.io.greeting < self.io.options.unauthenticated_max;
        for listener in &mut self.listeners {
            listener.watch(&self.io.poller, self.now, has_room);
        }
    }
}
