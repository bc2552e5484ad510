//! The dialing side of a connection: where to, and when again.

use quanta::Instant;

use super::EngineOptions;
use crate::config::Endpoint;

/// Where a connection is dialed to, as often as it takes.
pub(super) struct Dial {
    /// As it was asked for: a name is resolved anew each time.
    pub(super) endpoint: Endpoint,
    /// What fails or ends is not dialed again.
    pub(super) is_once: bool,
    failures: u32,
}

impl Dial {
    pub(super) fn new(endpoint: Endpoint, is_once: bool) -> Self {
        Self {
            endpoint,
            is_once,
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

    /// When to dial again.
    pub(super) fn next_attempt(
        &mut self,
        now: Instant,
        options: &EngineOptions,
        random: &mut fastrand::Rng,
    ) -> Instant {
        let failures = self.failures;
        self.failures = failures.saturating_add(1);
        now + options.pauses().after(failures, random)
    }
}
