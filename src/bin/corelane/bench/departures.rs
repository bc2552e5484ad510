//! When messages leave: the share of one shard in a load. No I/O and no clock: time is an argument.

use std::time::Duration;

use quanta::Instant;

/// What makes a message leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// An answer: so many messages are under way at once.
    Closed {
        /// At least 1.
        outstanding: u64,
    },
    /// A schedule.
    Open {
        /// Messages due per second, over all shards.
        per_s: u64,
    },
}

/// When a load has been long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// After so many messages.
    Count(u64),
    /// After so much time.
    For(Duration),
}

impl Pace {
    /// One shard's share.
    pub(super) fn share(self, shard: usize, shards: usize) -> SharedPace {
        let (shard, shards) = (shard as u64, shards as u64);
        match self {
            Pace::Closed { outstanding } => SharedPace::Closed {
                outstanding: share_of(outstanding, shard, shards),
            },
            Pace::Open { per_s } => SharedPace::Open {
                per_s,
                shard,
                shards,
            },
        }
    }
}

impl Extent {
    /// One shard's share.
    pub(super) fn share(self, shard: usize, shards: usize) -> Self {
        match self {
            Extent::Count(count) => Extent::Count(share_of(count, shard as u64, shards as u64)),
            Extent::For(time) => Extent::For(time),
        }
    }
}

/// The first shards have one more if it does not divide.
fn share_of(all: u64, shard: u64, shards: u64) -> u64 {
    all / shards + u64::from(shard < all % shards)
}

/// A shard's share of a [`Pace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SharedPace {
    Closed {
        outstanding: u64,
    },
    /// The shards take turns in one schedule.
    Open {
        per_s: u64,
        shard: u64,
        shards: u64,
    },
}

/// One shard's departures, from when they begin.
#[derive(Clone, Debug)]
pub(super) struct Departures {
    pace: SharedPace,
    extent: Extent,
    began: Instant,
    departed: u64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A message is due, since then.
    Now(Instant),
    /// The next one will be due then.
    At(Instant),
    /// The next one leaves after one that is under way has landed.
    AfterLanding,
    /// That was all.
    Never,
}

impl Departures {
    pub(super) fn new(pace: SharedPace, extent: Extent, began: Instant) -> Self {
        Self {
            pace,
            extent,
            began,
            departed: 0,
        }
    }

    /// What to do at this time, with so many messages under way.
    pub(super) fn next(&self, now: Instant, under_way: usize) -> Next {
        if matches!(self.extent, Extent::Count(count) if self.departed >= count) {
            return Next::Never;
        }
        let due = match self.pace {
            SharedPace::Closed { .. } => now,
            SharedPace::Open { .. } => self.began + self.due_after(),
        };
        // By when it is due and not by when it leaves: a late one still belongs to the load.
        if matches!(self.extent, Extent::For(time) if due >= self.began + time) {
            return Next::Never;
        }
        match self.pace {
            SharedPace::Closed { outstanding } if under_way as u64 >= outstanding => {
                Next::AfterLanding
            }
            _ if due <= now => Next::Now(due),
            _ => Next::At(due),
        }
    }

    /// A message has left, or was refused: its place in the schedule is taken.
    pub(super) fn depart(&mut self) {
        self.departed += 1;
    }

    pub(super) fn departed(&self) -> u64 {
        self.departed
    }

    pub(super) fn is_closed_loop(&self) -> bool {
        matches!(self.pace, SharedPace::Closed { .. })
    }

    /// From the beginning to the next one of the schedule. Computed from its number each time, so
    /// that no rounding adds up.
    fn due_after(&self) -> Duration {
        let SharedPace::Open {
            per_s,
            shard,
            shards,
        } = self.pace
        else {
            return Duration::ZERO;
        };
        let number = u128::from(self.departed) * u128::from(shards) + u128::from(shard);
        let ns = number * 1_000_000_000 / u128::from(per_s);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> (quanta::Clock, std::sync::Arc<quanta::Mock>) {
        quanta::Clock::mock()
    }

    /// Runs departures in steps of a microsecond and tells when each was due.
    fn dues_us(pace: SharedPace, extent: Extent, us_max: u64) -> Vec<u64> {
        let (clock, mock) = clock();
        let began = clock.now();
        let mut departures = Departures::new(pace, extent, began);
        let mut dues = Vec::new();
        for _ in 0..us_max {
            while let Next::Now(due) = departures.next(clock.now(), 0) {
                dues.push(due.duration_since(began).as_micros() as u64);
                departures.depart();
            }
            mock.increment(1_000_u64);
        }
        dues
    }

    #[test]
    fn shards_take_turns_in_one_schedule() {
        let pace = Pace::Open { per_s: 100_000 };
        let extent = Extent::For(Duration::from_micros(60));
        let of_shard = |shard| dues_us(pace.share(shard, 2), extent.share(shard, 2), 200);
        assert_eq!(of_shard(0), [0, 20, 40]);
        assert_eq!(of_shard(1), [10, 30, 50]);
    }

    #[test]
    fn a_rate_that_does_not_divide_does_not_drift() {
        let (clock, mock) = clock();
        let mut departures = Departures::new(
            Pace::Open { per_s: 3 }.share(0, 1),
            Extent::Count(u64::MAX),
            clock.now(),
        );
        (0..3_000_000).for_each(|_| departures.depart());
        mock.increment(Duration::from_secs(1_000_000));
        assert_eq!(departures.next(clock.now(), 0), Next::Now(clock.now()));
    }

    #[test]
    fn a_late_message_is_due_when_it_was_due() {
        let (clock, mock) = clock();
        let began = clock.now();
        let pace = Pace::Open { per_s: 1_000 }.share(0, 1);
        let extent = Extent::For(Duration::from_millis(3));
        let mut departures = Departures::new(pace, extent, began);
        departures.depart();
        assert_eq!(
            departures.next(clock.now(), 0),
            Next::At(began + Duration::from_millis(1))
        );
        mock.increment(Duration::from_secs(1));
        for ms in [1, 2] {
            let due = began + Duration::from_millis(ms);
            assert_eq!(departures.next(clock.now(), 9_999), Next::Now(due));
            departures.depart();
        }
        assert_eq!(departures.next(clock.now(), 9_999), Next::Never);
    }

    #[test]
    fn a_closed_loop_waits_for_landings_and_ends() {
        let (clock, mock) = clock();
        let pace = Pace::Closed { outstanding: 3 }.share(1, 2);
        assert_eq!(pace, SharedPace::Closed { outstanding: 1 });
        let mut departures = Departures::new(pace, Extent::Count(1), clock.now());
        assert_eq!(departures.next(clock.now(), 0), Next::Now(clock.now()));
        assert_eq!(departures.next(clock.now(), 1), Next::AfterLanding);
        departures.depart();
        assert_eq!(departures.next(clock.now(), 0), Next::Never);
        let extent = Extent::For(Duration::from_secs(1));
        let departures = Departures::new(pace, extent, clock.now());
        mock.increment(Duration::from_secs(1));
        assert_eq!(departures.next(clock.now(), 0), Next::Never);
    }

    #[test]
    fn shares_add_up() {
        for (all, shards) in [(1, 3), (10, 3), (12, 4), (0, 2)] {
            let sum: u64 = (0..shards).map(|shard| share_of(all, shard, shards)).sum();
            assert_eq!(sum, all);
        }
    }
}
