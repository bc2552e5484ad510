//! What cannot work is refused with a text of its own, and harms nobody.

use std::{
    net::TcpListener,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
};

use crate::process::{Served, corelane, error_line};

/// Starts `serve`, which must refuse, and returns its line.
fn refusal(args: &[&str]) -> String {
    error_line(&corelane(&[&["serve"], args].concat()))
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("a file");
    path.into_os_string().into_string().expect("a path of text")
}

#[test]
fn a_wrong_key_is_named_with_file_line_and_the_right_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = "shards = 1\n\n[limits]\nring_capcity = 64\n";
    let file = write(directory.path(), "corelane.toml", text);
    let line = refusal(&["--config", &file]);
    let expected = "limits.ring_capcity: there is no such key; did you mean ring_capacity?";
    assert_eq!(line, format!("corelane: {file}:4: {expected}"));
}

#[test]
fn a_missing_file_is_named() {
    let line = refusal(&["--config", "/no/such/corelane.toml"]);
    assert!(
        line.starts_with("corelane: /no/such/corelane.toml: "),
        "{line}"
    );
    assert!(line.contains("cannot be read"), "{line}");
}

#[test]
fn a_cpu_that_does_not_exist_is_refused_with_those_that_do() {
    let line = refusal(&["--cpus", "8191", "--listen", "tcp://127.0.0.1:0"]);
    assert!(line.contains("CPU 8191 does not exist"), "{line}");
    assert!(line.contains("name CPUs among"), "{line}");
}

/// Runs `serve` by way of a shell, which must refuse; the script's `$@` is the command.
fn refusal_in(script: &str, cpus: &str) -> Option<String> {
    let output = Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_corelane"), "serve"])
        .args(["--cpus", cpus, "--listen", "tcp://127.0.0.1:0"])
        .env_remove("RUST_LOG")
        .output()
        .expect("sh can be run");
    // What the script could not set up, it says with this code.
    (output.status.code() != Some(77)).then(|| error_line(&output))
}

#[test]
fn cpus_that_cannot_be_had_are_refused_each_in_its_words() {
    let usable = corelane::placement::probe()
        .expect("a topology")
        .usable_ids();
    let (first, last) = (usable[0], usable[usable.len() - 1]);
    let twice = refusal(&["--cpus", &format!("{first},{first}")]);
    assert!(twice.contains("is named twice"), "{twice}");
    assert!(twice.contains("placement.oversubscribe = true"), "{twice}");
    let too_many = refusal(&["--cpus", &first.to_string(), "--shards", "2"]);
    assert!(
        too_many.contains("2 shards need as many CPUs"),
        "{too_many}"
    );
    if first == last {
        eprintln!("SKIPPED: a CPU outside the mask, and one that is off, take a second CPU");
        return;
    }

    let narrowed = format!("taskset -c {first} true || exit 77; exec taskset -c {first} \"$@\"");
    match refusal_in(&narrowed, &last.to_string()) {
        Some(line) => assert!(
            line.contains(&format!("CPU {last} is outside the affinity mask")),
            "{line}"
        ),
        None => eprintln!("SKIPPED: a CPU outside the mask takes `taskset`"),
    }

    // A CPU cannot be switched off for a test; the file that says so is covered by another one.
    let offline = "file=$(mktemp) && echo FIRST >$file || exit 77
         mount --bind $file /sys/devices/system/cpu/online; mounted=$?; rm $file
         test $mounted = 0 || exit 77; exec taskset -c FIRST \"$@\"";
    let offline = offline.replace("FIRST", &first.to_string());
    let script =
        format!("unshare -rm true || exit 77; exec unshare -rm sh -c '{offline}' sh \"$@\"");
    match refusal_in(&script, &last.to_string()) {
        Some(line) => assert!(line.contains(&format!("CPU {last} is offline")), "{line}"),
        None => eprintln!("SKIPPED: a CPU that is off takes leave to mount in a namespace"),
    }
}

#[test]
fn a_port_in_use_is_refused_and_its_owner_keeps_it() {
    let owner = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("tcp://{}", owner.local_addr().expect("an address"));
    let line = refusal(&["--shards", "1", "--listen", &endpoint]);
    assert!(line.contains(&format!("{endpoint} is in use")), "{line}");
    assert!(line.contains("tcp port 0: any free port"), "{line}");
    let address = owner.local_addr().expect("an address");
    std::net::TcpStream::connect(address).expect("the owner listens");
}

#[test]
fn an_ipc_path_that_is_too_long_is_refused_with_both_lengths() {
    let path = format!("/{}", "x".repeat(150));
    let line = refusal(&["--shards", "1", "--listen", &format!("ipc://{path}")]);
    assert!(
        line.contains("has 151 bytes, and the system allows 107"),
        "{line}"
    );
}

#[test]
fn a_stale_ipc_socket_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    drop(UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists(), "the socket outlives its listener");
    let endpoint = format!("ipc://{}", path.display());
    let served = Served::start_exactly(&["--shards", "1", "--listen", &endpoint]);
    let answer = corelane(&["call", &endpoint, "echo", "--json", "1"]);
    assert_eq!(answer.stdout, b"1");
    served.stop();
    assert!(!path.exists(), "nothing is left behind");
}

#[test]
fn a_live_ipc_socket_is_refused_and_its_owner_keeps_it() {
    let owner = Served::start(&["--shards", "1"]);
    let endpoint = owner.endpoint("ipc");
    let line = refusal(&["--shards", "1", "--listen", &endpoint]);
    assert!(line.contains(&format!("{endpoint} is in use")), "{line}");
    let answer = corelane(&["call", &endpoint, "echo", "--json", "1"]);
    assert_eq!(answer.stdout, b"1", "the owner answers");

    let path = owner.directory().join("foreign");
    let _foreign = UnixListener::bind(&path).expect("a socket");
    let line = refusal(&[
        "--shards",
        "1",
        "--listen",
        &format!("ipc://{}", path.display()),
    ]);
    assert!(line.contains("is in use"), "{line}");
    UnixStream::connect(&path).expect("the foreign owner listens");
}

#[test]
fn a_file_that_is_no_socket_is_not_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = write(directory.path(), "precious", "data");
    let line = refusal(&["--shards", "1", "--listen", &format!("ipc://{path}")]);
    assert!(line.contains("no socket"), "{line}");
    assert_eq!(std::fs::read(path).expect("the file"), b"data");
}

#[test]
fn a_non_loopback_bind_takes_leave() {
    for endpoint in ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://[::]:0"] {
        let line = refusal(&["--shards", "1", "--listen", endpoint]);
        assert!(line.contains("can be reached from other hosts"), "{line}");
        assert!(
            line.contains("listen.allow_insecure_remote = true"),
            "{line}"
        );
    }
    let directory = tempfile::tempdir().expect("a directory");
    let text = "[listen]\nallow_insecure_remote = true\n";
    let file = write(directory.path(), "corelane.toml", text);
    let args = [
        "--config",
        &file,
        "--shards",
        "1",
        "--listen",
        "tcp://0.0.0.0:0",
    ];
    Served::start_exactly(&args).stop();
}

#[test]
fn a_dump_directory_that_cannot_be_made_is_refused() {
    let args = [
        "--shards",
        "1",
        "--listen",
        "tcp://127.0.0.1:0",
        "--dump",
        "/no/such/directory",
    ];
    let line = refusal(&args);
    assert!(line.contains("dump directory /no/such/directory"), "{line}");
}
