//! `corelane doctor`: on this machine, and on copies of `/proc` and `/sys` of a fit host and of one
//! that is not.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{corelane, error_line};

/// Four CPUs, of which 2 and 3 are set up for shards.
const FIT: &[(&str, &str)] = &[
    (
        "proc/self/status",
        "Name:\tcorelane\nCpus_allowed_list:\t0-3\n",
    ),
    (
        "proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max open files            65536                65536                files     \n\
         Max locked memory         unlimited            unlimited            bytes     \n",
    ),
    ("proc/self/cgroup", "0::/system.slice/corelane.service\n"),
    (
        "proc/interrupts",
        "            CPU0       CPU1       CPU2       CPU3       \n\
         \x20 9:          0          0          0          0   IO-APIC   9-fasteoi   acpi\n\
         \x2024:       1402       8061          3          0   PCI-MSI 524288-edge   eth0-TxRx-0\n\
         LOC:   92130112   90112131      10112      10113   Local timer interrupts\n",
    ),
    ("proc/irq/9/smp_affinity_list", "0-3\n"),
    ("proc/irq/24/smp_affinity_list", "0-1\n"),
    ("proc/irq/24/effective_affinity_list", "1\n"),
    ("proc/sys/kernel/io_uring_disabled", "0\n"),
    ("proc/sys/kernel/numa_balancing", "0\n"),
    ("proc/sys/net/core/busy_poll", "0\n"),
    ("proc/sys/net/core/busy_read", "0\n"),
    ("proc/sys/net/ipv4/tcp_congestion_control", "cubic\n"),
    (
        "proc/sys/net/ipv4/tcp_allowed_congestion_control",
        "reno cubic\n",
    ),
    ("sys/devices/system/cpu/present", "0-3\n"),
    ("sys/devices/system/cpu/online", "0-3\n"),
    ("sys/devices/system/cpu/isolated", "2-3\n"),
    ("sys/devices/system/cpu/nohz_full", "2-3\n"),
    (
        "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor",
        "performance\n",
    ),
    (
        "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor",
        "performance\n",
    ),
    (
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
        "tsc\n",
    ),
    ("sys/devices/system/node/online", "0-1\n"),
    ("sys/devices/system/node/node0/cpulist", "0-1\n"),
    ("sys/devices/system/node/node1/cpulist", "2-3\n"),
    (
        "sys/kernel/mm/transparent_hugepage/enabled",
        "always [madvise] never\n",
    ),
    (
        "sys/fs/cgroup/system.slice/corelane.service/cpu.max",
        "max 100000\n",
    ),
    (
        "sys/fs/cgroup/system.slice/corelane.service/memory.max",
        "max\n",
    ),
];

/// What the other host has instead: each check but those of the plan and of `busy-poll` warns.
const UNFIT: &[(&str, &str)] = &[
    (
        "proc/self/limits",
        "Max open files            256                  256                  files     \n\
         Max locked memory         65536                65536                bytes     \n",
    ),
    ("proc/irq/24/effective_affinity_list", "2\n"),
    ("proc/sys/kernel/io_uring_disabled", "2\n"),
    ("proc/sys/kernel/numa_balancing", "1\n"),
    ("proc/sys/net/ipv4/tcp_congestion_control", "bbr\n"),
    ("proc/sys/net/ipv4/tcp_allowed_congestion_control", "bbr\n"),
    ("sys/devices/system/cpu/isolated", "\n"),
    ("sys/devices/system/cpu/nohz_full", "(null)\n"),
    (
        "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor",
        "powersave\n",
    ),
    (
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
        "hpet\n",
    ),
    (
        "sys/kernel/mm/transparent_hugepage/enabled",
        "[always] madvise never\n",
    ),
    (
        "sys/fs/cgroup/system.slice/corelane.service/cpu.max",
        "150000 100000\n",
    ),
    (
        "sys/fs/cgroup/system.slice/corelane.service/memory.max",
        "268435456\n",
    ),
];

fn write(root: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let file = root.join(name);
        fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
        fs::write(file, text).expect("a file");
    }
}

fn host(trees: &[&[(&str, &str)]]) -> TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for files in trees {
        write(root.path(), files);
    }
    root
}

