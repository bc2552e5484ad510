//! `corelane bench`, and `corelane hist` on what it and `serve` dumped.

use std::{path::Path, thread, time::Duration};

use serde_json::Value;

use crate::process::{Served, corelane, error_line, json};

const KEYS: [&str; 10] = [
    "mode",
    "size",
    "sent",
    "answered",
    "nacked",
    "indeterminate",
    "seconds",
    "per_second",
    "latency_us",
    "cpu_us_per_message",
];
const PERCENTILES: [&str; 6] = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];

/// Runs a bench with `--json`; returns its report and what it said on stderr.
fn bench(endpoint: &str, args: &[&str]) -> (Value, String) {
    let common = ["bench", "--connect", endpoint, "--json", "--idle", "park"];
    let has_warm_up = args.contains(&"--warm-up");
    let warm_up: &[&str] = if has_warm_up {
        &[]
    } else {
        &["--warm-up", "0.1"]
    };
    let output = corelane(&[&common[..], warm_up, args].concat());
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    check_order_of_keys(&stdout);
    (serde_json::from_str(&stdout).expect("JSON"), stderr)
}

/// Exactly these keys, in the order that people read them in.
fn check_order_of_keys(text: &str) {
    let keys: Vec<&str> = text
        .split('"')
        .zip(text.split('"').skip(1))
        .filter(|(_, after)| after.starts_with(':'))
        .map(|(key, _)| key)
        .collect();
    let mut expected = KEYS.to_vec();
    expected.splice(9..9, PERCENTILES.into_iter().chain(["samples"]));
    assert_eq!(keys, expected, "{text}");
}

fn count(report: &Value, key: &str) -> u64 {
    report[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {report}"))
}

fn figure(report: &Value, key: &str) -> f64 {
    report[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key} in {report}"))
}

/// What holds for each report whose messages are answered.
fn check_sums(report: &Value) {
    let sent = count(report, "sent");
    let ended = ["answered", "nacked", "indeterminate"].map(|key| count(report, key));
    assert_eq!(sent, ended.iter().sum::<u64>(), "{report}");
    let latency = &report["latency_us"];
    assert_eq!(
        count(latency, "samples"),
        count(report, "answered"),
        "{report}"
    );
    let percentiles = PERCENTILES.map(|key| figure(latency, key));
    assert!(percentiles.is_sorted(), "{report}");
    let rate = (ended[0] + ended[1]) as f64 / figure(report, "seconds");
    assert!(
        (figure(report, "per_second") / rate - 1.0).abs() < 0.01,
        "{report}"
    );
    assert!(figure(report, "cpu_us_per_message") > 0.0, "{report}");
}

#[test]
fn a_closed_loop_sends_as_many_as_asked() {
    let served = Served::start(&["--shards", "1"]);
    for (scheme, mode, size, outstanding) in [
        ("tcp", "request", "64", "1"),
        ("ipc", "request", "100000", "8"),
        ("ipc", "confirm", "0", "100"),
    ] {
        let args = ["--mode", mode, "--size", size, "--outstanding", outstanding];
        let (report, stderr) = bench(
            &served.endpoint(scheme),
            &[&args[..], &["--count", "1003"]].concat(),
        );
        assert_eq!(report["mode"], mode);
        assert_eq!(report["size"].to_string(), size);
        assert_eq!(
            (count(&report, "sent"), count(&report, "answered")),
            (1003, 1003)
        );
        assert!(figure(&report["latency_us"], "p50") > 0.0, "{report}");
        check_sums(&report);
        assert_eq!(stderr, "");
    }
}

#[test]
fn an_open_loop_keeps_its_schedule() {
    let served = Served::start(&["--shards", "1"]);
    let (report, _) = bench(
        &served.endpoint("tcp"),
        &["--rate", "500", "--duration", "2"],
    );
    assert_eq!(
        count(&report, "sent"),
        1_000,
        "one each 2 ms, for 2 s, late or not"
    );
    assert!(figure(&report, "seconds") >= 1.99, "{report}");
    check_sums(&report);
}

/// Runs a bench while, in the middle of it, the peer's only shard spins.
fn bench_over_a_stall(endpoint: &str, stall_us: u64, args: &[&str]) -> (Value, String) {
    let json = format!(r#"{{"us":{stall_us}}}"#);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(1_200));
            let output = corelane(&["call", endpoint, "spin", "--json", &json]);
            assert!(output.status.success(), "{output:?}");
        });
        bench(endpoint, args)
    })
}

