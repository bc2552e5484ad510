//! The dialing side of a connection: where to, and when again.

use std::time::Duration;

use quanta::Instant;

use super::EngineOptions;
use crate::config::Endpoint;

/// A pause is at least this long, so that a peer which refuses at once is not called in a loop.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// Where a connection is dialed to, as often as it takes.
pub(super) struct Dial {
    /// As it was asked for: a name is resolved anew each time.
    pub(super) endpoint: Endpoint,
    failures: u32,
}

impl Dial {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            failures: 0,
        }
    }

    pub(super) fn is_ipc(&self) -> bool {
        matches!(self.endpoint, Endpoint::Ipc { .. })
    }

    /// It stood: the next failure is a first one.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// When to dial again: exponential, with full jitter, so that a thousand peers of a process
    /// that comes back do not come back at once.
    pub(super) fn next_attempt(
        &mut self,
        now: Instant,
        options: &EngineOptions,
        random: &mut fastrand::Rng,
    ) -> Instant {
        let doublings = self.failures.min(20);
        self.failures += 1;
        let most = options.reconnect_min.saturating_mul(1 << doublings);
        let most = most.min(options.reconnect_max);
        now + most.mul_f64(random.f64()).max(PAUSE_MIN)
    }
}
