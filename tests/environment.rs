//! Environments in which a shard cannot run: each has its own error, before any thread starts.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
    thread,
};

use corelane::placement::{Memory, probe};

const CORELANE: &str = env!("CARGO_BIN_EXE_corelane");
const REFUSE_CALL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/conformance/refuse_call.py"
);

/// What `corelane serve` says when it cannot start: one line on stderr, exit code 2.
fn refusal(command: &mut Command) -> String {
    refusal_with(command, &[])
}

fn refusal_with(command: &mut Command, options: &[&str]) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .args(["serve", "--listen", "tcp://127.0.0.1:0"])
        .args(options)
        .output()
        .expect("can be run");
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(
        stdout.is_empty(),
        "it was ready: {}",
        String::from_utf8_lossy(&stdout)
    );
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

#[test]
fn too_little_memlock_is_an_error_with_its_remedy() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -l 64 && exec \"$0\" \"$@\"", CORELANE]);
    let text = refusal(&mut command);
    assert!(
        text.contains("65536 bytes of memory may be locked"),
        "{text}"
    );
    assert!(text.contains("ulimit -l 512"), "{text}");
}

/// From none to enough: it starts, or it says why not. libzmq would abort.
#[test]
fn too_few_descriptors_are_an_error_with_its_remedy() {
    for limit in (8..60).step_by(4) {
        let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, CORELANE]);
        let text = refusal(&mut command);
        assert!(text.contains("ulimit -n"), "{limit}: {text}");
    }
}

/// Each thread's stack takes address space, of which there is enough for some of them.
#[test]
fn too_many_blocking_threads_are_an_error_with_its_remedy() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("corelane.toml");
    std::fs::write(&config, "[blocking]\nthreads = 4096").expect("is written");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 1000000 && exec \"$0\" \"$@\"", CORELANE]);
    let options = ["--config", &config.display().to_string()];
    let text = refusal_with(&mut command, &options);
    assert!(text.contains("cannot start a thread"), "{text}");
    assert!(text.contains("blocking.threads"), "{text}");
}

fn can_refuse_calls() -> bool {
    let probe = Command::new("python3")
        .args([REFUSE_CALL, "io_uring_setup", "EPERM", "/bin/true"])
        .status();
    let can = probe.is_ok_and(|status| status.success());
    if !can {
        eprintln!("SKIPPED: this needs python3 and leave to set a seccomp filter");
    }
    can
}

#[test]
fn refused_io_uring_is_an_error_with_its_remedy() {
    if !can_refuse_calls() {
        return;
    }
    for (errno, remedy) in [
        ("EPERM", "kernel.io_uring_disabled"),
        ("ENOSYS", "Linux 5.8"),
        ("ENOMEM", "ulimit -l"),
    ] {
        let mut command = Command::new("python3");
        command.args([REFUSE_CALL, "io_uring_setup", errno, CORELANE]);
        let text = refusal(&mut command);
        assert!(text.contains("io_uring is refused"), "{errno}: {text}");
        assert!(text.contains(remedy), "{errno}: {text}");
    }
}

/// A command in a namespace of its own, where `/sys` gives the last of these CPUs a NUMA node to
/// itself. The kernel knows better: to it, that node has no memory.
fn on_two_nodes(cpus: &[usize]) -> Option<Command> {
    let (last, rest) = cpus.split_last()?;
    let script = "mount -t tmpfs none /sys/devices/system/node || exit 77
        cd /sys/devices/system/node && mkdir node0 node1 && echo 0-1 >online || exit 77
        echo $1 >node0/cpulist && echo $2 >node1/cpulist || exit 77
        shift 2; exec \"$@\"";
    let rest: Vec<String> = rest.iter().map(usize::to_string).collect();
    let command = || {
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", script, "sh"]);
        command.args([&rest.join(","), &last.to_string()]);
        command
    };
    let can = command().arg("true").output();
    if rest.is_empty() || !can.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: a second node takes a second CPU, and leave to mount in a namespace");
        return None;
    }
    // On a thread of its own: it keeps what is set.
    let set = thread::spawn(|| Memory::Local.apply());
    if let Err(error) = set.join().expect("no panic") {
        eprintln!("SKIPPED: the kernel refuses memory policies: {error}");
        return None;
    }
    Some(command())
}

#[test]
fn memory_that_cannot_be_bound_is_an_error_with_its_remedy() {
    let cpus = probe().expect("a topology").usable_ids();
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(&file, "[placement]\nmemory = \"bind\"\n").expect("written");
    let file = file.path().to_str().expect("a path of text");
    let list: Vec<String> = cpus.iter().map(usize::to_string).collect();
    let list = list.join(",");
    let options = ["--config", file, "--cpus", &list];
    let Some(mut command) = on_two_nodes(&cpus) else {
        return;
    };
    let text = refusal_with(command.arg(CORELANE), &options);
    let shard = cpus.len() - 1;
    let expected = format!("shard {shard}: its memory cannot be bound to NUMA node 1: ");
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains("cpuset.mems"), "{text}");

    let Some(mut command) = on_two_nodes(&cpus).filter(|_| can_refuse_calls()) else {
        return;
    };
    command.args(["python3", REFUSE_CALL, "set_mempolicy", "EPERM", CORELANE]);
    let text = refusal_with(&mut command, &options);
    assert!(text.contains("--cap-add SYS_NICE"), "{text}");
    assert!(text.contains("placement.memory = \"local\""), "{text}");
}

/// It starts, and says once that its preference is not heard.
#[test]
fn memory_that_cannot_be_preferred_is_one_line_of_the_log() {
    let cpus = probe().expect("a topology").usable_ids();
    let list: Vec<String> = cpus.iter().map(usize::to_string).collect();
    for (refused, lines) in [(false, 0), (true, 1)] {
        let Some(mut command) = on_two_nodes(&cpus).filter(|_| can_refuse_calls()) else {
            return;
        };
        if refused {
            command.args(["python3", REFUSE_CALL, "set_mempolicy", "EPERM"]);
        }
        let mut child = command
            .args([
                CORELANE,
                "serve",
                "--listen",
                "tcp://127.0.0.1:0",
                "--idle",
                "park",
            ])
            .args(["--cpus", &list.join(",")])
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("can be run");
        let mut ready = String::new();
        let stdout = child.stdout.take().expect("is piped");
        let read = BufReader::new(stdout).read_line(&mut ready);
        child.kill().expect("is a child");
        let output = child.wait_with_output().expect("has ended");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            read.is_ok() && ready.contains("\"ready\""),
            "{ready} {stderr}"
        );
        let told = stderr.matches("placement.memory").count();
        assert_eq!(told, lines, "{stderr}");
    }
}
