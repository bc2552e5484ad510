//! Each check on a host that is fit, on one that is not, and on one that does not say.

use corelane::{
    config::Policy,
    placement::{Plan, Topology, plan},
};

use super::{
    cgroup::Cgroup,
    checks::{self, Case, Check, Intent, Status},
    facts::{Facts, Interrupt, IoUring, Limit},
};

const ONE_SOCKET_SMT: &str = include_str!("../../../../tests/topologies/one-socket-smt.json");
const TWO_SOCKETS: &str = include_str!("../../../../tests/topologies/two-sockets-two-nodes.json");

const INTENT: Intent = Intent {
    is_native: true,
    is_remote: false,
    buffered_bytes_max: 256 << 20,
};

fn topology(json: &str) -> Topology {
    serde_json::from_str(json).expect("a topology")
}

/// Four cores with siblings; CPUs 2 and 3, which the tests plan for, are set up for shards.
fn fit() -> Facts {
    Facts {
        topology: topology(ONE_SOCKET_SMT),
        locked_memory: Some(Limit::Unlimited),
        open_files: Some(Limit::AtMost(65_536)),
        io_uring: IoUring::Works,
        governors: (0..8).map(|cpu| (cpu, "performance".to_owned())).collect(),
        isolated: Some(vec![2, 3]),
        tickless: Some(vec![2, 3]),
        interrupts: Some(vec![interrupt(9, &[0, 1], 77)]),
        huge_pages: Some("madvise".to_owned()),
        busy_read_us: Some(50),
        busy_poll_us: Some(50),
        clock_source: Some("tsc".to_owned()),
        numa_balancing: Some(0),
        congestion_control: Some("cubic".to_owned()),
        congestion_allowed: vec!["reno".to_owned(), "cubic".to_owned()],
        cgroup: Some(Cgroup::default()),
    }
}

fn interrupt(number: u64, cpus: &[usize], count: u64) -> Interrupt {
    Interrupt {
        number,
        source: format!("eth0-{number}"),
        cpus: cpus.to_vec(),
        counts: (0..8).map(|cpu| (cpu, count)).collect(),
    }
}

fn planned(facts: &Facts, cpus: &str) -> Plan {
    let policy = Policy {
        cpus: cpus.parse().expect("a list"),
        oversubscribe: true,
        ..Policy::default()
    };
    plan(&facts.topology, &policy).expect("a plan")
}

fn checked(facts: &Facts, cpus: &str, intent: Intent) -> Vec<Check> {
    let plan = planned(facts, cpus);
    checks::all(&Case {
        facts,
        plan: &plan,
        intent,
    })
}

#[track_caller]
fn assert_check(
    name: &str,
    status: Status,
    says: &str,
    (cpus, intent): (&str, Intent),
    change: impl FnOnce(&mut Facts),
) {
    let mut facts = fit();
    change(&mut facts);
    let checks = checked(&facts, cpus, intent);
    let check = checks.iter().find(|check| check.name == name);
    let check = check.expect("a check of this name");
    let shown = format!(
        "{} {}",
        check.found,
        check.remedy.as_deref().unwrap_or_default()
    );
    assert_eq!(check.status, status, "{shown}");
    assert!(shown.contains(says), "{shown}");
    assert_eq!(check.remedy.is_some(), status == Status::Warn, "{shown}");
    if cpus == PLANNED.0 {
        let is_other = |other: &&Check| other.name != name && other.status == Status::Warn;
        let other = checks.iter().find(is_other);
        assert_eq!(other, None, "one cause, one warning");
    }
}

const PLANNED: (&str, Intent) = ("2-3", INTENT);

#[track_caller]
fn assert_fine(name: &str, says: &str, change: impl FnOnce(&mut Facts)) {
    assert_check(name, Status::Ok, says, PLANNED, change);
}

#[track_caller]
fn assert_warns(name: &str, says: &str, change: impl FnOnce(&mut Facts)) {
    assert_check(name, Status::Warn, says, PLANNED, change);
}

#[track_caller]
fn assert_unknown(name: &str, change: impl FnOnce(&mut Facts)) {
    assert_check(name, Status::Unknown, "", PLANNED, change);
}

