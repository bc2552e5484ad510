//! How long to wait before a connection is tried again.

use std::time::Duration;

/// A pause is at least this long, so that a peer which refuses at once is not called in a loop.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// The bounds of the pauses.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    /// The most that the first one takes; it doubles with each failure.
    pub first: Duration,
    /// The most that any takes.
    pub longest: Duration,
}

impl Pauses {
    /// The pause after so many failures in a row, and one more: exponential, with full jitter, so
    /// that a thousand peers of a process that comes back do not come back at once.
    pub fn after(&self, failures: u32, random: &mut fastrand::Rng) -> Duration {
        let most = self.first.saturating_mul(1 << failures.min(20));
        let most = most.min(self.longest);
        most.mul_f64(random.f64()).max(PAUSE_MIN)
    }
}
