//! Dumps: written by corelane, read back by HdrHistogram's own reader, by corelane and by `hist`.
#![allow(clippy::print_stdout)] // figures, for who runs it with --nocapture

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corelane::error::DumpError;
use corelane::metrics::{
    self, Blank, DumpWriter, LATENCY_NS_MAX, LATENCY_NS_MIN, Metric, OTHER_HANDLERS, Recorder,
    Snapshot,
};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

// The command's own source: what it prints is held here to what was recorded.
#[path = "../src/bin/corelane/hist.rs"]
#[allow(unreachable_pub, dead_code)]
mod hist;

const HANDLERS: [&str; 3] = ["echo", "a b,c/d\n%", "größe"];
const KEY: u64 = 0x1234;
const STARTED: Duration = Duration::from_millis(1_800_000_000_250);

type ByTag = BTreeMap<(String, String), Histogram<u64>>;

/// What was recorded, told by a histogram per tag that no metrics code has touched.
#[derive(Default)]
struct Truth(ByTag);

impl Truth {
    fn record(&mut self, metric: Metric, handler: &str, ns: u64) {
        let name = (metric.as_str().to_owned(), handler.to_owned());
        let new = || Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, 3).unwrap();
        self.0.entry(name).or_insert_with(new).record(ns).unwrap();
    }
}

/// Two shards, `intervals` dumps of them into one file.
fn dumped(directory: &Path, seed: u64, intervals: u64) -> (PathBuf, Truth) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let names: Arc<[String]> = HANDLERS.map(str::to_owned).into();
    let mut shards = [Recorder::new(names.clone()), Recorder::new(names.clone())];
    let mut truth = Truth::default();
    let started = UNIX_EPOCH + STARTED;
    let mut writer = DumpWriter::create(directory, started).unwrap();
    let mut snapshot = Snapshot::new(names, shards.len());
    snapshot.name_called(KEY, "echo");
    for interval in 0..intervals {
        snapshot.clear_histograms();
        for (shard, recorder) in shards.iter_mut().enumerate() {
            for _ in 0..rng.random_range(1..500) {
                let ns = rng.random_range(1..1_000) * 10_u64.pow(rng.random_range(0..8));
                let handler = rng.random_range(0..HANDLERS.len());
                recorder.record_in_handler(handler, ns);
                truth.record(Metric::InHandler, HANDLERS[handler], ns);
                if handler != 1 {
                    recorder.record_read_to_reply(handler, ns + 7);
                    truth.record(Metric::ReadToReply, HANDLERS[handler], ns + 7);
                }
                recorder.record_round_trip(KEY + handler as u64, 3 * ns);
                let called = ["echo", "0000000000001235", "0000000000001236"][handler];
                truth.record(Metric::RoundTrip, called, 3 * ns);
            }
            snapshot.add(shard, &recorder.take(Blank::new(HANDLERS.len())));
        }
        let from = started + Duration::from_secs(interval);
        writer
            .write(&snapshot, from, from + Duration::from_secs(1))
            .unwrap();
    }
    (writer.path().to_owned(), truth)
}

fn read_by_tag(paths: &[PathBuf]) -> Result<ByTag, DumpError> {
    let rows = metrics::read(paths)?.into_iter();
    Ok(rows
        .map(|row| ((row.metric, row.handler), row.histogram))
        .collect())
}