#[test]
fn a_fit_host_has_nothing_to_mend_and_a_silent_one_says_so() {
    let checks = checked(&fit(), "2-3", INTENT);
    assert!(
        checks.iter().all(|check| check.status == Status::Ok),
        "{checks:?}"
    );
    let mut names: Vec<&str> = checks.iter().map(|check| check.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), checks.len(), "names are unique");

    let silent = Facts {
        topology: topology(TWO_SOCKETS),
        ..Facts::default()
    };
    let checks = checked(&silent, "2-3", INTENT);
    let known: Vec<&str> = checks
        .iter()
        .filter(|check| check.status != Status::Unknown)
        .map(|check| check.name)
        .collect();
    // These are the plan's, which there always is.
    assert_eq!(known, ["oversubscription", "smt", "spare-cpu"]);
}

#[test]
fn io_uring() {
    let name = "io-uring";
    assert_fine(name, "can be made", |_| {});
    assert_fine(name, "is 0", |facts| facts.io_uring = IoUring::Setting(0));
    assert_warns(name, "sysctl -w kernel.io_uring_disabled=0", |facts| {
        facts.io_uring = IoUring::Setting(2);
    });
    assert_warns(name, "io_uring is refused", |facts| {
        facts.io_uring = IoUring::Refused("io_uring is refused".to_owned());
    });
    assert_unknown(name, |facts| facts.io_uring = IoUring::Unknown);
}

#[test]
fn limits_of_the_process() {
    assert_fine("locked-memory", "8 MiB", |facts| {
        facts.locked_memory = Some(Limit::AtMost(8 << 20));
    });
    assert_warns("locked-memory", "ulimit -l", |facts| {
        facts.locked_memory = Some(Limit::AtMost(64 << 10));
    });
    assert_unknown("locked-memory", |facts| facts.locked_memory = None);
    assert_fine("open-files", "unlimited", |facts| {
        facts.open_files = Some(Limit::Unlimited)
    });
    assert_warns("open-files", "ulimit -n", |facts| {
        facts.open_files = Some(Limit::AtMost(1_024));
    });
    assert_warns("open-files", "leaves 0", |facts| {
        facts.open_files = Some(Limit::AtMost(9))
    });
    assert_unknown("open-files", |facts| facts.open_files = None);
}

#[test]
fn control_groups() {
    let group = |change: fn(&mut Cgroup)| {
        move |facts: &mut Facts| change(facts.cgroup.as_mut().expect("is there"))
    };
    assert_fine(
        "cpu-quota",
        "2.00 CPUs",
        group(|group| group.quota_cpus = Some(2.0)),
    );
    assert_warns(
        "cpu-quota",
        "1.50 CPUs",
        group(|group| group.quota_cpus = Some(1.5)),
    );
    assert_fine(
        "memory-limit",
        "512 MiB",
        group(|group| group.memory_bytes = Some(1 << 30)),
    );
    assert_warns(
        "memory-limit",
        "limits.buffered_bytes_max",
        group(|group| group.memory_bytes = Some(300 << 20)),
    );
    for name in ["cpu-quota", "memory-limit"] {
        assert_fine(name, "none", |_| {});
        assert_unknown(name, |facts| facts.cgroup = None);
    }
}

#[test]
fn what_is_planned() {
    let warns = |name, says, cpus| {
        assert_check(name, Status::Warn, says, (cpus, INTENT), |_| {});
    };
    warns("oversubscription", "2 shards on 1 CPU", "2,2");
    warns("smt", "shards on CPUs 2,6 share cores", "2,6");
    warns("spare-cpu", "every CPU", "0-7");
    assert_fine("oversubscription", "2 shards on 2 CPUs", |_| {});
    assert_fine("smt", "CPUs 6-7 shares one", |_| {});
    assert_fine("smt", "its core to itself", |facts| {
        for cpu in &mut facts.topology.cpus[4..] {
            (cpu.online, cpu.allowed) = (false, false);
        }
    });
    assert_fine("spare-cpu", "CPUs 0-1,4-7", |_| {});
}

#[test]
fn isolation_and_the_tick() {
    assert_warns("isolation", "isolcpus=2-3", |facts| {
        facts.isolated = Some(vec![3])
    });
    assert_fine("isolation", "in no other group", |facts| {
        facts.isolated = Some(vec![]);
        facts.cgroup.as_mut().expect("is there").owns_cpus = true;
    });
    assert_unknown("isolation", |facts| facts.isolated = None);
    assert_warns("tick", "CPUs 2 have one", |facts| {
        facts.tickless = Some(vec![3])
    });
    assert_unknown("tick", |facts| facts.tickless = None);
}

