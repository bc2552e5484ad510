//! `corelane call`, against each demonstration handler.

use std::{
    io::Write,
    process::{Output, Stdio},
};

use corelane::wire::shard_of_key;
use serde_json::Value;

use crate::process::{Served, all_cpus, command, corelane};

/// Handler, arguments, and the reply's payload.
const ANSWERED: [(&str, &[&str], &str); 11] = [
    ("echo", &[], ""),
    (
        "echo",
        &["--json", r#"{"any": "bytes"}"#],
        r#"{"any": "bytes"}"#,
    ),
    ("sum", &["--json", r#"{"a":1,"b":2}"#], r#"{"total":3}"#),
    (
        "sum",
        &["--json", r#" { "b" : -5, "a" : 2 } "#],
        r#"{"total":-3}"#,
    ),
    ("count", &[], ""),
    ("count", &["--json", "[]"], ""),
    ("count.read", &[], r#"{"count":2}"#),
    ("count.read", &["--json", "{}"], r#"{"count":2}"#),
    ("spin", &["--json", r#"{"us":100}"#], r#"{"us":100}"#),
    ("sleep", &["--json", r#"{"ms":2}"#], r#"{"ms":2}"#),
    ("block", &["--json", r#"{"ms":2}"#], r#"{"ms":2}"#),
];

/// Handler, arguments, and the line on stderr.
const NACKED: [(&str, &[&str], &str); 10] = [
    ("fail", &[], "nack: HandlerFailed: asked to fail"),
    (
        "fail",
        &["--json", "{}"],
        "nack: HandlerFailed: asked to fail",
    ),
    ("panic", &[], "nack: HandlerPanicked: asked to panic"),
    (
        "nobody",
        &[],
        "nack: UnknownHandler: no handler has the key 1d3b7e9137dffe1e",
    ),
    ("sum", &[], "nack: Unsupported: "),
    ("sum", &["--json", "{"], "nack: Malformed: "),
    (
        "sum",
        &["--json", r#"{"a":9223372036854775807,"b":1}"#],
        "nack: HandlerFailed: the sum ",
    ),
    (
        "spin",
        &["--json", r#"{"us":18446744073709551615}"#],
        "nack: HandlerFailed: ",
    ),
    (
        "sleep",
        &["--json", r#"{"ms":18446744073709551615}"#],
        "nack: HandlerFailed: ",
    ),
    (
        "block",
        &["--json", r#"{"ms":18446744073709551615}"#],
        "nack: HandlerFailed: ",
    ),
];

fn call(endpoint: &str, handler: &str, args: &[&str]) -> Output {
    corelane(&[&["call", endpoint, handler], args].concat())
}

/// Exit code, stdout, stderr.
fn parts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn each_handler_answers_a_request_and_a_confirm() {
    for scheme in ["tcp", "ipc"] {
        let served = Served::start(&["--shards", "1"]);
        let endpoint = served.endpoint(scheme);
        for (handler, args, expected) in ANSWERED {
            let expected = (Some(0), expected.to_owned(), String::new());
            assert_eq!(
                parts(&call(&endpoint, handler, args)),
                expected,
                "{handler} {args:?}"
            );
        }
        for (handler, args, _) in ANSWERED {
            let args = [args, &["--mode", "confirm"]].concat();
            let expected = (Some(0), String::new(), String::new());
            assert_eq!(
                parts(&call(&endpoint, handler, &args)),
                expected,
                "{handler} {args:?}"
            );
        }
        let stopped = served.stop();
        assert_eq!(stopped["handled"], 2 * ANSWERED.len());
    }
}

#[test]
fn a_nack_is_a_line_and_exit_code_1() {
    let served = Served::start(&["--shards", "1"]);
    let endpoint = served.endpoint("ipc");
    for mode in ["request", "confirm"] {
        for (handler, args, expected) in NACKED {
            let args = [args, &["--mode", mode]].concat();
            let (code, stdout, stderr) = parts(&call(&endpoint, handler, &args));
            assert_eq!(
                (code, stdout.as_str()),
                (Some(1), ""),
                "{handler} {args:?}: {stderr}"
            );
            assert!(stderr.starts_with(expected), "{handler} {args:?}: {stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
    let stopped = served.stop();
    assert_eq!(stopped["nacked"], 2 * NACKED.len());
}

#[test]
fn one_way_is_handled_and_says_nothing() {
    let served = Served::start(&["--shards", "1"]);
    let endpoint = served.endpoint("tcp");
    for handler in ["count", "count", "fail", "nobody"] {
        let output = call(&endpoint, handler, &["--mode", "one-way"]);
        assert_eq!(
            parts(&output),
            (Some(0), String::new(), String::new()),
            "{handler}"
        );
    }
    // Each came on a connection of its own, so nothing orders them before this one.
    let stopped = served.stop();
    assert_eq!(
        (&stopped["handled"], &stopped["nacked"]),
        (&2.into(), &2.into())
    );
}

#[test]
fn raw_bytes_come_from_a_file_or_stdin_and_go_out_as_they_are() {
    let served = Served::start(&["--shards", "1"]);
    let endpoint = served.endpoint("tcp");
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let file = served.directory().join("payload");
    std::fs::write(&file, &bytes).expect("a file");
    let output = call(&endpoint, "echo", &["--raw", file.to_str().expect("text")]);
    assert_eq!((output.status.code(), &output.stdout), (Some(0), &bytes));

    let mut child = command(&["call", &endpoint, "echo", "--raw", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("corelane can be run");
    let mut stdin = child.stdin.take().expect("is piped");
    stdin.write_all(&bytes).expect("is read");
    drop(stdin);
    let output = child.wait_with_output().expect("an end");
    assert_eq!((output.status.code(), &output.stdout), (Some(0), &bytes));

    // The peer's limit, told by the peer.
    std::fs::write(&file, vec![0; (1 << 20) + 1]).expect("a file");
    let output = call(&endpoint, "echo", &["--raw", file.to_str().expect("text")]);
    let (code, _, stderr) = parts(&output);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.starts_with("nack: TooLarge: "), "{stderr}");
}

/// On as many shards as there are CPUs.
#[test]
fn a_route_key_says_which_shard_runs_the_message() {
    let served = Served::start(&["--cpus", &all_cpus()]);
    let shards = served.ready["shards"].as_array().expect("shards").len();
    for scheme in ["tcp", "ipc"] {
        for key in [1, 2, 3, 4, 1 << 40, u64::MAX] {
            let text = key.to_string();
            let endpoint = served.endpoint(scheme);
            let output = call(&endpoint, "where.key", &["--route-key", &text]);
            let place: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(place["shard"], shard_of_key(key, shards), "{scheme} {key}");
        }
    }
}

/// A bench's messages may have one. Without a key such a handler refuses them.
#[test]
fn a_bench_has_a_route_key() {
    let served = Served::start(&["--cpus", &all_cpus()]);
    let connect = served.endpoint("ipc");
    for (key, ended) in [(&["--route-key", "2"][..], "answered"), (&[], "nacked")] {
        let load = ["bench", "--connect", &connect, "--handler", "where.key"];
        let extent = ["--count", "100", "--warm-up", "0", "--json"];
        let output = corelane(&[&load[..], &extent, key].concat());
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        assert_eq!(report[ended], 100, "{report}");
    }
}

#[test]
fn no_answer_and_nobody_there_are_told_apart() {
    let served = Served::start(&["--shards", "1"]);
    let nobody = format!("ipc://{}", served.directory().join("nobody").display());
    for (endpoint, mode, expected) in [
        (
            served.endpoint("ipc"),
            "request",
            "indeterminate: the deadline passed",
        ),
        (
            served.endpoint("tcp"),
            "confirm",
            "indeterminate: the deadline passed",
        ),
        (
            nobody.clone(),
            "request",
            "not sent: no connection to the peer",
        ),
        (
            nobody.clone(),
            "confirm",
            "not sent: no connection to the peer",
        ),
        (nobody, "one-way", "not sent: no connection to the peer"),
    ] {
        let args = [
            "--json",
            r#"{"ms":60000}"#,
            "--mode",
            mode,
            "--within",
            "700",
        ];
        let (code, stdout, stderr) = parts(&call(&endpoint, "sleep", &args));
        assert_eq!(
            (code, stdout.as_str()),
            (Some(2), ""),
            "{endpoint} {mode}: {stderr}"
        );
        assert!(stderr.starts_with(expected), "{endpoint} {mode}: {stderr}");
    }
}
