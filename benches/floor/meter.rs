//! The measure that all contestants are held against: one clock, one warm-up, one histogram.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

/// How long one contestant runs in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Before anything counts: connections, buffers and congestion windows grow to their size.
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// What one contestant did in one round.
#[derive(Debug)]
pub(crate) struct Measured {
    /// In nanoseconds; empty where only a rate was asked for.
    pub(crate) latency: Histogram<u64>,
    pub(crate) count: u64,
    elapsed: Duration,
    /// User and system time of the whole process: both ends.
    cpu: Duration,
}

/// Measures the work of one client.
#[derive(Debug)]
pub(crate) struct Meter {
    warm_until: Instant,
    end: Instant,
    last: Instant,
    /// When the warm-up was really over, and the CPU time until then.
    start: Option<(Instant, Duration)>,
    latency: Histogram<u64>,
    count: u64,
}

impl Meter {
    pub(crate) fn start(span: Span) -> Self {
        let now = Instant::now();
        let warm_until = now + span.warm_up;
        Self {
            warm_until,
            end: warm_until + span.measured,
            last: now,
            start: None,
            latency: new_histogram(),
            count: 0,
        }
    }

    /// As of the last clock read, so that asking costs nothing.
    pub(crate) fn goes_on(&self) -> bool {
        self.last < self.end
    }

    /// When the measured time is over.
    pub(crate) fn end(&self) -> Instant {
        self.end
    }

    /// One answer, to a request of this time.
    pub(crate) fn record(&mut self, since: Instant) {
        let now = self.add(1);
        if since >= self.warm_until {
            self.latency
                .saturating_record((now - since).as_nanos() as u64);
        }
    }

    /// So many answers, at once. Reads the clock.
    pub(crate) fn add(&mut self, answers: u64) -> Instant {
        self.last = Instant::now();
        if self.start.is_some() {
            self.count += answers;
        } else if self.last >= self.warm_until {
            self.start = Some((self.last, process_cpu_time()));
        }
        self.last
    }

    pub(crate) fn finish(self) -> Result<Measured, String> {
        let (start, cpu_before) = self.start.ok_or("nothing came back after the warm-up")?;
        Ok(Measured {
            latency: self.latency,
            count: self.count,
            elapsed: self.last - start,
            cpu: process_cpu_time() - cpu_before,
        })
    }
}

impl Measured {
    /// A rate alone.
    pub(crate) fn rate(count: u64, elapsed: Duration) -> Self {
        Self {
            latency: new_histogram(),
            count,
            elapsed,
            cpu: Duration::ZERO,
        }
    }

    pub(crate) fn latency_us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }

    pub(crate) fn cpu_us_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.count.max(1) as f64
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// When each request of an open loop is due.
#[derive(Debug)]
pub(crate) struct Schedule {
    start: Instant,
    interval: Duration,
    /// The number of the next request.
    pub(crate) next: u64,
    len: u64,
}

impl Schedule {
    pub(crate) fn new(per_second: u64, span: Span) -> Self {
        let interval = Duration::from_nanos(1_000_000_000 / per_second);
        let whole = span.warm_up + span.measured;
        Self {
            start: Instant::now(),
            interval,
            next: 0,
            len: (whole.as_nanos() / interval.as_nanos()) as u64,
        }
    }

    pub(crate) fn due_at(&self, number: u64) -> Instant {
        self.start + Duration::from_nanos(self.interval.as_nanos() as u64 * number)
    }

    /// How many are due and not taken.
    pub(crate) fn due(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start);
        let due = (passed.as_nanos() as u64) / (self.interval.as_nanos() as u64) + 1;
        due.min(self.len) - self.next
    }

    pub(crate) fn is_over(&self) -> bool {
        self.next == self.len
    }

    /// To be asked at the end of the schedule: an open loop that lags far behind has no latency.
    /// How far, leaves room for a stall of a busy machine just before the end.
    pub(crate) fn check_kept_up(&self, answered: u64) -> Result<(), String> {
        if answered * 10 >= self.len * 8 {
            return Ok(());
        }
        let seconds = self.interval.as_secs_f64() * self.len as f64;
        Err(format!(
            "cannot keep up: {:.0}/s reached",
            answered as f64 / seconds
        ))
    }
}

pub(crate) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are in order")
}

pub(crate) fn process_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