#[test]
fn the_crates_own_reader_finds_what_was_recorded_tag_by_tag() {
    let directory = tempfile::tempdir().unwrap();
    let seed = 0x5eed_0010;
    let (path, truth) = dumped(directory.path(), seed, 5);
    let log = fs::read(&path).unwrap();

    let mut merged = BTreeMap::<String, Histogram<u64>>::new();
    let (mut starts, mut headers) = (Vec::new(), Vec::new());
    for entry in IntervalLogIterator::new(&log) {
        match entry.unwrap() {
            LogEntry::Interval(interval) => {
                let bytes = STANDARD.decode(interval.encoded_histogram()).unwrap();
                let histogram = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
                let max_ms = histogram.max() as f64 / 1e6;
                assert!(
                    (interval.max() - max_ms).abs() <= 0.0005,
                    "the max column is milliseconds"
                );
                assert_eq!(interval.duration(), Duration::from_secs(1));
                starts.push(interval.start_timestamp().as_secs());
                let tag = interval.tag().unwrap().as_str().to_owned();
                match merged.get_mut(&tag) {
                    Some(merged) => merged.add(&histogram).unwrap(),
                    None => drop(merged.insert(tag, histogram)),
                }
            }
            LogEntry::StartTime(time) | LogEntry::BaseTime(time) => headers.push(time),
        }
    }
    assert_eq!(headers, [STARTED, STARTED]);
    assert!(starts.is_sorted() && starts.first() == Some(&0) && starts.last() == Some(&4));

    let tags = [
        ("in_handler/a%20b%2Cc/d%0A%25", "in_handler", HANDLERS[1]),
        ("in_handler/echo", "in_handler", HANDLERS[0]),
        ("in_handler/gr%C3%B6%C3%9Fe", "in_handler", HANDLERS[2]),
        ("read_to_reply/echo", "read_to_reply", HANDLERS[0]),
        (
            "read_to_reply/gr%C3%B6%C3%9Fe",
            "read_to_reply",
            HANDLERS[2],
        ),
        (
            "round_trip/0000000000001235",
            "round_trip",
            "0000000000001235",
        ),
        (
            "round_trip/0000000000001236",
            "round_trip",
            "0000000000001236",
        ),
        ("round_trip/echo", "round_trip", "echo"),
    ];
    assert_eq!(
        merged.keys().collect::<Vec<_>>(),
        tags.map(|(tag, ..)| tag).each_ref()
    );
    for (tag, metric, handler) in tags {
        let expected = &truth.0[&(metric.to_owned(), handler.to_owned())];
        assert_eq!(&merged[tag], expected, "{tag}, seed {seed:#x}");
    }
}

#[test]
fn reading_back_merges_intervals_and_files() {
    let directory = tempfile::tempdir().unwrap();
    let (first, mut truth) = dumped(directory.path(), 0x5eed_0011, 4);
    let (second, other) = dumped(directory.path(), 0x5eed_0012, 3);
    assert_ne!(first, second, "two logs that start at once are two files");
    for (name, histogram) in other.0 {
        truth.0.get_mut(&name).unwrap().add(histogram).unwrap();
    }
    assert_eq!(read_by_tag(&[first, second]).unwrap(), truth.0);
}

#[test]
fn recycled_storage_loses_nothing_and_repeats_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let names: Arc<[String]> = Arc::from(["echo".to_owned()]);
    let mut recorder = Recorder::new(names.clone());
    let mut writer = DumpWriter::create(directory.path(), UNIX_EPOCH + STARTED).unwrap();
    let mut snapshot = Snapshot::new(names, 1);
    let mut truth = Truth::default();
    let mut blank = Blank::new(1);
    for ns in (1..=200).map(|ns| ns * ns) {
        recorder.record_in_handler(0, ns);
        truth.record(Metric::InHandler, "echo", ns);
        for key in 0..200 {
            recorder.record_round_trip(key, ns);
            if key >= 128 {
                truth.record(Metric::RoundTrip, OTHER_HANDLERS, ns);
            } else {
                truth.record(Metric::RoundTrip, &format!("{key:016x}"), ns);
            }
        }
        if ns % 100 == 0 {
            let interval = recorder.take(blank);
            snapshot.clear_histograms();
            snapshot.add(0, &interval);
            blank = interval.clear();
            writer
                .write(&snapshot, UNIX_EPOCH + STARTED, UNIX_EPOCH + STARTED)
                .unwrap();
        }
    }
    assert_eq!(read_by_tag(&[writer.path().to_owned()]).unwrap(), truth.0);
}

