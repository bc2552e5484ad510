//! What stands in `tuning/`: profiles that parse, and a script that takes back what it did.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use corelane::Config;
use tempfile::TempDir;

const TUNING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tuning");

#[test]
fn each_profile_is_a_configuration_with_its_reasons() {
    let profiles = ["latency.toml", "throughput.toml", "shared-host.toml"];
    for name in profiles {
        let file = Path::new(TUNING).join(name);
        let config = Config::from_file(&file).expect(name);
        assert_ne!(config, Config::default(), "{name}");
        config.check().expect(name);
        let text = fs::read_to_string(file).expect(name);
        let lines: Vec<&str> = text.lines().collect();
        for (before, line) in lines.iter().zip(&lines[1..]) {
            let is_key = line.contains(" = ") && !line.starts_with('#');
            assert!(!is_key || before.starts_with("# "), "{name}: {line}");
        }
    }
    let readme = fs::read_to_string(Path::new(TUNING).join("README.md")).expect("a page");
    for name in profiles.iter().chain(&["apply.sh"]) {
        assert!(readme.contains(name), "{name}");
    }
}

/// Four CPUs on two nodes, and nothing as shards on 2 and 3 would have it.
const HOST: &[(&str, &str)] = &[
    ("proc/irq/24/smp_affinity_list", "0-3"),
    ("proc/irq/25/smp_affinity_list", "2"),
    ("proc/irq/26/smp_affinity_list", "0-1"),
    ("proc/sys/kernel/numa_balancing", "1"),
    ("sys/devices/system/cpu/online", "0-3"),
    (
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor",
        "powersave",
    ),
    (
        "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor",
        "powersave",
    ),
    (
        "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor",
        "performance",
    ),
    ("sys/devices/system/cpu/cpu2/cpuidle/state1/latency", "2"),
    ("sys/devices/system/cpu/cpu2/cpuidle/state1/disable", "0"),
    ("sys/devices/system/cpu/cpu2/cpuidle/state3/latency", "133"),
    ("sys/devices/system/cpu/cpu2/cpuidle/state3/disable", "0"),
    ("sys/devices/system/node/online", "0-1"),
    (
        "sys/kernel/mm/transparent_hugepage/enabled",
        "[always] madvise never",
    ),
];

/// What it changes there for shards on CPUs 2 and 3. The kernel marks the word that holds; a test's
/// file does not.
const CHANGED: &[(&str, &str)] = &[
    ("proc/irq/24/smp_affinity_list", "0,1"),
    ("proc/irq/25/smp_affinity_list", "0,1"),
    ("proc/sys/kernel/numa_balancing", "0"),
    (
        "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor",
        "performance",
    ),
    ("sys/kernel/mm/transparent_hugepage/enabled", "madvise"),
];

struct Host {
    directory: TempDir,
}

impl Host {
    /// `None`, and said so, where there is no bash.
    fn new() -> Option<Self> {
        if Command::new("bash").arg("--version").output().is_err() {
            eprintln!("SKIPPED: tuning/apply.sh needs bash");
            return None;
        }
        let host = Self {
            directory: tempfile::tempdir().expect("a directory"),
        };
        for (name, text) in HOST {
            let file = host.root().join(name);
            fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
            fs::write(file, format!("{text}\n")).expect("a file");
        }
        Some(host)
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("lib/corelane-tuning/state")
    }

    fn recorded(&self) -> Option<String> {
        fs::read_to_string(self.state()).ok()
    }

    fn output(&self, args: &[&str]) -> Output {
        Command::new("bash")
            .arg(Path::new(TUNING).join("apply.sh"))
            .args(args)
            .arg("--root")
            .arg(self.root())
            .arg("--state")
            .arg(self.state())
            .output()
            .expect("bash can be run")
    }

