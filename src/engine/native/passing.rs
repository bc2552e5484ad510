//! Connections over time: their timers, and their end.

use std::cmp::Reverse;

use quanta::Instant;

use super::{
    Native, TICK_MAX, TICKS_PER_INTERVAL,
    link::{Phase, Tick},
};
use crate::{
    engine::{ConnectionId, Event},
    error::Lost,
};

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
    pub(super) fn part(&mut self, id: ConnectionId, why: Lost) {
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
            if why != Lost::Unreadable
                && let Some(link) = self.links.get_mut(id)
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

    /// A connection has ended: tells of it, and dials again if it is to.
    pub(super) fn lose(&mut self, id: ConnectionId, why: Lost, sink: &mut impl FnMut(Event<'_>)) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        self.gone.retain(|&(gone, _)| gone != id);
        // An ERROR command may wait, which tells the peer why.
        let _ = link.flush_last_words(&mut self.io);
        let is_up = link.is_up();
        if is_up || link.is_once() {
            match why {
                _ if !is_up => tracing::debug!(connection = ?id, "not made: {why}"),
                Lost::Closed => tracing::debug!(connection = ?id, "{why}"),
                _ => tracing::warn!(connection = ?id, "connection lost: {why}"),
            }
            sink(Event::Down {
                connection: id,
                why: why.clone(),
                outbox: &mut link.outbox,
            });
        } else if link.is_accepted() {
            tracing::debug!(connection = ?id, "handshake failed: {why}");
        }
        if link.is_accepted() || link.is_once() {
            self.forget(id);
        } else {
            self.hot.remove(id);
            link.is_hot = false;
            self.dial_again(id, &why);
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
