//! The command `corelane` as people and scripts meet it: processes, lines, signals, exit codes.

#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/broken_starts.rs"]
mod broken_starts;
#[path = "cli/call.rs"]
mod call;
#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/operators.rs"]
mod operators;
#[path = "cli/process.rs"]
mod process;
#[path = "cli/stop.rs"]
mod stop;

use process::{Served, corelane, error_line, json};

#[test]
fn the_first_line_says_where_it_really_listens() {
    let served = Served::start(&["--listen", "tcp://127.0.0.1:0", "--shards", "1"]);
    let ready = &served.ready;
    let keys: Vec<&String> = ready.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["endpoints", "event", "instance", "pid", "shards"]);
    assert_eq!(ready["event"], "ready");
    assert_eq!(ready["pid"], served.pid());
    let instance = ready["instance"].as_str().expect("a text");
    uuid::Uuid::parse_str(instance).expect("a uuid");

    let shard = &ready["shards"][0];
    assert_eq!(shard["shard"], 0);
    assert_eq!(shard["endpoints"], ready["endpoints"]);
    let endpoint = served.endpoint("tcp");
    assert!(endpoint.starts_with("tcp://127.0.0.1:"), "{endpoint}");
    assert!(!endpoint.ends_with(":0"), "{endpoint}");
}

/// As many shards as there are CPUs, each with endpoints of its own where its handlers answer.
#[test]
fn each_shard_answers_at_its_own_endpoint_on_its_own_cpu() {
    let cpus = corelane::placement::probe()
        .expect("a topology")
        .usable_ids();
    let list: Vec<String> = cpus.iter().map(usize::to_string).collect();
    let served = Served::start(&["--cpus", &list.join(",")]);
    let shards = served.ready["shards"].as_array().expect("shards");
    assert_eq!(shards.len(), cpus.len());
    for (number, (shard, cpu)) in shards.iter().zip(&cpus).enumerate() {
        assert_eq!(
            (&shard["shard"], &shard["cpu"]),
            (&json(&number), &json(cpu))
        );
        for endpoint in shard["endpoints"].as_array().expect("endpoints") {
            let endpoint = endpoint.as_str().expect("a text");
            let answer = corelane(&["call", endpoint, "where"]);
            let place: serde_json::Value =
                serde_json::from_slice(&answer.stdout).expect("where answers in JSON");
            assert_eq!(place["shard"], number, "{endpoint}");
            assert_eq!(place["cpu"], *cpu, "{endpoint}");
            assert!(place["numa_node"].is_u64(), "{place}");
            assert!(corelane(&["call", endpoint, "count"]).status.success());
            let last = corelane(&["call", endpoint, "where.one"]);
            let place: serde_json::Value =
                serde_json::from_slice(&last.stdout).expect("where.one answers in JSON");
            assert_eq!(place["shard"], shards.len() - 1, "{endpoint}");
        }
        // Each shard has counted what came to its own two endpoints.
        let endpoint = shard["endpoints"][0].as_str().expect("a text");
        let counted = corelane(&["call", endpoint, "count.read"]);
        assert_eq!(String::from_utf8_lossy(&counted.stdout), r#"{"count":2}"#);
    }
}

/// With leave, one more shard than there are CPUs: both of a CPU's shards answer.
#[test]
fn shards_that_share_a_cpu_answer() {
    let usable = corelane::placement::probe()
        .expect("a topology")
        .usable_ids();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("corelane.toml");
    std::fs::write(&file, "[placement]\noversubscribe = true\n").expect("a file");
    let file = file.to_str().expect("a path of text");
    let shards = (usable.len() + 1).to_string();
    let refused = error_line(&corelane(&["serve", "--shards", &shards]));
    assert!(
        refused.contains("placement.oversubscribe = true"),
        "{refused}"
    );
    let served = Served::start(&["--config", file, "--shards", &shards]);
    let shards = served.ready["shards"].as_array().expect("shards");
    assert_eq!(shards.len(), usable.len() + 1);
    assert_eq!(shards[0]["cpu"], shards[usable.len()]["cpu"]);
    for shard in shards {
        let endpoint = shard["endpoints"][0].as_str().expect("a text");
        assert!(corelane(&["call", endpoint, "where"]).status.success());
    }
    served.stop();
}

/// What an option does not say, the file does.
#[test]
fn options_go_before_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("corelane.toml");
    let dumps = directory.path().join("dumps");
    let (in_file, given) = ("ipc-of-the-file", "ipc-of-the-option");
    let at = |name: &str| format!("ipc://{}", directory.path().join(name).display());
    let text = format!(
        "shards = 7777\n[listen]\nendpoints = [{:?}]\n[metrics]\ndump_dir = {dumps:?}\n",
        at(in_file)
    );
    std::fs::write(&file, text).expect("a file");
    let file = file.to_str().expect("a path of text");

    let refused = error_line(&corelane(&["serve", "--config", file]));
    assert!(refused.contains("corelane.toml:1: shards"), "{refused}");
    let listen = at(given);
    let args = ["--config", file, "--shards", "1", "--listen", &listen];
    let served = Served::start_exactly(&args);
    assert_eq!(served.ready["endpoints"], json(&[&listen]));
    assert!(dumps.is_dir(), "the file's directory for dumps");
}

#[test]
fn help_is_for_stdout_and_mistakes_are_one_line() {
    for command in ["", "serve", "bench", "doctor", "top"].map(|name| [name, "--help"]) {
        let command = &command[usize::from(command[0].is_empty())..];
        let help = corelane(command);
        assert!(
            help.status.success() && help.stderr.is_empty(),
            "{command:?}"
        );
        assert!(help.stdout.len() > 300, "{command:?}");
    }
    for (args, expected) in [
        (&["serve", "--no-such-option"][..], "--no-such-option"),
        (
            &["serve", "--idle", "doze"],
            "possible values: spin, adaptive, park",
        ),
        (
            &["serve", "--engine", "carrier-pigeon"],
            "possible values: ",
        ),
        (&["serve", "--cpus", "all"], "\"all\" is not a CPU"),
        (&["call", "localhost", "echo"], "write tcp://host:port"),
        (&["call", "tcp://127.0.0.1:1"], "<HANDLER>"),
        (
            &[
                "call",
                "tcp://127.0.0.1:1",
                "echo",
                "--json",
                "1",
                "--raw",
                "-",
            ],
            "--raw",
        ),
        (
            &["call", "tcp://127.0.0.1:1", "echo", "--within", "0"],
            "milliseconds",
        ),
        (
            &["call", "tcp://127.0.0.1:1", "echo", "--route-key", "0"],
            "0 means no route key",
        ),
        (
            &["call", "tcp://127.0.0.1:1", "echo", "--route-key", "one"],
            "a number from 1 to 18446744073709551615",
        ),
        (
            &[
                "call",
                "tcp://127.0.0.1:1",
                "echo",
                "--raw",
                "/no/such/file",
            ],
            "/no/such/file",
        ),
        (
            &[
                "bench",
                "--connect",
                "tcp://127.0.0.1:1",
                "--duration",
                "1 s",
            ],
            "seconds",
        ),
        (
            &["bench", "--connect", "tcp://127.0.0.1:1", "--rate", "0"],
            "--rate",
        ),
        (&["hist", "/no/such/file.hlog"], "/no/such/file.hlog"),
    ] {
        let line = error_line(&corelane(args));
        assert!(line.contains(expected), "{args:?}: {line}");
    }
}
