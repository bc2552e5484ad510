//! Environments in which a shard cannot run: each has its own error, before any thread starts.

use std::{
    path::Path,
    process::{Command, Output},
};

const CORELANE: &str = env!("CARGO_BIN_EXE_corelane");

/// What `corelane serve` says when it cannot start: one line on stderr, exit code 2.
fn refusal(command: &mut Command, args: &[&str]) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .args(["serve", "--listen", "tcp://127.0.0.1:0"])
        .args(args)
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
    let text = refusal(&mut command, &[]);
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
        let text = refusal(&mut command, &[]);
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
    let text = refusal(&mut command, &["--config", &config.display().to_string()]);
    assert!(text.contains("cannot start a thread"), "{text}");
    assert!(text.contains("blocking.threads"), "{text}");
}

#[test]
fn refused_io_uring_is_an_error_with_its_remedy() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/refuse_io_uring.py");
    let probe = Command::new("python3")
        .arg(&script)
        .args(["EPERM", "/bin/true"])
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: this needs python3 and leave to set a seccomp filter");
        return;
    }
    for (errno, remedy) in [
        ("EPERM", "kernel.io_uring_disabled"),
        ("ENOSYS", "Linux 5.8"),
        ("ENOMEM", "ulimit -l"),
    ] {
        let mut command = Command::new("python3");
        command.arg(&script).args([errno, CORELANE]);
        let text = refusal(&mut command, &[]);
        assert!(text.contains("io_uring is refused"), "{errno}: {text}");
        assert!(text.contains(remedy), "{errno}: {text}");
    }
}
