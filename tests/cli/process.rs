//! `corelane` as a child process that does not outlive its test.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;

/// Far beyond what anything here takes, on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const LOOKED_EVERY: Duration = Duration::from_millis(10);

/// The command with these arguments, and nothing of this environment that it listens to.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
    command.args(args).env_remove("RUST_LOG");
    command
}

/// Runs it to its end.
pub(crate) fn corelane(args: &[&str]) -> Output {
    command(args)
        .stdin(Stdio::null())
        .output()
        .expect("corelane can be run")
}

/// The one line that a refusal is, after it was held to its form.
pub(crate) fn error_line(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(output.stdout, b"", "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("corelane: "), "{stderr}");
    stderr.trim_end().to_owned()
}

/// All CPUs that this process may use, for `--cpus`: a shard on each.
pub(crate) fn all_cpus() -> String {
    let topology = corelane::placement::probe().expect("a topology");
    let cpus: Vec<String> = topology.usable_ids().iter().map(usize::to_string).collect();
    cpus.join(",")
}

pub(crate) fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("JSON")
}

/// `corelane serve`, killed when it is dropped.
pub(crate) struct Served {
    child: Process,
    stdout: BufReader<ChildStdout>,
    stderr: PathBuf,
    /// Its first line.
    pub(crate) ready: Value,
    directory: TempDir,
}

impl Served {
    /// One that listens at a free port and at a socket of its own besides what `args` say, and
    /// parks when it has nothing to do: tests share the machine.
    pub(crate) fn start(args: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let ipc = format!("ipc://{}", directory.path().join("socket").display());
        let listen = ["--listen", "tcp://127.0.0.1:0", "--listen", &ipc];
        Self::start_in(
            directory,
            &[&listen[..], &["--idle", "park"], args].concat(),
        )
    }

    /// One with these arguments alone.
    pub(crate) fn start_exactly(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), args)
    }

    fn start_in(directory: TempDir, args: &[&str]) -> Self {
        let stderr = directory.path().join("stderr");
        let mut child = command(&[&["serve"], args].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).expect("a file"))
            .spawn()
            .expect("corelane can be run");
        let mut stdout = BufReader::new(child.stdout.take().expect("is piped"));
        let child = Process(child);
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| {
            let stderr = std::fs::read_to_string(&stderr).unwrap_or_default();
            panic!("{error}: {line:?}: {stderr}")
        });
        Self {
            child,
            stdout,
            stderr,
            ready,
            directory,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// A place for the test's files.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The first endpoint of shard 0 with this scheme.
    pub(crate) fn endpoint(&self, scheme: &str) -> String {
        let endpoints = self.ready["endpoints"].as_array().expect("endpoints");
        let mut texts = endpoints.iter().filter_map(Value::as_str);
        let found = texts.find(|text| text.starts_with(scheme));
        found.expect("an endpoint of this scheme").to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Sends SIGTERM and waits for the last line, which must account for each message.
    pub(crate) fn stop(self) -> Value {
        self.signal(Signal::TERM);
        self.stopped()
    }

    /// Waits for the last line; the exit code must be 0.
    pub(crate) fn stopped(mut self) -> Value {
        let lines: Vec<String> = self.stdout.lines().map_while(Result::ok).collect();
        let status = self.child.wait();
        let stderr = std::fs::read_to_string(&self.stderr).unwrap_or_default();
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert_eq!(lines.len(), 1, "{lines:?}");
        let stopped: Value = serde_json::from_str(&lines[0]).expect("a line of JSON");
        let count = |key: &str| {
            stopped[key]
                .as_u64()
                .unwrap_or_else(|| panic!("{key} in {lines:?}"))
        };
        assert_eq!(stopped["event"], "stopped");
        let ended = count("handled") + count("nacked") + count("indeterminate") + count("lost");
        assert_eq!(count("accepted"), ended, "{stopped}");
        stopped
    }

    /// Waits for an end of any kind.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.0.try_wait().expect("a child").is_none()
    }
}

/// A child that is killed when it is dropped.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        // Not waited for yet, so the id is still its own.
        kill_process(pid.expect("a process id"), signal).expect("the child is there");
    }

    /// Waits for its end, not for ever.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(LOOKED_EVERY);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
