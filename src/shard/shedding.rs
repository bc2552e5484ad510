//! Which messages are refused because they have waited for too long.
//!
//! Every queue has a bound, but the sockets' own are long: at 100 µs a message, what one connection
//! has in the kernel's buffers is seconds of work, and who waits in it has waited for nothing when
//! its deadline comes. So a shard that cannot keep up refuses what has waited longer than a target,
//! and what it does run is never older than that.
//!
//! This is controlled delay as servers use it (Nichols and Jacobson, "Controlling Queue Delay";
//! Maurer, "Fail at Scale"): a burst may wait, a standing queue may not. A queue stands if the
//! shard has had no moment without work for an interval. Then each message is held against the
//! target, and goes on being held against it until for as long an interval none was too old:
//! senders do not slow down for a refusal, as TCP does, so there is nothing to be learnt from
//! letting the queue grow again in between. Order stays as it was: there are gaps, and no swap.

use std::time::Duration;

use quanta::Instant;

/// When to refuse what has waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shedding {
    /// How long a message may wait while the queue stands.
    pub target: Duration,
    /// How long there must have been no moment without work before the queue is said to stand.
    pub after: Duration,
}

/// Who decides, for one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shedder {
    shedding: Option<Shedding>,
    /// Nothing was to be done when this was last looked at.
    is_idle: bool,
    /// When there was last nothing to be done.
    idle_at: Option<Instant>,
    /// When a message was last refused.
    shed_at: Option<Instant>,
}

impl Shedder {
    /// `None` refuses nothing.
    pub(super) fn new(shedding: Option<Shedding>) -> Self {
        Self {
            shedding,
            is_idle: true,
            idle_at: None,
            shed_at: None,
        }
    }

    /// There is nothing to be done, until the next `begin`.
    #[inline]
    pub(super) fn rest(&mut self) {
        self.is_idle = true;
    }

    /// Something may be to be done from now on.
    #[inline]
    pub(super) fn begin(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_idle) {
            self.idle_at = Some(now);
        }
    }

    /// Whether a message is to be refused that has waited since then.
    #[inline]
    pub(super) fn refuses(&mut self, since: Instant, now: Instant) -> bool {
        match self.shedding {
            Some(shedding) if now.saturating_duration_since(since) > shedding.target => {
                self.refuses_late(shedding, now)
            }
            _ => false,
        }
    }

    fn refuses_late(&mut self, shedding: Shedding, now: Instant) -> bool {
        let is_long_ago = |at: Option<Instant>| {
            at.is_none_or(|at| now.saturating_duration_since(at) >= shedding.after)
        };
        let refuses = is_long_ago(self.idle_at) || !is_long_ago(self.shed_at);
        if refuses {
            self.shed_at = Some(now);
        }
        refuses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHEDDING: Shedding = Shedding {
        target: Duration::from_millis(5),
        after: Duration::from_millis(100),
    };

    fn at(ms: u64) -> Instant {
        let (clock, mock) = quanta::Clock::mock();
        mock.increment(Duration::from_millis(1_000 + ms));
        clock.now()
    }

    fn shedder() -> Shedder {
        let mut shedder = Shedder::new(Some(SHEDDING));
        shedder.begin(at(0));
        shedder
    }

    #[test]
    fn a_burst_may_wait_and_a_standing_queue_may_not() {
        let mut shedder = shedder();
        assert!(!shedder.refuses(at(0), at(99)));
        assert!(shedder.refuses(at(0), at(100)));
        // What is young enough runs, however long the queue has stood.
        assert!(!shedder.refuses(at(95), at(100)));
        assert!(shedder.refuses(at(94), at(100)));
    }

    #[test]
    fn a_moment_without_work_forgives_a_shard_that_refuses_nothing() {
        let mut shedder = shedder();
        shedder.rest();
        shedder.begin(at(90));
        assert!(!shedder.refuses(at(60), at(189)));
        assert!(shedder.refuses(at(60), at(190)));
    }

    #[test]
    fn refusing_ends_once_nothing_was_too_old_for_an_interval() {
        let mut shedder = shedder();
        assert!(shedder.refuses(at(0), at(100)));
        shedder.rest();
        shedder.begin(at(101));
        assert!(shedder.refuses(at(150), at(199)), "it has just done so");
        shedder.rest();
        shedder.begin(at(250));
        assert!(!shedder.refuses(at(200), at(299)));
    }

    #[test]
    fn without_a_target_nothing_is_refused() {
        let mut shedder = Shedder::new(None);
        shedder.begin(at(0));
        assert!(!shedder.refuses(at(0), at(100_000)));
    }
}
