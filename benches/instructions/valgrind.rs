//! Runs this same program under callgrind, which counts every instruction.

use std::{env, process::Command};

use crate::workloads::{self, Workload};

/// The hidden argument by which a child knows what it is.
pub(crate) const CHILD: &str = "--child";
/// The two runs of a workload: their difference is free of start and warm-up. Both are multiples of
/// every batch times every number of shards.
const FEWER: u64 = 4_096;
const MORE: u64 = 12_288;

/// What valgrind says of itself, if it is there.
pub(crate) fn version() -> Option<String> {
    let output = Command::new("valgrind").arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| version.trim().to_owned())
}

/// Instructions per message, to a tenth. The error is a text for people.
pub(crate) fn instructions(workload: &Workload) -> Result<f64, String> {
    let fewer = collected(workload, FEWER)?;
    let more = collected(workload, MORE)?;
    let each = (more - fewer) as f64 / (MORE - FEWER) as f64;
    Ok((each * 10.0).round() / 10.0)
}

/// The shorter of the two runs in this process, uncounted.
///
/// # Panics
///
/// If it did not do what it was told.
pub(crate) fn run_here(workload: &Workload) {
    run(workload, FEWER);
}

/// The child: does what it is told.
///
/// # Panics
///
/// If it cannot.
pub(crate) fn be_counted(mut words: impl Iterator<Item = String>) {
    let name = words.next().expect("a name");
    let messages = words.next().expect("a number of messages");
    let workload = workloads::named(&name).expect("a workload's name");
    run(workload, messages.parse().expect("a number"));
}

fn run(workload: &Workload, messages: u64) {
    let done = (workload.run)(messages);
    assert_eq!(done, messages, "{}: messages done, and told", workload.name);
}

fn collected(workload: &Workload, messages: u64) -> Result<i64, String> {
    let program = env::current_exe().map_err(|error| format!("where am I? {error}"))?;
    let mut command = Command::new("valgrind");
    // Nobody's settings, in a file or in the environment, and the same for everybody to count.
    command.env_clear();
    if let Some(path) = env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.args(["--command-line-only=yes", "--tool=callgrind"]);
    command.arg("--callgrind-out-file=/dev/null").arg(program);
    // As many characters for each number.
    command.args([CHILD, workload.name, &format!("{messages:08}")]);
    let output = command.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    match said.lines().find_map(collected_in) {
        Some(count) if output.status.success() => Ok(count),
        _ => Err(format!(
            "{} under callgrind: {}\n{said}",
            workload.name, output.status
        )),
    }
}

/// The count in a line such as `==42== Collected : 1234567`.
fn collected_in(line: &str) -> Option<i64> {
    let (_, count) = line.split_once("Collected : ")?;
    count.trim().parse().ok()
}
