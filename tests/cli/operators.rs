//! The built-in handlers by `corelane call`, and `corelane top`.

use serde_json::Value;

use crate::process::{Served, corelane};

fn answer(endpoint: &str, handler: &str) -> Value {
    let output = corelane(&["call", endpoint, handler]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{handler}: {stderr}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn built_in_handlers_are_called_as_any_other() {
    for engine in ["native", "libzmq"] {
        let served = Served::start(&["--shards", "1", "--engine", engine]);
        let endpoint = served.endpoint("tcp");
        let health = answer(&endpoint, "_health");
        assert_eq!(health["status"], "ok");
        assert_eq!(health["instance"], served.ready["instance"]);
        let handlers = answer(&endpoint, "_handlers");
        assert_eq!(handlers["handlers"].as_array().map(Vec::len), Some(12));
        let metrics = answer(&endpoint, "_metrics");
        assert_eq!(metrics["shards"][0]["handled"], 2);
        let question = r#"{"name":"sum"}"#;
        let awaited = corelane(&["call", &endpoint, "_await_handler", "--json", question]);
        let entry: Value = serde_json::from_slice(&awaited.stdout).expect("JSON");
        let handlers = handlers["handlers"].as_array().expect("a list");
        assert!(
            entry["name"] == "sum" && handlers.contains(&entry),
            "{entry}"
        );
        let question = r#"{"name":"nobody"}"#;
        let options = ["--json", question, "--within", "200"];
        let awaited = corelane(&[&["call", &endpoint, "_await_handler"], &options[..]].concat());
        let stderr = String::from_utf8_lossy(&awaited.stderr);
        assert!(stderr.starts_with("indeterminate: "), "{stderr}");
        let peers = answer(&endpoint, "_peers");
        // Those that have gone may still be listed: libzmq does not tell.
        let accepted = peers["shards"][0]["accepted_total"].as_u64();
        assert!(accepted >= Some(1), "{peers}");
        let nack = corelane(&["call", &endpoint, "_drain"]);
        let stderr = String::from_utf8_lossy(&nack.stderr);
        assert_eq!(nack.status.code(), Some(1), "{stderr}");
        let expected = "nack: Unauthorized: the configuration does not say control.allow_drain";
        assert!(stderr.starts_with(expected), "{stderr}");
        assert_eq!(served.stop()["accepted"], 7);
    }
}

#[test]
fn a_peer_that_may_drains_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("corelane.toml");
    std::fs::write(&file, "[control]\nallow_drain = true\n").expect("a file");
    let file = file.to_str().expect("a path of text");
    let served = Served::start(&["--shards", "1", "--config", file]);
    let endpoint = served.endpoint("ipc");
    assert!(corelane(&["call", &endpoint, "echo"]).status.success());
    assert_eq!(answer(&endpoint, "_drain")["draining"], true);
    let stopped = served.stopped();
    assert_eq!(
        (&stopped["accepted"], &stopped["handled"]),
        (&2.into(), &2.into())
    );
}

#[test]
fn top_shows_one_table_and_ends() {
    let served = Served::start(&["--shards", "1"]);
    let endpoint = served.endpoint("tcp");
    assert!(
        corelane(&["call", &endpoint, "sum", "--json", r#"{"a":1,"b":2}"#])
            .status
            .success()
    );
    let output = corelane(&["top", &endpoint, "--once"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    assert!(!stdout.contains('\u{1b}'), "{stdout}");
    assert!(stdout.starts_with(&endpoint), "{stdout}");
    let instance = served.ready["instance"].as_str().expect("a text");
    assert!(stdout.contains(instance), "{stdout}");
    for expected in ["accepted/s", "p99.9 µs", "where.key", "sum"] {
        assert!(stdout.contains(expected), "{expected} in {stdout}");
    }

    let nobody = format!("ipc://{}", served.directory().join("nobody").display());
    let output = corelane(&["top", &nobody, "--once", "--within", "300"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), stderr.lines().count()),
        (Some(2), 1),
        "{stderr}"
    );
    assert!(stderr.starts_with("not sent: "), "{stderr}");
}