#[test]
fn an_open_loop_counts_from_when_a_message_was_due() {
    let served = Served::start(&["--shards", "1"]);
    let args = ["--rate", "200", "--duration", "3"];
    let (report, _) = bench_over_a_stall(&served.endpoint("ipc"), 500_000, &args);
    check_sums(&report);
    assert_eq!(count(&report, "answered"), 600);
    // A sixth of the messages was due during the stall, and waited for a quarter second on average.
    let latency = &report["latency_us"];
    assert!(figure(latency, "max") > 400_000.0, "{report}");
    assert!(figure(latency, "p90") > 100_000.0, "{report}");
}

/// 80 MB fall due during the stall: more than all queues between the two ends hold.
#[test]
fn what_a_full_queue_refuses_is_told_and_not_counted_as_sent() {
    let served = Served::start(&["--shards", "1"]);
    let args = ["--rate", "20000", "--duration", "3", "--size", "4096"];
    let (report, stderr) = bench_over_a_stall(&served.endpoint("tcp"), 1_000_000, &args);
    check_sums(&report);
    let refused: u64 = stderr
        .lines()
        .find_map(|line| {
            let line = line.strip_prefix("corelane: ")?;
            line.split_once(" messages were refused")?.0.parse().ok()
        })
        .unwrap_or_else(|| panic!("no refusals: {report} {stderr}"));
    assert_eq!(
        count(&report, "sent") + refused,
        60_000,
        "{report} {stderr}"
    );
}

#[test]
fn one_way_messages_have_all_arrived_when_the_bench_ends() {
    let served = Served::start(&["--shards", "1"]);
    let endpoint = served.endpoint("ipc");
    let args = ["--mode", "one-way", "--handler", "count", "--warm-up", "0"];
    for load in [
        &["--count", "20000"][..],
        &["--rate", "5000", "--count", "2000"],
    ] {
        let before = counted(&endpoint);
        let (report, _) = bench(&endpoint, &[&args[..], load].concat());
        let sent = count(&report, "sent");
        assert_eq!(sent.to_string(), load[load.len() - 1]);
        let unanswered = ["answered", "nacked", "indeterminate"].map(|key| count(&report, key));
        assert_eq!(unanswered, [0; 3], "{report}");
        assert_eq!(count(&report["latency_us"], "samples"), 0);
        // Beside those, the message that tries the connection, and the last one of each phase.
        assert_eq!(counted(&endpoint) - before, sent + 1 + PHASES);
    }
}

/// Connecting, the warm-up (of no length here) and the measurement each end with a confirmed one.
const PHASES: u64 = 3;

fn counted(endpoint: &str) -> u64 {
    let output = corelane(&["call", endpoint, "count.read"]);
    let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    count(&reply, "count")
}

#[test]
fn nacks_are_counted_as_such_and_have_no_latency() {
    let served = Served::start(&["--shards", "1"]);
    let args = [
        "--handler",
        "nobody home",
        "--count",
        "200",
        "--outstanding",
        "4",
    ];
    let (report, _) = bench(&served.endpoint("tcp"), &args);
    assert_eq!(
        (count(&report, "sent"), count(&report, "nacked")),
        (200, 200)
    );
    check_sums(&report);
}

