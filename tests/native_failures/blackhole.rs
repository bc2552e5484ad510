//! A connection that is half open: between two network namespaces, each of which sends its frames
//! to a hardware address that nobody has. Nothing arrives, no end is told of it, and nothing is
//! closed. `tests/proxy.rs` has the twin that needs no namespaces.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Instant,
};

use corelane::{
    Runtime,
    error::{CallError, Indeterminate},
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    INTERVAL_MS, TIMEOUT_MS, assert_echoes, caller,
    process::{PATIENCE, Process},
};

const INSIDE: &str = "CORELANE_TEST_BLACKHOLE";
const TEST: &str = "blackhole::a_connection_into_a_black_hole_is_lost_at_both_ends_and_made_again";
const ENDPOINT: &str = "tcp://10.9.0.2:7400";
/// In a network namespace of its own, once its end of the cable is there.
const SERVE: &str = "read _; ip link set lo up && ip addr add 10.9.0.2/24 dev far
    ip link set far up; exec \"$@\"";

fn run(command: &str) -> bool {
    let ran = Command::new("sh").args(["-c", command]).output();
    ran.is_ok_and(|output| output.status.success())
}

#[test]
fn a_connection_into_a_black_hole_is_lost_at_both_ends_and_made_again() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let probe = "unshare -rn sh -c 'ip link add near type veth peer name far && nsenter -n -t $$ \
                 true && unshare -n true'";
    if !run(probe) {
        eprintln!("SKIPPED: this needs iproute2, and leave to make network namespaces");
        return;
    }
    // Root of a namespace of users and networks, for the test to start anew in.
    let output = Command::new("unshare")
        .arg("-rn")
        .arg(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("1 passed"), "{said}{errors}");
}

/// The service, at the far end of a cable.
struct Far {
    process: Process,
    stderr: std::path::PathBuf,
}

impl Far {
    fn serve(directory: &TempDir) -> Self {
        let path = |name: &str| directory.path().join(name);
        let config = format!(
            "[limits]\nheartbeat_interval_ms = {INTERVAL_MS}\nheartbeat_timeout_ms = \
             {TIMEOUT_MS}\n[listen]\nallow_insecure_remote = true\n"
        );
        std::fs::write(path("config.toml"), config).unwrap();
        let child = Command::new("unshare")
            .args([
                "-n",
                "sh",
                "-c",
                SERVE,
                "sh",
                env!("CARGO_BIN_EXE_corelane"),
            ])
            .args([
                "serve", "--shards", "1", "--idle", "park", "--listen", ENDPOINT,
            ])
            .arg("--config")
            .arg(path("config.toml"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(path("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut far = Self {
            process: Process(child),
            stderr: path("stderr"),
        };
        // It has its namespace once it waits for a line.
        let pid = far.process.0.id();
        let moved = || {
            run(&format!(
                "ip link set far netns {pid} && ip link set near up"
            ))
        };
        let begun = Instant::now();
        let is_apart = || {
            let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
            of("self") != of(&pid.to_string())
        };
        while !is_apart() {
            assert!(begun.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        assert!(moved());
        let mut stdin = far.process.0.stdin.take().unwrap();
        stdin.write_all(b"\n").unwrap();
        let mut line = String::new();
        let stdout = far.process.0.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{}", far.log()));
        assert_eq!(ready["endpoints"][0], ENDPOINT);
        far
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap()
    }

    /// Both ways: frames go to nobody from now on, or to their addresses again.
    fn blackhole(&self, is_there: bool) {
        let change = match is_there {
            true => |at: &str, device: &str| {
                format!("ip neigh replace {at} lladdr 02:00:00:00:00:99 dev {device} nud permanent")
            },
            false => |at: &str, device: &str| format!("ip neigh del {at} dev {device}"),
        };
        let pid = self.process.0.id();
        assert!(run(&change("10.9.0.2", "near")));
        let far = change("10.9.0.1", "far");
        assert!(run(&format!("nsenter -n -t {pid} {far}")));
    }
}

fn inside() {
    assert!(run(
        "ip link set lo up && ip link add near type veth peer name far"
    ));
    assert!(run("ip addr add 10.9.0.1/24 dev near"));
    let directory = TempDir::new().unwrap();
    let mut far = Far::serve(&directory);
    let caller: Runtime = caller();
    let peer = caller.client().connect(ENDPOINT).unwrap();
    for round in 1..=2 {
        assert_echoes(&caller, &peer);
        let sleep = caller.client().message("sleep");
        let sleep = sleep.json(&serde_json::json!({ "ms": 600_000 })).unwrap();
        let held = sleep.to(&peer).request::<Value>().send().unwrap();
        assert_echoes(&caller, &peer);
        far.blackhole(true);
        let begun = Instant::now();
        let lost = CallError::Indeterminate(Indeterminate::ConnectionLost);
        assert_eq!(held.wait().unwrap_err(), lost);
        assert!(begun.elapsed() < PATIENCE / 4, "long before its deadline");
        // The other end comes to it by itself.
        while far.log().matches("connection lost: silent").count() < round {
            assert!(begun.elapsed() < PATIENCE, "{}", far.log());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let waits = caller.client().message("echo").raw("waits").to(&peer);
        let waits = waits.request().send().unwrap();
        far.blackhole(false);
        assert_eq!(waits.wait().as_deref(), Ok(&b"waits"[..]));
    }
    let account = peer.account();
    assert_eq!((account.handled, account.indeterminate), (6, 2));
    drop(caller);
    // A second one, for the sleepers have an hour.
    far.process.signal(Signal::TERM);
    std::thread::sleep(std::time::Duration::from_millis(200));
    far.process.signal(Signal::TERM);
    far.process.wait();
}