#[test]
fn interrupts() {
    let name = "interrupts";
    assert_fine(name, "no device", |_| {});
    // Routed there, but never raised; raised there, but routed away since.
    assert_fine(name, "no device", |facts| {
        facts.interrupts = Some(vec![interrupt(1, &[2], 0), interrupt(2, &[1], 5)]);
    });
    assert_warns(name, "tuning/apply.sh --cpus 2-3 --apply", |facts| {
        facts.interrupts = Some(vec![interrupt(1, &[2], 5)]);
    });
    // The busiest first, and no more than three.
    let busy = "4 device interrupts on CPUs 2-3: 4 eth0-4 8 times, 3 eth0-3 6 times, \
                2 eth0-2 2 times, …";
    assert_warns(name, busy, |facts| {
        facts.interrupts = Some(vec![
            interrupt(1, &[2], 1),
            interrupt(2, &[0, 2], 2),
            interrupt(3, &[2, 3], 3),
            interrupt(4, &[2, 3], 4),
        ]);
    });
    assert_unknown(name, |facts| facts.interrupts = None);
    let intent = ("0-7", INTENT);
    assert_check(
        name,
        Status::Warn,
        "there is none to move them to",
        intent,
        |_| {},
    );
}

#[test]
fn settings_of_the_host() {
    assert_warns("governor", "powersave on CPUs 3", |facts| {
        facts.governors.insert(3, "powersave".to_owned());
    });
    // Another CPU's is its own business.
    assert_fine("governor", "performance", |facts| {
        facts.governors.insert(0, "powersave".to_owned());
    });
    assert_unknown("governor", |facts| facts.governors.clear());

    assert_warns("huge-pages", "always", |facts| {
        facts.huge_pages = Some("always".to_owned())
    });
    assert_unknown("huge-pages", |facts| facts.huge_pages = None);

    assert_fine("clock", "kvm-clock", |facts| {
        facts.clock_source = Some("kvm-clock".to_owned())
    });
    assert_warns("clock", "clocksource=tsc", |facts| {
        facts.clock_source = Some("hpet".to_owned());
    });
    assert_unknown("clock", |facts| facts.clock_source = None);
}

#[test]
fn numa_balancing_matters_where_there_are_nodes() {
    let name = "numa-balancing";
    assert_fine(name, "one node", |facts| facts.numa_balancing = Some(1));
    let on = |nodes: usize, setting| {
        move |facts: &mut Facts| {
            facts.topology.cpus[0].numa_node = nodes - 1;
            facts.numa_balancing = setting;
        }
    };
    assert_warns(name, "on, on 2 nodes", on(2, Some(1)));
    assert_fine(name, "off, on 2 nodes", on(2, Some(0)));
    assert_unknown(name, on(2, None));
}

#[test]
fn congestion_control_is_left_where_it_can_be() {
    let name = "congestion-control";
    let bbr = |facts: &mut Facts| facts.congestion_control = Some("bbr".to_owned());
    assert_fine(name, "the native engine takes cubic", bbr);
    let libzmq = Intent {
        is_native: false,
        ..INTENT
    };
    assert_check(name, Status::Warn, "cubic", ("2-3", libzmq), bbr);
    assert_warns(name, "ipc://", |facts| {
        bbr(facts);
        facts.congestion_allowed = vec!["bbr".to_owned()];
    });
    assert_unknown(name, |facts| facts.congestion_control = None);
}

#[test]
fn busy_polling_matters_to_those_who_listen_beyond_the_host() {
    let name = "busy-poll";
    let zero = |facts: &mut Facts| facts.busy_read_us = Some(0);
    assert_fine(name, "nothing listens beyond", zero);
    let remote = Intent {
        is_remote: true,
        ..INTENT
    };
    assert_check(name, Status::Warn, "busy_read=50", ("2-3", remote), zero);
    assert_check(name, Status::Ok, "busy_read = 50", ("2-3", remote), |_| {});
    assert_unknown(name, |facts| facts.busy_poll_us = None);
}