#[test]
fn without_a_peer_it_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let nobody = format!("ipc://{}", directory.path().join("nobody").display());
    for mode in ["request", "confirm", "one-way"] {
        let args = [
            "bench",
            "--connect",
            &nobody,
            "--mode",
            mode,
            "--within",
            "300",
        ];
        let line = error_line(&corelane(&args));
        assert!(
            line.contains("not sent: no connection to the peer"),
            "{mode}: {line}"
        );
    }
}

#[test]
fn the_table_says_what_the_object_says() {
    let served = Served::start(&["--shards", "1"]);
    let args = ["--count", "100", "--warm-up", "0.1", "--idle", "park"];
    let endpoint = served.endpoint("tcp");
    let output = corelane(&[&["bench", "--connect", &endpoint], &args[..]].concat());
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    for word in [
        "request",
        "answered",
        "p99.9 µs",
        "samples",
        "a warm-up of 0.1 s",
    ] {
        assert!(table.contains(word), "{word}: {table}");
    }
    assert!(
        output.stderr.is_empty(),
        "no bar where there is no terminal"
    );
}

/// `hist` on the dump of a bench prints what the bench printed.
#[test]
fn hist_agrees_with_bench() {
    let served = Served::start(&["--shards", "1"]);
    for (load, name) in [
        (&["--count", "3000", "--outstanding", "4"][..], "closed"),
        (&["--rate", "1000", "--duration", "2"], "open"),
    ] {
        let dumps = served.directory().join(name);
        let dumps_text = dumps.to_str().expect("a path of text");
        let (report, _) = bench(
            &served.endpoint("tcp"),
            &[load, &["--dump", dumps_text]].concat(),
        );
        let tags = hist(&dumps);
        assert_eq!(tags.len(), 1, "{tags:?}");
        assert_eq!(
            (&tags[0]["metric"], &tags[0]["handler"]),
            (&json(&"round_trip"), &json(&"echo"))
        );
        assert_eq!(
            tags[0]["samples"], report["answered"],
            "no warm-up in either"
        );
        for key in PERCENTILES {
            let (dumped, printed) = (
                figure(&tags[0]["latency_us"], key),
                figure(&report["latency_us"], key),
            );
            assert!(
                (dumped / printed - 1.0).abs() < 0.01,
                "{key}: {dumped} and {printed}"
            );
        }
    }
}

/// The other end's dump knows of the same messages.
#[test]
fn the_dumps_of_serve_hold_what_it_answered() {
    let directory = tempfile::tempdir().expect("a directory");
    let dumps = directory.path().join("dumps");
    let dumps_text = dumps.to_str().expect("a path of text");
    let served = Served::start(&[
        "--shards",
        "1",
        "--dump",
        dumps_text,
        "--dump-interval",
        "1",
    ]);
    let (report, _) = bench(
        &served.endpoint("ipc"),
        &["--rate", "500", "--duration", "2"],
    );
    let stopped = served.stop();
    let handled = &stopped["handled"];
    assert!(
        handled.as_u64() > report["answered"].as_u64(),
        "the warm-up was handled too"
    );
    let tags = hist(&dumps);
    let metrics: Vec<&Value> = tags.iter().map(|tag| &tag["metric"]).collect();
    assert_eq!(metrics, ["in_handler", "read_to_reply", "turn"]);
    assert_eq!(tags[2]["handler"], "shard-0");
    for tag in &tags[..2] {
        assert_eq!(
            (&tag["handler"], &tag["samples"]),
            (&json(&"echo"), handled),
            "{tag}"
        );
    }
}

/// The tags of all dumps in a directory, merged by the command.
fn hist(dumps: &Path) -> Vec<Value> {
    let entries = std::fs::read_dir(dumps).expect("a directory");
    let paths: Vec<String> = entries
        .map(|entry| entry.expect("an entry").path().display().to_string())
        .collect();
    let files: Vec<&str> = paths.iter().map(String::as_str).collect();
    let output = corelane(&[&["hist", "--json"], &files[..]].concat());
    assert!(output.status.success(), "{output:?}");
    let merged: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    merged["tags"].as_array().expect("tags").clone()
}
