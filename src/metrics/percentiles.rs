//! The row of percentiles that every table and every JSON of the command shows.

use hdrhistogram::Histogram;
use serde::Serialize;

/// The percentiles of a histogram of nanoseconds, in microseconds. Serialized with the keys `p50`,
/// `p90`, `p99`, `p99.9`, `p99.99`, `max`, `samples`, in this order. All 0 without samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    #[serde(rename = "p50")]
    pub p50_us: f64,
    /// Nine in ten were no longer than this.
    #[serde(rename = "p90")]
    pub p90_us: f64,
    /// 99 in 100.
    #[serde(rename = "p99")]
    pub p99_us: f64,
    /// 999 in 1,000.
    #[serde(rename = "p99.9")]
    pub p99_9_us: f64,
    /// 9,999 in 10,000.
    #[serde(rename = "p99.99")]
    pub p99_99_us: f64,
    /// The longest.
    #[serde(rename = "max")]
    pub max_us: f64,
    /// How many samples stand behind the row: with fewer than 10,000, p99.99 is the maximum.
    pub samples: u64,
}

impl Percentiles {
    /// The heads of a table's columns for [`cells`](Percentiles::cells).
    pub const HEADS: [&str; 6] = [
        "p50 µs",
        "p90 µs",
        "p99 µs",
        "p99.9 µs",
        "p99.99 µs",
        "max µs",
    ];

    /// The row as text, in microseconds with one decimal, without the samples.
    pub fn cells(&self) -> [String; 6] {
        [
            self.p50_us,
            self.p90_us,
            self.p99_us,
            self.p99_9_us,
            self.p99_99_us,
            self.max_us,
        ]
        .map(|us| format!("{us:.1}"))
    }
}

impl From<&Histogram<u64>> for Percentiles {
    /// `latency_ns` holds nanoseconds. Walks the histogram once per percentile; does not allocate.
    fn from(latency_ns: &Histogram<u64>) -> Self {
        // By quantile: hdrhistogram divides a percentile by 100, and 99.9 / 100 is rounded up,
        // which takes the sample after the one meant (the Python and Java tools take the one
        // meant).
        let us = |quantile| latency_ns.value_at_quantile(quantile) as f64 / 1e3;
        Percentiles {
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p99_9_us: us(0.999),
            p99_99_us: us(0.9999),
            max_us: latency_ns.max() as f64 / 1e3,
            samples: latency_ns.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::empty_histogram;
    use super::*;

    #[test]
    fn the_keys_stand_in_their_order_and_the_values_are_microseconds() {
        let mut histogram = empty_histogram();
        (1..=1_000).for_each(|us| histogram.record(us * 1_000).unwrap());
        let row = Percentiles::from(&*histogram);
        for (us, expected) in [
            (row.p50_us, 500.0),
            (row.p99_us, 990.0),
            (row.max_us, 1_000.0),
        ] {
            assert!(
                (expected..=expected * 1.001).contains(&us),
                "{us} for {expected}"
            );
        }
        let json = serde_json::to_string(&Percentiles {
            p50_us: 1.5,
            samples: 7,
            ..row
        })
        .unwrap();
        let keys: Vec<_> = json.split('"').skip(1).step_by(2).collect();
        assert_eq!(
            keys,
            ["p50", "p90", "p99", "p99.9", "p99.99", "max", "samples"]
        );
        assert!(json.starts_with(r#"{"p50":1.5,"#), "{json}");
        assert_eq!(row.cells()[5], format!("{:.1}", row.max_us));
    }

    #[test]
    fn a_percentile_is_the_sample_of_its_rank_and_not_the_next() {
        let mut histogram = empty_histogram();
        (1..=10_000_u64).for_each(|nth| histogram.record_n(nth * nth, 3).unwrap());
        let row = Percentiles::from(&*histogram);
        for (us, nth) in [
            (row.p99_us, 9_900_u64),
            (row.p99_9_us, 9_990),
            (row.p99_99_us, 9_999),
        ] {
            assert_eq!(
                us,
                histogram.highest_equivalent(nth * nth) as f64 / 1e3,
                "sample {nth}"
            );
        }
    }

    #[test]
    fn no_samples_are_zeros() {
        assert_eq!(
            Percentiles::from(&*empty_histogram()),
            Percentiles::default()
        );
    }
}
