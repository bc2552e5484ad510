//! What the engine does around its reads and writes: looks at the poller, accepts, dials, keeps
//! time, and parts with connections.

use std::{cmp::Reverse, os::fd::BorrowedFd};

use quanta::Instant;
use rustix::{net::sockopt::socket_error, time::Timespec};

use super::{
    Native, RETRIED_MAX, TICK_MAX, TICKS_PER_INTERVAL, TURNS_PER_LOOK, UNWATCHED_STREAK,
    dial::Dial,
    link::{Link, Phase, Tick, Write},
    listen::Accepted,
    poller::{Interest, Ready, Token},
    socket::{self, Address},
};
use crate::{
    engine::{ConnectionId, Event},
    error::Lost,
};

/// Connections accepted in one look.
const ACCEPTS_MAX: usize = 32;

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
    /// Whether to look at those that are not hot: each turn if there are no hot ones, or others were
    /// active; else now and then. What woke a parked shard is looked for only if the hot ones turn
    /// out not to have been it.
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
            self.ready.push_back(id);
            self.others_active |= !self.hot.ids().any(|hot| hot == id);
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

/// Connections that begin.
impl Native {
    fn accept(&mut self, number: usize) {
        for _ in 0..ACCEPTS_MAX {
            if self.io.greeting >= self.io.options.unauthenticated_max {
                break;
            }
            let Some(listener) = self.listeners.get_mut(number) else {
                break;
            };
            match listener.accept(self.now) {
                Accepted::Socket(socket) => {
                    self.io.greeting += 1;
                    let link = Link::accepted(socket, self.now, &self.io.options);
                    let id = self.links.insert(link);
                    self.begin(id);
                }
                Accepted::Refused => {}
                Accepted::None => break,
            }
        }
    }

    /// Dials, or asks for the address first.
    fn dial(&mut self, id: ConnectionId) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let Some(Dial { endpoint, .. }) = &link.dial else {
            return;
        };
        if let Some(address) = Address::of(endpoint) {
            return self.dial_address(id, &address);
        }
        let until = self.now + self.io.options.handshake;
        let is_asked = self.resolver.ask(id, endpoint, &self.mailbox);
        link.phase = Phase::Resolving { until };
        match is_asked {
            true => self.schedule(id, until),
            false => self.dial_again(id, "too many names wait to be resolved"),
        }
    }

    fn take_answers(&mut self) {
        while let Some(answer) = self.mailbox.pop() {
            let id = answer.connection;
            let phase = self.links.get(id).map(|link| &link.phase);
            // Else the connection is closed, or the answer came too late.
            if !matches!(phase, Some(Phase::Resolving { .. })) {
                continue;
            }
            match answer.endpoint.as_ref().map(Address::of) {
                Ok(Some(address)) => self.dial_address(id, &address),
                Ok(None) => self.dial_again(id, "the name has no address"),
                Err(error) => self.dial_again(id, &error.to_string()),
            }
        }
    }

    fn dial_address(&mut self, id: ConnectionId, address: &Address) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        match socket::connect_to(address) {
            Ok(socket) => {
                let until = self.now + self.io.options.handshake;
                link.socket = Some(socket);
                link.phase = Phase::Connecting { until };
                self.watch(id);
                self.schedule(id, until);
            }
            Err(errno) => self.dial_again(id, &errno.to_string()),
        }
    }

    /// The kernel has connected, or has given up.
    fn on_connected(&mut self, id: ConnectionId) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let Some(socket) = link.socket.take() else {
            return;
        };
        match socket_error(&socket) {
            Ok(Ok(())) => {
                socket::tune(&socket);
                link.greet(socket, self.now, &self.io.options);
                self.begin(id);
            }
            Ok(Err(errno)) | Err(errno) => {
                link.socket = Some(socket);
                self.dial_again(id, &errno.to_string());
            }
        }
    }

    /// A socket is connected: the handshake begins.
    fn begin(&mut self, id: ConnectionId) {
        self.watch(id);
        self.flush_one(id, self.now);
        let options = &self.io.options;
        let first_look = options.handshake.min(options.heartbeat_interval);
        self.schedule(id, self.now + first_look);
    }

    fn dial_again(&mut self, id: ConnectionId, why: &str) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let Some(dial) = &mut link.dial else {
            return;
        };
        tracing::debug!(endpoint = %dial.endpoint, why, "not connected; trying again");
        let until = dial.next_attempt(self.now, &self.io.options, &mut self.random);
        link.reset(until, &mut self.io);
        self.schedule(id, until);
    }
}

