//! How `corelane serve` ends.

use std::{
    process::{Output, Stdio},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::process::{Process, Served, command, corelane};

/// Starts a call, and waits until its handler runs.
fn call_sleep(endpoint: &str, ms: u64) -> Process {
    let json = format!(r#"{{"ms":{ms}}}"#);
    let args = [
        "call", endpoint, "sleep", "--json", &json, "--within", "60000",
    ];
    let child = command(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("corelane can be run");
    let child = Process(child);
    // No handler tells from outside which others run; a call takes some 50 ms to get there.
    thread::sleep(Duration::from_secs(1));
    child
}

fn output(mut process: Process) -> Output {
    let status = process.wait();
    let mut stdout = Vec::new();
    let mut stderr = Vec::new();
    let child = &mut process.0;
    std::io::copy(child.stdout.as_mut().expect("piped"), &mut stdout).expect("read");
    std::io::copy(child.stderr.as_mut().expect("piped"), &mut stderr).expect("read");
    Output {
        status,
        stdout,
        stderr,
    }
}

fn with_drain_ms(served_drain_ms: u64) -> (tempfile::TempDir, Served) {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("corelane.toml");
    let text = format!("[limits]\ndrain_ms = {served_drain_ms}\n");
    std::fs::write(&config, text).expect("a file");
    let config = config.to_str().expect("a path of text");
    let served = Served::start(&["--shards", "1", "--config", config]);
    (directory, served)
}

#[test]
fn both_signals_stop_it_and_nothing_happened() {
    for signal in [Signal::TERM, Signal::INT] {
        let served = Served::start(&["--shards", "1"]);
        served.signal(signal);
        let stopped = served.stopped();
        let keys: Vec<&String> = stopped.as_object().expect("an object").keys().collect();
        let expected = [
            "accepted",
            "event",
            "handled",
            "hopped",
            "indeterminate",
            "lost",
            "nacked",
        ];
        assert_eq!(keys, expected);
        assert_eq!(stopped["accepted"], 0);
    }
}

#[test]
fn under_load_every_accepted_message_is_accounted_for() {
    for (scheme, mode) in [("tcp", "request"), ("ipc", "request"), ("tcp", "one-way")] {
        let served = Served::start(&["--shards", "1"]);
        let args = [
            "bench",
            "--connect",
            &served.endpoint(scheme),
            "--mode",
            mode,
        ];
        let load = [
            "--outstanding",
            "64",
            "--duration",
            "30",
            "--json",
            "--within",
            "2000",
        ];
        let bench = command(&[&args[..], &load].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("corelane can be run");
        let bench = Process(bench);
        // In the middle of it: past the warm-up.
        thread::sleep(Duration::from_secs(2));
        let stopped = served.stop();
        let count = |key: &str| stopped[key].as_u64().expect("a count");
        assert!(count("handled") > 1_000, "{scheme} {mode}: {stopped}");

        let bench = output(bench);
        let stderr = String::from_utf8_lossy(&bench.stderr);
        assert_eq!(bench.status.code(), Some(1), "it ended early: {stderr}");
        assert!(stderr.contains("corelane: ended early: "), "{stderr}");
        if mode == "request" {
            let report: Value = serde_json::from_slice(&bench.stdout).expect("a report");
            let told = report["answered"].as_u64().expect("a count");
            assert!((1..=count("handled")).contains(&told), "{report} {stopped}");
        }
    }
}

/// A drain waits for what runs, and its answer arrives.
#[test]
fn what_runs_is_answered_before_it_stops() {
    for scheme in ["tcp", "ipc"] {
        let (_config, served) = with_drain_ms(30_000);
        let endpoint = served.endpoint(scheme);
        let sleeping = call_sleep(&endpoint, 3_000);
        served.signal(Signal::TERM);
        // There is nowhere to connect to any more.
        thread::sleep(Duration::from_millis(200));
        let refused = corelane(&["call", &endpoint, "echo", "--within", "500"]);
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{stderr}");
        let expected = "not sent: no connection to the peer";
        assert!(stderr.starts_with(expected), "{stderr}");

        let answer = output(sleeping);
        assert_eq!(answer.stdout, br#"{"ms":3000}"#, "{scheme}: {answer:?}");
        let stopped = served.stopped();
        assert_eq!(stopped["handled"], 1);
        assert_eq!(stopped["nacked"], 0);
    }
}

#[test]
fn what_outlasts_the_drain_is_indeterminate_at_both_ends() {
    let (_config, served) = with_drain_ms(300);
    let sleeping = call_sleep(&served.endpoint("tcp"), 60_000);
    let stopped = served.stop();
    assert_eq!(
        (&stopped["accepted"], &stopped["indeterminate"]),
        (&1.into(), &1.into())
    );
    let caller = output(sleeping);
    let stderr = String::from_utf8_lossy(&caller.stderr);
    assert_eq!(caller.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.starts_with("indeterminate: the connection was lost"),
        "{stderr}"
    );
}

#[test]
fn a_second_signal_exits_at_once() {
    for (first, second, code) in [
        (Signal::TERM, Signal::TERM, 143),
        (Signal::INT, Signal::INT, 130),
        (Signal::INT, Signal::TERM, 143),
    ] {
        // Its drain would last a minute: the handler's sleep does.
        let (_config, mut served) = with_drain_ms(3_600_000);
        let sleeping = call_sleep(&served.endpoint("ipc"), 60_000);
        served.signal(first);
        // Two of a kind that are pending at once are one.
        thread::sleep(Duration::from_millis(300));
        assert!(served.is_running(), "it drains");
        served.signal(second);
        assert_eq!(served.wait().code(), Some(code), "{first:?} {second:?}");
        drop(sleeping);
    }
}
