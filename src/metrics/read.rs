//! Reads dumps back, and any HdrHistogram interval log with V2 histograms.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use super::{decode, tag};
use crate::error::DumpError;

/// Longest line. A histogram of ours is some KB; all its counts at their largest make 0.4 MB.
const LINE_BYTES_MAX: usize = 1 << 20;
/// For the merged histograms of one call: 2,300 tags of ours.
const MERGED_BYTES_MAX: usize = 512 << 20;

/// One tag of the logs that were read: what was measured, and all intervals' samples merged.
#[derive(Clone, Debug)]
pub struct TagRow {
    /// What was measured, as [`Metric::as_str`](super::Metric::as_str) names it. In a foreign log:
    /// the tag up to its first slash; empty for lines without a tag.
    pub metric: String,
    /// The handler, its name unescaped; empty in a foreign tag without a slash.
    pub handler: String,
    /// Nanoseconds, in a log of corelane's.
    pub histogram: Histogram<u64>,
}

/// Reads the files and merges them by tag, over intervals and files. The rows are sorted by metric,
/// then handler.
///
/// Blocks on the files, one line in memory at a time. Lines over 1 MiB, histograms over 4 MiB
/// decompressed, and more than 512 MiB of merged histograms are refused.
///
/// # Errors
///
/// [`DumpError::Open`] and [`DumpError::Read`] if a file cannot be read, and [`DumpError::Line`]
/// for a line that is damaged, cut short or too large: it names file and line. Nothing is skipped
/// silently.
pub fn read<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Vec<TagRow>, DumpError> {
    let mut merged = Merged::default();
    for path in paths {
        read_file(path.as_ref(), &mut merged)?;
    }
    let rows = merged.by_tag.into_iter();
    Ok(rows
        .map(|((metric, handler), histogram)| TagRow {
            metric,
            handler,
            histogram,
        })
        .collect())
}

fn read_file(path: &Path, merged: &mut Merged) -> Result<(), DumpError> {
    let file = File::open(path).map_err(|source| DumpError::Open {
        path: path.to_owned(),
        source,
    })?;
    let mut file = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let mut bounded = file.by_ref().take(LINE_BYTES_MAX as u64);
        let read = bounded.read_until(b'\n', &mut line);
        match read.map_err(|source| DumpError::Read {
            path: path.to_owned(),
            source,
        })? {
            0 => break,
            _ => merged.add_line(&line).map_err(|reason| DumpError::Line {
                path: path.to_owned(),
                line: number,
                reason,
            })?,
        }
    }
    Ok(())
}

#[derive(Default)]
struct Merged {
    by_tag: BTreeMap<(String, String), Histogram<u64>>,
    bytes: usize,
}

impl Merged {
    /// `line` ends in its line end, unless the file or the bound cut it.
    fn add_line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if !line.ends_with(b"\n") {
            let whole = line.len() < LINE_BYTES_MAX;
            return Err(if whole {
                "it is cut short"
            } else {
                "it is longer than 1 MiB"
            });
        }
        match IntervalLogIterator::new(line).next() {
            // A comment, the legend, or a header; which time an interval has does not matter here.
            None | Some(Ok(LogEntry::StartTime(_) | LogEntry::BaseTime(_))) => Ok(()),
            Some(Err(_)) => Err("it is neither a comment nor an interval"),
            Some(Ok(LogEntry::Interval(interval))) => {
                let name = interval
                    .tag()
                    .map(|it| tag::decode(it.as_str()))
                    .unwrap_or_default();
                self.add(name, decode::histogram(interval.encoded_histogram())?)
            }
        }
    }

    fn add(&mut self, name: (String, String), new: Histogram<u64>) -> Result<(), &'static str> {
        let bytes = |histogram: &Histogram<u64>| histogram.distinct_values() * size_of::<u64>();
        let mut merged = match self.by_tag.remove(&name) {
            Some(mut merged) => {
                self.bytes -= bytes(&merged);
                merged
                    .add(&new)
                    .map_err(|_| "its range does not fit those before it")?;
                merged
            }
            None => new,
        };
        // Logs of other tools may hold intervals of growing range under one tag.
        merged.auto(true);
        self.bytes += bytes(&merged);
        self.by_tag.insert(name, merged);
        if self.bytes > MERGED_BYTES_MAX {
            return Err("the tags up to here need more than 512 MiB: read fewer files at once");
        }
        Ok(())
    }
}
