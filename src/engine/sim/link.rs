//! One end of a connection: what its engine knows of it, and when something is due.

use quanta::Instant;

use super::cables::Cables;
use crate::{config::Endpoint, engine::EngineOptions, error::Lost, wire::Outbox};

/// A connection as one engine sees it.
pub(super) struct Link {
    /// Where it is dialed to; `None` for an accepted one.
    pub(super) dials: Option<Endpoint>,
    /// What fails or ends is not dialed again.
    pub(super) is_once: bool,
    /// When it is dialed again, or, while there is a cable, when its handshake must be done.
    pub(super) retry_at: Option<Instant>,
    /// The cable, and which of its ends is ours.
    pub(super) cable: Option<(usize, usize)>,
    pub(super) is_up: bool,
    /// Since when its outbox is full.
    pub(super) full_since: Option<Instant>,
    pub(super) outbox: Outbox,
}

impl Link {
    /// When it is lost, unless something happens before, and why.
    pub(super) fn due(
        &self,
        silent_since: Option<Instant>,
        options: &EngineOptions,
    ) -> Option<(Instant, Lost)> {
        let handshake = self.retry_at.map(|at| (at, Lost::HandshakeTime));
        let silent = silent_since.map(|at| (at + options.heartbeat_timeout, Lost::Silent));
        let full = self
            .full_since
            .map(|at| (at + options.slow_consumer, Lost::SlowConsumer));
        let dues = [handshake, silent.filter(|_| self.is_up), full];
        dues.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Whether nothing is read from it for want of room for answers.
    pub(super) fn is_congested(&self) -> bool {
        !self.is_always_read() && self.outbox.is_blocked()
    }

    /// What we have dialed brings answers, and those need no room; so does what is called by.
    pub(super) fn is_always_read(&self) -> bool {
        self.dials.is_some() || self.outbox.brings_answers()
    }

    /// When something happens to it by itself.
    pub(super) fn next_wake(
        &self,
        now: Instant,
        cables: &Cables,
        options: &EngineOptions,
    ) -> Option<Instant> {
        let Some((number, end)) = self.cable else {
            return Some(self.retry_at.unwrap_or(now));
        };
        let Some(cable) = cables.get(number) else {
            return Some(now);
        };
        let front = cable.lanes[1 - end].front();
        let arrival = front
            .filter(|(item, _)| !(item.is_message() && self.is_congested()))
            .map(|(_, at)| at.unwrap_or(now));
        let due = self.due(cables.silent_since(now, cable, end), options);
        let ends = [arrival, due.map(|(at, _)| at)];
        ends.into_iter().flatten().min()
    }

    /// Whether something of its outbox could leave.
    pub(super) fn may_flush(&self, cables: &Cables) -> bool {
        let lane = || {
            let (cable, end) = self.cable?;
            Some(cables.get(cable)?.lanes[end].len())
        };
        let has_room = || lane().is_some_and(|len| len < cables.weather.in_flight_max);
        self.is_up && !self.outbox.is_empty() && has_room()
    }
}