#[test]
fn hist_prints_each_tag_and_its_json_agrees_with_the_histograms() {
    let directory = tempfile::tempdir().unwrap();
    let (path, truth) = dumped(directory.path(), 0x5eed_0013, 2);
    let mut out = Vec::new();
    let mut args = hist::HistArgs {
        files: vec![path],
        json: true,
    };
    hist::print(&args, &mut out).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    let tags = json["tags"].as_array().unwrap();
    assert_eq!(tags.len(), truth.0.len());
    for (tag, ((metric, handler), histogram)) in tags.iter().zip(&truth.0) {
        assert_eq!(
            (tag["metric"].as_str(), tag["handler"].as_str()),
            (Some(&**metric), Some(&**handler))
        );
        assert_eq!(tag["samples"], histogram.len());
        assert_eq!(tag["latency_us"]["samples"], histogram.len());
        assert_eq!(tag["latency_us"]["max"], histogram.max() as f64 / 1e3);
        for (key, quantile) in [
            ("p50", 0.5),
            ("p90", 0.9),
            ("p99.9", 0.999),
            ("p99.99", 0.9999),
        ] {
            let us = histogram.value_at_quantile(quantile) as f64 / 1e3;
            assert_eq!(tag["latency_us"][key], us, "{metric}/{handler} {key}");
        }
    }

    args.json = false;
    out.clear();
    hist::print(&args, &mut out).unwrap();
    let table = String::from_utf8(out).unwrap();
    assert!(
        table.contains(r"a b,c/d\n%"),
        "a line end in a name does not tear the table"
    );
    for ((_, _), histogram) in &truth.0 {
        let max = format!("{:.1}", histogram.max() as f64 / 1e3);
        assert!(table.contains(&max), "{max} is missing");
    }
}

#[test]
fn an_interval_without_records_writes_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = DumpWriter::create(directory.path(), UNIX_EPOCH + STARTED).unwrap();
    let header = fs::read_to_string(writer.path()).unwrap();
    let snapshot = Snapshot::new(Arc::from(["echo".to_owned()]), 1);
    // The wall clock went back, twice.
    writer
        .write(&snapshot, UNIX_EPOCH, UNIX_EPOCH - Duration::from_secs(1))
        .unwrap();
    assert_eq!(fs::read_to_string(writer.path()).unwrap(), header);
    assert!(
        header
            .lines()
            .any(|line| line.starts_with('#') && line.contains("nanoseconds"))
    );
    assert!(
        header.contains("#[BaseTime: 1800000000.250 (seconds since epoch)]\n"),
        "{header}"
    );
    assert!(read_by_tag(&[writer.path().to_owned()]).unwrap().is_empty());
}

/// Back beyond the log's start, forward by years, and back within an interval.
#[test]
fn a_wall_clock_that_jumps_spoils_no_dump() {
    let directory = tempfile::tempdir().unwrap();
    let started = UNIX_EPOCH + STARTED;
    let mut writer = DumpWriter::create(directory.path(), started).unwrap();
    let names: Arc<[String]> = HANDLERS.map(str::to_owned).into();
    let mut recorder = Recorder::new(names.clone());
    let mut truth = Truth::default();
    let year = Duration::from_secs(366 * 86_400);
    let jumps = [
        (started, started + Duration::from_secs(1)),
        (started + Duration::from_secs(1), UNIX_EPOCH),
        (UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1)),
        (UNIX_EPOCH + Duration::from_secs(1), started + 10 * year),
        (started + 10 * year, started + 10 * year),
    ];
    let mut snapshot = Snapshot::new(names, 1);
    for (index, (from, until)) in jumps.into_iter().enumerate() {
        let ns = 1_000 * (index as u64 + 1);
        recorder.record_in_handler(0, ns);
        truth.record(Metric::InHandler, HANDLERS[0], ns);
        snapshot.clear_histograms();
        snapshot.add(0, &recorder.take(Blank::new(HANDLERS.len())));
        writer.write(&snapshot, from, until).unwrap();
    }
    let read = read_by_tag(&[writer.path().to_owned()]).unwrap();
    assert_eq!(read, truth.0);
}

