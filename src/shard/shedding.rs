//! Which messages are refused because they have waited for too long.
//!
//! Every queue has a bound, but the sockets' own are long: at 100 µs a message, what one connection
//! has in the kernel's buffers is seconds of work, and who waits in it has waited for nothing when
//! its deadline comes. So a shard that cannot keep up refuses what has waited longer than a target,
//! and what it does run is never older than that.
//!
//! This is controlled delay as servers use it (Nichols and Jacobson, "Controlling Queue Delay";
//! Maurer, "Fail at Scale"): a burst may wait, a standing queue may not. A queue stands if in an
//! interval the shard had no moment without work, and most messages came to their turn too old: a
//! stall makes some messages old, and one patient peer's messages are young beside any flood. Then
//! each message is held against the target, and goes on being held against it until for as long an
//! interval none was too old: senders do not slow down for a refusal, as TCP does, so there is
//! nothing to be learnt from letting the queue grow again in between. Order stays as it was: there
//! are gaps, and no swap.

use std::time::Duration;

use quanta::Instant;

/// When to refuse what has waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shedding {
    /// How long a message may wait while the queue stands.
    pub target: Duration,
    /// How long an interval is: without a moment without work, and after a refusal.
    pub after: Duration,
}

/// Who decides, for one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shedder {
    shedding: Option<Shedding>,
    /// Nothing was to be done when this was last looked at.
    is_idle: bool,
    /// Since when the last message had waited, and until when it may: those of one read have waited
    /// since one moment.
    last: Option<(Instant, Instant)>,
    /// When the interval ends.
    ends_at: Option<Instant>,
    /// Messages of this interval that had waited for longer than the target, and the others.
    old: u64,
    young: u64,
    /// The queue stood in the interval before, and there was no moment without work since.
    stands: bool,
    /// Until when the last refusal has others refused.
    sheds_until: Option<Instant>,
}

impl Shedder {
    /// `None` refuses nothing.
    pub(super) fn new(shedding: Option<Shedding>) -> Self {
        Self {
            shedding,
            is_idle: true,
            last: None,
            ends_at: None,
            old: 0,
            young: 0,
            stands: false,
            sheds_until: None,
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
        if std::mem::take(&mut self.is_idle)
            && let Some(shedding) = self.shedding
        {
            self.stands = false;
            self.begin_interval(shedding, now);
        }
    }

    /// Whether a message is to be refused that has waited since then.
    #[inline]
    pub(super) fn refuses(&mut self, since: Instant, now: Instant) -> bool {
        match self.shedding {
            Some(shedding) => self.judge(shedding, since, now),
            None => false,
        }
    }

    #[inline]
    fn judge(&mut self, shedding: Shedding, since: Instant, now: Instant) -> bool {
        let may_until = match self.last {
            Some((last, until)) if last == since => until,
            _ => self.last.insert((since, since + shedding.target)).1,
        };
        let is_old = may_until < now;
        self.old += u64::from(is_old);
        self.young += u64::from(!is_old);
        if self.ends_at.is_none_or(|end| end <= now) {
            self.stands = self.old > self.young;
            self.begin_interval(shedding, now);
        }
        let refuses = is_old && (self.stands || self.sheds_until.is_some_and(|end| now < end));
        if refuses {
            self.sheds_until = Some(now + shedding.after);
        }
        refuses
    }

    fn begin_interval(&mut self, shedding: Shedding, now: Instant) {
        self.ends_at = Some(now + shedding.after);
        (self.old, self.young) = (0, 0);
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
        assert!(!shedder.refuses(at(0), at(50)) && !shedder.refuses(at(0), at(99)));
        assert!(shedder.refuses(at(0), at(100)));
        // What is young enough runs, however long the queue has stood.
        assert!(!shedder.refuses(at(95), at(100)));
        assert!(shedder.refuses(at(94), at(100)));
    }

    #[test]
    fn some_old_ones_among_many_young_ones_are_a_stall() {
        let mut shedder = shedder();
        for ms in 0..90 {
            assert!(!shedder.refuses(at(ms), at(ms)));
        }
        for _ in 0..80 {
            assert!(!shedder.refuses(at(90), at(100)));
        }
        // One patient sender does not hide a flood.
        for ms in 101..200 {
            let refused = [90, 90, ms].map(|since| shedder.refuses(at(since), at(ms)));
            assert_eq!(refused, [false; 3]);
        }
        let refused = [90, 90, 200].map(|since| shedder.refuses(at(since), at(200)));
        assert_eq!(refused, [true, true, false]);
    }

    #[test]
    fn a_moment_without_work_forgives_a_shard_that_refuses_nothing() {
        let mut shedder = shedder();
        assert!(!shedder.refuses(at(0), at(80)));
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