    /// What it prints when it has done what it should.
    fn run(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && stderr.is_empty(),
            "{args:?}: {stderr}"
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn files(&self) -> BTreeMap<&'static str, String> {
        let read = |name: &&'static str| {
            let text = fs::read_to_string(self.root().join(name)).expect("a file");
            (*name, text.trim_end().to_owned())
        };
        HOST.iter().map(|(name, _)| name).map(read).collect()
    }

    fn expected(changed: &[(&'static str, &str)]) -> BTreeMap<&'static str, String> {
        let all = HOST.iter().chain(changed);
        all.map(|(name, text)| (*name, (*text).to_owned()))
            .collect()
    }
}

#[test]
fn without_apply_it_only_says_what_it_would_do() {
    let Some(host) = Host::new() else { return };
    let said = host.run(&["--cpus", "2-3"]);
    assert_eq!(host.files(), Host::expected(&[]));
    assert_eq!(host.recorded(), None);
    assert_eq!(said.lines().count(), CHANGED.len() + 1, "{said}");
    for (name, text) in CHANGED {
        let line = said.lines().find(|line| line.contains(name)).expect(name);
        assert!(line.starts_with("would set /"), "{line}");
        assert!(line.ends_with(&format!("-> {text}")), "{line}");
    }
    assert!(
        said.ends_with("nothing was changed: --apply does it\n"),
        "{said}"
    );
}

#[test]
fn what_is_applied_is_applied_once_and_taken_back() {
    let Some(host) = Host::new() else { return };
    let said = host.run(&["--cpus", "2-3", "--apply"]);
    assert_eq!(host.files(), Host::expected(CHANGED), "{said}");
    let recorded = host.recorded().expect("a record");
    assert_eq!(recorded.lines().count(), CHANGED.len(), "{recorded}");

    // Again, and for fewer CPUs: nothing is left to do, and the record stays.
    for cpus in ["2-3", "2"] {
        let said = host.run(&["--cpus", cpus, "--apply"]);
        assert_eq!(said, "all is as it should be\n");
    }
    // For more: what is recorded of the first time stays, too.
    host.run(&["--cpus", "1-3", "--apply"]);
    let more = host.recorded().expect("a record");
    assert!(
        more.starts_with(&recorded) && more.len() > recorded.len(),
        "{more}"
    );

    host.run(&["--revert"]);
    let thp = [("sys/kernel/mm/transparent_hugepage/enabled", "always")];
    assert_eq!(host.files(), Host::expected(&thp));
    assert_eq!(host.recorded(), None);
    let said = host.run(&["--revert"]);
    assert!(said.starts_with("nothing is recorded"), "{said}");
}

#[test]
fn idle_states_are_left_alone_unless_it_is_told() {
    let Some(host) = Host::new() else { return };
    host.run(&["--cpus", "2", "--apply", "--shallow-idle"]);
    let mut changed = CHANGED.to_vec();
    // Without its shard CPU 3 serves devices, too.
    for interrupt in &mut changed[..2] {
        interrupt.1 = "0,1,3";
    }
    changed.push(("sys/devices/system/cpu/cpu2/cpuidle/state3/disable", "1"));
    assert_eq!(host.files(), Host::expected(&changed));
    host.run(&["--revert"]);
    assert_eq!(
        host.files()["sys/devices/system/cpu/cpu2/cpuidle/state3/disable"],
        "0"
    );
}

#[test]
fn interrupts_stay_where_shards_have_every_cpu() {
    let Some(host) = Host::new() else { return };
    let said = host.run(&["--cpus", "0-3", "--apply"]);
    assert!(said.contains("interrupts stay where they are"), "{said}");
    assert_eq!(host.files()["proc/irq/24/smp_affinity_list"], "0-3");
}

/// A file that refuses: the rest is done, the exit code says so, and nothing false is recorded.
#[test]
fn what_cannot_be_set_is_said_and_not_recorded() {
    let Some(host) = Host::new() else { return };
    let managed = host.root().join("proc/irq/99/smp_affinity_list");
    fs::create_dir_all(managed.parent().expect("a parent")).expect("a directory");
    // The kernel lets nobody write it, and it has CPU 0 on any machine that tests run on.
    symlink("/sys/devices/system/cpu/online", managed).expect("a link");
    let online = fs::read_to_string("/sys/devices/system/cpu/online").expect("a file");
    let output = host.output(&["--cpus", "0", "--apply"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{online}: {stderr}");
    assert!(
        stderr.contains("cannot set /proc/irq/99/smp_affinity_list"),
        "{stderr}"
    );
    let recorded = host.recorded().expect("a record");
    assert!(!recorded.contains("/proc/irq/99"), "{recorded}");
    assert_eq!(host.files()["proc/irq/24/smp_affinity_list"], "1,2,3");
}

#[test]
fn what_it_does_not_know_it_refuses() {
    let Some(host) = Host::new() else { return };
    for (args, says) in [
        (
            &["--cpus", "2", "--aply"][..],
            "there is no argument --aply",
        ),
        (&["2-3"], "there is no argument 2-3"),
        (&[], "--cpus must name the shards' CPUs"),
        (&["--cpus", "2-x"], "2-x is no list of CPUs"),
        (&["--cpus", "0,3-2"], "0,3-2 is no list of CPUs"),
        (&["--cpus", "3-4"], "these CPUs are not online: 4"),
        (&["--apply", "--revert"], "contradict each other"),
        (
            &["--revert", "--cpus", "2"],
            "takes back all that is recorded",
        ),
    ] {
        let output = host.output(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(says), "{args:?}: {stderr}");
        assert_eq!(host.files(), Host::expected(&[]), "{args:?}");
    }
    let help = host.run(&["--help"]);
    assert!(help.contains("--revert"), "{help}");
}