#[test]
fn directory_and_file_are_private_and_failures_name_the_path() {
    let directory = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let fresh = directory.path().join("dumps");
    let writer = DumpWriter::create(&fresh, UNIX_EPOCH + STARTED).unwrap();
    assert_eq!((mode(&fresh), mode(writer.path())), (0o700, 0o600));
    let name = format!(
        "corelane-{}-{}.hlog",
        std::process::id(),
        STARTED.as_millis()
    );
    assert_eq!(writer.path(), fresh.join(name));

    let create = |path: &Path| DumpWriter::create(path, UNIX_EPOCH).err().unwrap();
    let missing = directory.path().join("not/there");
    assert!(matches!(create(&missing), DumpError::Missing { path } if path == missing));
    let under_file = writer.path().join("under");
    assert!(matches!(create(&under_file), DumpError::NotADirectory { path } if path == under_file));
    assert!(matches!(
        create(writer.path()),
        DumpError::NotADirectory { .. }
    ));
    let full = DumpError::Full {
        path: fresh.clone(),
    }
    .to_string();
    assert!(
        full.contains(fresh.to_str().unwrap()) && full.contains("no space"),
        "{full}"
    );
}

#[test]
fn a_damaged_line_is_named_by_file_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = dumped(directory.path(), 0x5eed_0014, 1);
    let intact = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = intact.lines().collect();
    let header = lines
        .iter()
        .take_while(|line| !line.starts_with("Tag="))
        .count();
    let torn = &intact[..intact.len() - 20];
    let long = format!("{intact}#{}\n", "x".repeat(1 << 20));
    let cases = [
        (torn.to_owned(), lines.len(), "cut short"),
        (format!("{intact}rubbish\n"), lines.len() + 1, "neither"),
        (
            intact.replacen("HIST", "HISS", 1),
            header + 1,
            "no V2 histogram",
        ),
        (intact.replacen("HIST", "HI T", 1), header + 1, "no base64"),
        (long, lines.len() + 1, "longer than 1 MiB"),
    ];
    for (content, expected_line, expected) in cases {
        fs::write(&path, content).unwrap();
        let error = read_by_tag(std::slice::from_ref(&path)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(path.to_str().unwrap()) && text.contains(expected),
            "{text}"
        );
        assert!(
            matches!(error, DumpError::Line { line, .. } if line == expected_line as u64),
            "{text}"
        );
    }
    let absent = directory.path().join("absent");
    assert!(matches!(
        read_by_tag(&[absent]),
        Err(DumpError::Open { .. })
    ));
}

#[test]
fn seeded_damage_never_panics() {
    let directory = tempfile::tempdir().unwrap();
    let seed = 0x5eed_0015;
    let mut rng = SmallRng::seed_from_u64(seed);
    let (path, _) = dumped(directory.path(), seed, 1);
    let intact = fs::read(&path).unwrap();
    let (mut refused, mut read) = (0, 0);
    for round in 0..1_500 {
        let mut damaged = intact.clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..damaged.len());
            match rng.random_range(0..4) {
                0 => damaged[at] = rng.random(),
                1 => damaged.truncate(at.max(1)),
                2 => damaged.insert(at, b"\n,#%=AZ/"[rng.random_range(0..8)]),
                _ => drop(damaged.remove(at)),
            }
            if damaged.is_empty() {
                damaged.push(b'#');
            }
        }
        fs::write(&path, damaged).unwrap();
        match read_by_tag(std::slice::from_ref(&path)) {
            Ok(_) => read += 1,
            Err(DumpError::Line { .. }) => refused += 1,
            Err(other) => panic!("{other}, round {round}, seed {seed:#x}"),
        }
    }
    println!("{refused} damaged files refused, {read} read (comments and times may change)");
    assert!(refused > 1_000, "{refused} of 1,500, seed {seed:#x}");
}
