//! What is measured, and how near to the floor it must come.

use std::time::Duration;

use crate::meter::Measured;

/// Payload of a small message, in bytes.
pub(crate) const SMALL: usize = 64;
/// What a message adds to its payload on the wire: two ZMTP frame heads and the message's header.
pub(crate) const OVERHEAD: usize = 2 + 40 + 2;
/// A small message on the wire.
pub(crate) const FRAME: usize = SMALL + OVERHEAD;
/// Of the open loop.
const OPEN_LOOP_PER_SECOND: u64 = 100_000;

/// One table of the report.
#[derive(Debug)]
pub(crate) struct Axis {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
    pub(crate) waits: Waits,
    pub(crate) metrics: &'static [Metric],
    /// A round takes so many times the usual seconds, where messages are rare.
    pub(crate) stretch: u32,
    /// Whether `--quick` measures it.
    pub(crate) is_quick: bool,
}

/// What a client does, whichever the transport and the contestant.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// One message there and back at a time, the next one after a pause.
    Ping { bytes: usize, pause: Duration },
    /// So many small requests under way at once.
    Window { outstanding: usize },
    /// Small messages in one direction.
    Stream,
    /// Small requests by a schedule, whether or not the answers have come.
    OpenLoop { per_second: u64 },
}

/// How both ends wait for what has not yet come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    Spin,
    Park,
}

#[derive(Debug)]
pub(crate) struct Metric {
    pub(crate) figure: Figure,
    /// The ratio to the floor that corelane is to keep: at most, of a time; at least, of a rate.
    pub(crate) bar: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    P50Us,
    P999Us,
    CpuUsPerTrip,
    PerSecond,
}

const RTT: &[Metric] = &[at(Figure::P50Us, 1.10), at(Figure::P999Us, 1.25)];
const RTT_PARKING: &[Metric] = &[
    at(Figure::P50Us, 1.10),
    at(Figure::P999Us, 1.25),
    at(Figure::CpuUsPerTrip, 1.0),
];
const OPEN_LOOP: &[Metric] = &[at(Figure::P50Us, 2.0), at(Figure::P999Us, 2.0)];
const RARE: &[Metric] = &[at(Figure::P50Us, 1.15), at(Figure::P999Us, 1.5)];

pub(crate) const AXES: [Axis; 12] = [
    axis("rtt", ping(SMALL, 0), RTT),
    Axis {
        waits: Waits::Park,
        ..axis("rtt-parking", ping(SMALL, 0), RTT_PARKING)
    },
    axis(
        "rate64",
        Work::Window { outstanding: 64 },
        &[at(Figure::PerSecond, 0.6)],
    ),
    axis("one-way", Work::Stream, &[at(Figure::PerSecond, 0.5)]),
    axis("echo-64k", ping(64 << 10, 0), &[at(Figure::PerSecond, 0.9)]),
    axis("echo-1m", ping(1 << 20, 0), &[at(Figure::PerSecond, 0.9)]),
    axis(
        "open-loop",
        Work::OpenLoop {
            per_second: OPEN_LOOP_PER_SECOND,
        },
        OPEN_LOOP,
    ),
    axis("rare-1ms", ping(SMALL, 1), RARE),
    rare("rare-10ms", 10, Waits::Spin, 2),
    rare("rare-100ms", 100, Waits::Spin, 4),
    rare("rare-1ms-parking", 1, Waits::Park, 1),
    rare("rare-10ms-parking", 10, Waits::Park, 2),
];

const fn axis(name: &'static str, work: Work, metrics: &'static [Metric]) -> Axis {
    Axis {
        name,
        work,
        waits: Waits::Spin,
        metrics,
        stretch: 1,
        is_quick: true,
    }
}

const fn rare(name: &'static str, pause_ms: u64, waits: Waits, stretch: u32) -> Axis {
    Axis {
        waits,
        stretch,
        is_quick: false,
        ..axis(name, ping(SMALL, pause_ms), RARE)
    }
}

const fn ping(bytes: usize, pause_ms: u64) -> Work {
    Work::Ping {
        bytes,
        pause: Duration::from_millis(pause_ms),
    }
}

const fn at(figure: Figure, bar: f64) -> Metric {
    Metric { figure, bar }
}

impl Axis {
    /// Bytes of the payloads.
    pub(crate) fn payload_bytes(&self) -> usize {
        match self.work {
            Work::Ping { bytes, .. } => bytes,
            _ => SMALL,
        }
    }
}

impl Metric {
    pub(crate) fn is_met_by(&self, ratio: f64) -> bool {
        match self.figure.is_better_low() {
            true => ratio <= self.bar,
            false => ratio >= self.bar,
        }
    }

    pub(crate) fn bar_text(&self) -> String {
        let sign = if self.figure.is_better_low() {
            '≤'
        } else {
            '≥'
        };
        format!("{sign} {:.2}×", self.bar)
    }
}

impl Figure {
    pub(crate) fn of(self, measured: &Measured) -> f64 {
        match self {
            Self::P50Us => measured.latency_us(0.5),
            Self::P999Us => measured.latency_us(0.999),
            Self::CpuUsPerTrip => measured.cpu_us_each(),
            Self::PerSecond => measured.per_second(),
        }
    }

    pub(crate) fn is_better_low(self) -> bool {
        self != Self::PerSecond
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::P50Us => "p50 µs",
            Self::P999Us => "p99.9 µs",
            Self::CpuUsPerTrip => "cpu µs each",
            Self::PerSecond => "per second",
        }
    }

    /// In the JSON.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::P50Us => "p50_us",
            Self::P999Us => "p99.9_us",
            Self::CpuUsPerTrip => "cpu_us_each",
            Self::PerSecond => "per_second",
        }
    }

    pub(crate) fn text(self, value: f64) -> String {
        match self {
            Self::PerSecond if value >= 1e6 => format!("{:.2} M", value / 1e6),
            Self::PerSecond if value >= 1e4 => format!("{:.1} k", value / 1e3),
            Self::PerSecond => format!("{value:.0}"),
            _ => format!("{value:.2}"),
        }
    }
}