/// The JSON that `doctor` prints of a host whose CPUs 2 and 3 have shards.
fn report(root: &Path, options: &[&str], code: i32) -> Value {
    let root = root.to_str().expect("a path of text");
    let args = ["doctor", "--json", "--cpus", "2-3", "--root", root];
    let output = corelane(&[&args, options].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr, "");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn statuses(report: &Value) -> BTreeMap<&str, &str> {
    let checks = report["checks"].as_array().expect("checks");
    let status = |check: &'static str, of: &Value| of[check].as_str().map(str::len).is_some();
    assert!(
        checks
            .iter()
            .all(|of| status("found", of) && status("why", of)),
        "{report}"
    );
    let pairs = checks.iter().map(|check| {
        let status = check["status"].as_str().expect("a status");
        assert_eq!(check["remedy"].is_string(), status == "warn", "{check}");
        (check["name"].as_str().expect("a name"), status)
    });
    pairs.collect()
}

#[test]
fn a_fit_host_has_nothing_to_mend() {
    let root = host(&[FIT]);
    let report = report(root.path(), &["--strict"], 0);
    let statuses = statuses(&report);
    assert!(
        statuses.values().all(|status| *status == "ok"),
        "{statuses:?}"
    );
    assert!(statuses.len() >= 16, "{statuses:?}");
    assert_eq!(
        (&report["warnings"], &report["unknown"]),
        (&0.into(), &0.into())
    );
    assert_eq!(report["version"], 1);
    assert_eq!(report["topology"]["cpus"].as_array().map(Vec::len), Some(4));
    let place = serde_json::json!(
        {"shard": 1, "cpu": 3, "numa_node": 1, "memory": "local"}
    );
    assert_eq!(report["plan"]["shards"][1], place);
    assert_eq!(report["plan"]["helper_cpus"], serde_json::json!([0, 1]));
}

#[test]
fn what_is_unfit_is_warned_of_and_strict_says_so_by_its_code() {
    let root = host(&[FIT, UNFIT]);
    let report = report(root.path(), &[], 0);
    let statuses = statuses(&report);
    let is_fine = |name: &str| statuses[name] == "ok";
    let fine: Vec<&str> = statuses
        .keys()
        .copied()
        .filter(|name| is_fine(name))
        .collect();
    assert_eq!(fine, ["busy-poll", "oversubscription", "smt", "spare-cpu"]);
    assert!(
        statuses.values().all(|status| *status != "unknown"),
        "{statuses:?}"
    );
    let warnings = statuses.len() - fine.len();
    assert_eq!(report["warnings"], warnings);
    let strict = self::report(root.path(), &["--strict"], 1);
    assert_eq!(strict, report);
}

#[test]
fn a_host_that_does_not_say_is_not_guessed_at() {
    let root = host(&[&FIT[..1]]);
    let report = report(root.path(), &["--strict"], 0);
    let unknown = statuses(&report)
        .values()
        .filter(|status| **status == "unknown")
        .count();
    assert!(unknown >= 12, "{report}");
    assert_eq!(report["unknown"], unknown);
    let nothing = tempfile::tempdir().expect("a directory");
    let root = nothing.path().to_str().expect("a path of text");
    let line = error_line(&corelane(&["doctor", "--root", root]));
    assert!(line.contains("affinity mask"), "{line}");
}

#[test]
fn people_get_tables_and_commands() {
    let root = host(&[FIT, UNFIT]);
    let root = root.path().to_str().expect("a path of text");
    let output = corelane(&["doctor", "--cpus", "2-3", "--root", root]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for words in [
        "Machine",
        "other threads: CPUs 0-1",
        "WARN  interrupts          1 device interrupt on CPUs 2-3: 24 eth0-TxRx-0 3 times",
        "do:  tuning/apply.sh --cpus 2-3 --apply",
        "OK    spare-cpu",
        "13 warnings, 0 skipped, 4 OK",
    ] {
        assert!(text.contains(words), "{words}:\n{text}");
    }
}

/// Whatever it says of this machine, it can look at it.
#[test]
fn this_machine_is_looked_at() {
    let output = corelane(&["doctor", "--json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(statuses(&report)["io-uring"], "ok");
    assert!(
        !report["plan"]["shards"]
            .as_array()
            .expect("shards")
            .is_empty()
    );
    assert!(corelane(&["doctor"]).status.success());
}

/// What keeps `serve` from starting is the same error here.
#[test]
fn a_configuration_that_cannot_be_served_is_refused_alike() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let file = directory.path().join(name);
        fs::write(&file, text).expect("a file");
        file.into_os_string().into_string().expect("a path of text")
    };
    let key = file(
        "key.toml",
        "[placement]\npolicy = \"compact\"\nmemry = \"local\"\n",
    );
    let word = file("word.toml", "[placement]\nmemory = \"near\"\n");
    let shards = file("shards.toml", "\nshards = 8191\n");
    let ports = file(
        "ports.toml",
        "[listen]\nendpoints = [\"tcp://127.0.0.1:65536\"]\n",
    );
    for options in [
        &["--config", &key][..],
        &["--config", &word],
        &["--config", &shards],
        &["--config", &ports],
        &["--config", "/no/such/file.toml"],
        &["--cpus", "8191"],
        &["--cpus", "0,0"],
        &["--shards", "0"],
    ] {
        let refused = |command| error_line(&corelane(&[&[command], options].concat()));
        assert_eq!(refused("doctor"), refused("serve"), "{options:?}");
    }
}
