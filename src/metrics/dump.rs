//! Writes snapshots as an HdrHistogram interval log.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::{Snapshot, tag};
use crate::error::DumpError;

/// The column of the maximum is for people, and in milliseconds, as HdrHistogram's own tools have
/// it. Histograms stay nanoseconds.
const NS_PER_MAX_COLUMN: f64 = 1e6;

/// Files of one process that may start in one millisecond.
const SAME_START_MAX: u32 = 100;

/// One interval log: `corelane-<pid>-<start>.hlog`, where `start` is in milliseconds since the
/// epoch.
///
/// V2 histograms, compressed, one line per tag and interval; the tags are
/// [`Series`](super::Series)' metric and handler, as `metric/handler`. In a handler's name the
/// bytes that are no visible ASCII characters, the comma and the percent sign stand as `%XX`.
/// Interval starts are relative to the header's base time.
///
/// Blocks on the file system and compresses: for a thread that is not a shard.
pub struct DumpWriter {
    path: PathBuf,
    file: File,
    started: SystemTime,
    serializer: V2DeflateSerializer,
    /// Lines of one interval: they go out by one write, so that a full disk leaves at most one
    /// torn.
    lines: Vec<u8>,
}

impl DumpWriter {
    /// Makes a new file (mode 0600) in `directory` and writes its header. A directory that is not
    /// there is made (mode 0700), its parents are not. `started` is the log's base time.
    ///
    /// # Errors
    ///
    /// Each [`DumpError`] names the path and what to do; a file that could not be given its header
    /// is left behind empty.
    pub fn create(directory: &Path, started: SystemTime) -> Result<Self, DumpError> {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(DumpError::writing(directory, error));
            }
            Ok(()) | Err(_) => {}
        }
        let (path, file) = create_file(directory, started)?;
        let mut writer = DumpWriter {
            path,
            file,
            started,
            serializer: V2DeflateSerializer::new(),
            lines: Vec::new(),
        };
        writer.write_header()?;
        Ok(writer)
    }

    /// The file that is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a line for each histogram of the snapshot in which something was recorded; none if
    /// there is none. When it returns, the lines are with the kernel (not synced to the disk).
    ///
    /// The interval's wall-clock times are arguments. A clock that jumped back gives a start or a
    /// length of 0, never an error.
    ///
    /// # Errors
    ///
    /// [`DumpError`], with the path: the interval's lines are then missing or cut, and the next
    /// `write` goes on behind them.
    pub fn write(
        &mut self,
        snapshot: &Snapshot,
        from: SystemTime,
        until: SystemTime,
    ) -> Result<(), DumpError> {
        let start = from.duration_since(self.started).unwrap_or_default();
        let length = until.duration_since(from).unwrap_or_default();
        self.lines.clear();
        self.encode(snapshot, start, length)
            .map_err(|error| DumpError::Encode {
                path: self.path.clone(),
                reason: error.to_string(),
            })?;
        self.flush_lines()
    }

    fn encode(
        &mut self,
        snapshot: &Snapshot,
        start: Duration,
        length: Duration,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let mut log = IntervalLogWriterBuilder::new()
            .with_max_value_divisor(NS_PER_MAX_COLUMN)
            .begin_log_with(&mut self.lines, &mut self.serializer)?;
        for series in snapshot.series() {
            let tag = tag::encode(series.metric, &series.handler);
            log.write_histogram(series.histogram, start, length, Tag::new(&tag))?;
        }
        // The builder says its divisor each time that a log is begun; ours stands in the header.
        let said = self
            .lines
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        self.lines.drain(..said);
        Ok(())
    }

    fn write_header(&mut self) -> Result<(), DumpError> {
        let header = IntervalLogWriterBuilder::new()
            .add_comment("[Histogram log format version 1.3]")
            .add_comment("corelane: histograms in nanoseconds, Interval_Max in milliseconds")
            .with_start_time(self.started)
            .with_base_time(self.started)
            .with_max_value_divisor(NS_PER_MAX_COLUMN)
            .begin_log_with(&mut self.lines, &mut self.serializer);
        header.map_err(|error| DumpError::writing(&self.path, error))?;
        let legend = "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\
                      \"Interval_Compressed_Histogram\"\n";
        self.lines.extend_from_slice(legend.as_bytes());
        self.flush_lines()
    }

    fn flush_lines(&mut self) -> Result<(), DumpError> {
        self.file
            .write_all(&self.lines)
            .map_err(|error| DumpError::writing(&self.path, error))
    }
}

fn create_file(directory: &Path, started: SystemTime) -> Result<(PathBuf, File), DumpError> {
    let start_ms = started
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let stem = format!("corelane-{}-{start_ms}", process::id());
    let mut nth = 1;
    loop {
        let name = if nth == 1 {
            format!("{stem}.hlog")
        } else {
            format!("{stem}-{nth}.hlog")
        };
        let path = directory.join(name);
        // Never through a link, never into a file that is there.
        match OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
        {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && nth < SAME_START_MAX => {
                nth += 1;
            }
            Err(error) => return Err(DumpError::writing(directory, error)),
        }
    }
}