/// Time.
impl Native {
    pub(super) fn schedule(&mut self, id: ConnectionId, at: Instant) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if link.timer_at.is_none_or(|earlier| at < earlier) {
            link.timer_at = Some(at);
            self.timers.push(Reverse((at, id.to_u64())));
        }
    }

    pub(super) fn fire_timers(&mut self, now: Instant, sink: &mut impl FnMut(Event<'_>)) -> usize {
        let mut count = 0;
        while let Some(&Reverse((at, id))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            let id = ConnectionId::from_u64(id);
            let Some(link) = self.links.get_mut(id) else {
                continue;
            };
            // Else an earlier one has come in its place.
            if link.timer_at != Some(at) {
                continue;
            }
            link.timer_at = None;
            count += 1;
            match link.on_time(now, &self.io.options) {
                Ok(Tick::Again(at)) if link.is_up() => self.schedule(id, self.rounded(at)),
                Ok(Tick::Again(at)) => self.schedule(id, at),
                Ok(Tick::Write(at)) => {
                    self.flush_one(id, now);
                    self.schedule(id, self.rounded(at));
                }
                Ok(Tick::Dial) => self.dial(id),
                // Not silent, but not heard: this turn did not come to read it.
                Err(Lost::Silent) if link.has_arrived() => {
                    link.heard(now);
                    let at = now + self.io.options.heartbeat_interval;
                    self.schedule(id, self.rounded(at));
                }
                Err(why) => self.lose(id, why, sink),
            }
        }
        count
    }

    /// Later, so that many connections' timers fall together; by no more than a part of the
    /// heartbeat's interval, and never by much: other limits are looked at then, too.
    fn rounded(&self, at: Instant) -> Instant {
        let tick = self.io.options.heartbeat_interval / TICKS_PER_INTERVAL;
        let tick = tick.min(TICK_MAX);
        let tick_ns = tick.as_nanos().max(1) as u64;
        let since_ns = at.saturating_duration_since(self.began).as_nanos() as u64;
        let ticks = since_ns.div_ceil(tick_ns);
        self.began + std::time::Duration::from_nanos(ticks.saturating_mul(tick_ns))
    }
}

/// Connections that end.
impl Native {
    /// A connection has ended while there was nobody to tell; the next poll does.
    fn part(&mut self, id: ConnectionId, why: Lost) {
        if !self.gone.iter().any(|&(gone, _)| gone == id) {
            self.gone.push((id, why));
        }
    }

    /// What a peer said before it went is heard first: answers that have arrived are answers,
    /// though a write was what failed.
    #[inline]
    pub(super) fn tell_of_the_gone(
        &mut self,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        match self.gone.is_empty() {
            true => 0,
            false => self.hear_out_the_gone(messages_max, sink),
        }
    }

    #[cold]
    fn hear_out_the_gone(
        &mut self,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        let mut count = 0;
        while count < messages_max
            && let Some((id, why)) = self.gone.pop()
        {
            if let Some(link) = self.links.get_mut(id)
                && let room = messages_max - count
                && let Ok(harvest) = link.harvest(id, self.now, room, &mut self.io, sink)
            {
                count += harvest.events;
                if harvest.heard || harvest.more {
                    self.gone.push((id, why));
                    continue;
                }
            }
            count += 1;
            self.lose(id, why, sink);
        }
        count
    }

    /// A connection has ended: tells of it, and dials again if it was dialed.
    pub(super) fn lose(&mut self, id: ConnectionId, why: Lost, sink: &mut impl FnMut(Event<'_>)) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        self.gone.retain(|&(gone, _)| gone != id);
        // An ERROR command may wait, which tells the peer why.
        let _ = link.flush_last_words(&mut self.io);
        let reason = why.to_string();
        if link.is_up() {
            match why {
                Lost::Closed => tracing::debug!(connection = ?id, "{why}"),
                _ => tracing::warn!(connection = ?id, "connection lost: {why}"),
            }
            sink(Event::Down {
                connection: id,
                why,
                outbox: &mut link.outbox,
            });
        } else if link.is_accepted() {
            tracing::debug!(connection = ?id, "handshake failed: {why}");
        }
        if link.is_accepted() {
            self.forget(id);
        } else {
            self.hot.remove(id);
            link.is_hot = false;
            self.dial_again(id, &reason);
        }
    }

    pub(super) fn forget(&mut self, id: ConnectionId) {
        let Some(mut link) = self.links.remove(id) else {
            return;
        };
        self.hot.remove(id);
        if link.is_accepted() && matches!(link.phase, Phase::Greeting { .. }) {
            self.io.greeting -= 1;
        }
        link.reset(self.now, &mut self.io);
    }
}
