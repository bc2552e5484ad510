//! What a shard did and how long it took: recorded without sharing, read without stopping.
//!
//! ```text
//! shard ─ Recorder ─take(blank)─► Interval ─add─► Snapshot ─write─► DumpWriter ─► *.hlog ─► read
//!            ▲                       │ clear
//!            └──────── Blank ◄───────┘
//! ```
//!
//! A [`Recorder`] is plain memory that one shard owns: no atomic, no lock, and no allocation after
//! the first record of each kind. At a turn's boundary the shard hands its [`Interval`] out against
//! empty storage, and everything that costs (clearing, merging, compressing, writing) happens
//! elsewhere.
//!
//! Two rules hold throughout:
//!
//! - **Counters are totals** since the recorder was made; **histograms cover an interval**, from
//!   one `take` to the next.
//! - Histograms are nanoseconds, from [`LATENCY_NS_MIN`] to [`LATENCY_NS_MAX`], to three
//!   significant digits (a value read back is at most 0.1% above the one recorded). What is outside
//!   is recorded at the nearer end. They are merged; percentiles are never averaged.

mod counters;
mod decode;
mod dump;
mod percentiles;
#[cfg(feature = "prometheus")]
mod prometheus;
mod read;
mod recorder;
mod report;
mod snapshot;
mod tag;

use hdrhistogram::Histogram;

pub use counters::{Counters, HandlerCounters, REASON_NAMES, REASONS};
pub use dump::DumpWriter;
pub use percentiles::Percentiles;
pub use read::{TagRow, read};
pub use recorder::{Blank, CALLED_KEYS_MAX, Interval, Recorder};
pub use report::{CalledReport, HandlerReport, Latency, Report, ShardHandlerReport, ShardReport};
pub use snapshot::{HandlerView, OTHER_HANDLERS, Series, Snapshot};
pub use tag::Metric;

/// The shortest latency that is told apart, in nanoseconds; a shorter one is recorded as this.
pub const LATENCY_NS_MIN: u64 = 1;

/// The longest latency that is told apart, in nanoseconds: 100 s. A longer one is recorded as this.
pub const LATENCY_NS_MAX: u64 = 100_000_000_000;

/// 0.1% is finer than what separates two runs on one machine, and costs 229 KB per histogram.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Boxed: a slot is a pointer, so that swapping an interval moves pointers and not histograms.
type Slot = Option<Box<Histogram<u64>>>;

/// Allocates 229 KB.
fn empty_histogram() -> Box<Histogram<u64>> {
    let histogram = Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, SIGNIFICANT_DIGITS);
    Box::new(histogram.expect("the range and the digits are constants that hdrhistogram accepts"))
}

/// Both must come from [`empty_histogram`]. Allocates only if `into` is empty.
fn merge(into: &mut Slot, from: &Histogram<u64>) {
    if !from.is_empty() {
        into.get_or_insert_with(empty_histogram)
            .add(from)
            .expect("both have one and the same range");
    }
}
