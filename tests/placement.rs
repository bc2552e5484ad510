//! Plans for machines that these tests do not run on. The topologies beside this file have the
//! shape that `probe()` gives on such machines.

#[path = "placement/machines.rs"]
mod machines;
#[path = "placement/memory.rs"]
mod memory;

use corelane::config::{Config, Cpus, MemoryPolicy, Order};
use corelane::error::{ConfigError, PlacementError};
use corelane::placement::{CoreKind, Place, Plan, Policy, Topology, place, place_on, plan, probe};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const ONE_SOCKET_SMT: &str = include_str!("topologies/one-socket-smt.json");
const TWO_SOCKETS: &str = include_str!("topologies/two-sockets-two-nodes.json");
const ODD_CPUSET: &str = include_str!("topologies/cpuset-of-odd-cpus.json");
const CPUS_OFFLINE: &str = include_str!("topologies/two-cpus-offline.json");
const ONE_CPU: &str = include_str!("topologies/one-cpu.json");

fn topology(json: &str) -> Topology {
    serde_json::from_str(json).expect("a topology")
}

fn policy(cpus: &str, order: Order, shards: impl Into<Option<usize>>) -> Policy {
    Policy {
        shards: shards.into(),
        cpus: cpus.parse().expect("a list"),
        order,
        ..Policy::default()
    }
}

fn oversubscribed(policy: Policy) -> Policy {
    Policy {
        oversubscribe: true,
        ..policy
    }
}

fn planned(json: &str, policy: &Policy) -> Plan {
    plan(&topology(json), policy).expect("a plan")
}

fn cpus(plan: &Plan) -> Vec<usize> {
    assert!(
        plan.shards
            .iter()
            .enumerate()
            .all(|(k, place)| place.shard == k),
        "{plan:?}"
    );
    plan.shards.iter().map(|place| place.cpu).collect()
}

fn refused(json: &str, policy: &Policy) -> PlacementError {
    plan(&topology(json), policy).expect_err("a refusal")
}

#[test]
fn physical_cores_come_before_their_siblings() {
    for order in [Order::Compact, Order::Spread] {
        let plan = planned(ONE_SOCKET_SMT, &policy("auto", order, 6));
        assert_eq!(cpus(&plan), [0, 1, 2, 3, 4, 5]);
        assert_eq!(plan.helper_cpus, [6, 7]);
    }
}

#[test]
fn without_a_number_each_physical_core_has_a_shard() {
    let plan = planned(ONE_SOCKET_SMT, &policy("auto", Order::Compact, None));
    assert_eq!(cpus(&plan), [0, 1, 2, 3]);
    assert_eq!(plan.helper_cpus, [4, 5, 6, 7]);
    let plan = planned(TWO_SOCKETS, &policy("auto", Order::Compact, None));
    assert_eq!(cpus(&plan), [0, 1, 2, 3, 4, 5, 6, 7]);
    let plan = planned(TWO_SOCKETS, &policy("auto", Order::Spread, None));
    assert_eq!(cpus(&plan), [0, 4, 1, 5, 2, 6, 3, 7]);
}

#[test]
fn compact_fills_a_node_and_its_siblings_before_the_next() {
    let plan = planned(TWO_SOCKETS, &policy("auto", Order::Compact, 6));
    assert_eq!(cpus(&plan), [0, 1, 2, 3, 8, 9]);
    assert!(plan.shards.iter().all(|place| place.numa_node == 0));
    let plan = planned(TWO_SOCKETS, &policy("auto", Order::Compact, 10));
    assert_eq!(cpus(&plan), [0, 1, 2, 3, 8, 9, 10, 11, 4, 5]);
    assert_eq!(plan.shards[9].numa_node, 1);
}

#[test]
fn compact_takes_the_node_that_holds_all_on_cores() {
    let mut machine = topology(TWO_SOCKETS);
    for cpu in &mut machine.cpus {
        // Two cores of node 0 are left: four shards fit there only with siblings.
        cpu.allowed = !matches!(cpu.id, 0 | 1 | 8 | 9);
    }
    let plan_of = |shards| plan(&machine, &policy("auto", Order::Compact, shards)).expect("a plan");
    assert_eq!(cpus(&plan_of(4)), [4, 5, 6, 7]);
    assert_eq!(cpus(&plan_of(2)), [2, 3]);
    assert_eq!(cpus(&plan_of(9))[..8], [4, 5, 6, 7, 12, 13, 14, 15]);
}

#[test]
fn spread_takes_each_node_in_turn_and_siblings_last() {
    let plan = planned(TWO_SOCKETS, &policy("auto", Order::Spread, 10));
    assert_eq!(cpus(&plan), [0, 4, 1, 5, 2, 6, 3, 7, 8, 12]);
    let nodes: Vec<usize> = plan.shards.iter().map(|place| place.numa_node).collect();
    assert_eq!(nodes, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
}

#[test]
fn a_list_keeps_its_order_and_may_have_more_than_the_shards() {
    let plan = planned(TWO_SOCKETS, &policy("12,3,0-1", Order::Spread, 3));
    assert_eq!(cpus(&plan), [12, 3, 0]);
    assert_eq!(plan.shards[0].numa_node, 1);
    assert_eq!(
        plan.helper_cpus,
        [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15]
    );
    assert_eq!(
        cpus(&planned(TWO_SOCKETS, &policy("9,8", Order::Compact, None))),
        [9, 8]
    );
}

#[test]
fn in_a_cpuset_the_core_counts_whichever_of_its_cpus_is_allowed() {
    let plan = planned(ODD_CPUSET, &policy("auto", Order::Compact, None));
    assert_eq!(cpus(&plan), [1, 3, 5, 7]);
    // None is left for the others, so they get all.
    assert_eq!(plan.helper_cpus, [1, 3, 5, 7]);
}

#[test]
fn offline_cpus_are_passed_over_and_their_siblings_are_not() {
    let with_3 = planned(CPUS_OFFLINE, &policy("auto", Order::Compact, None));
    assert_eq!(cpus(&with_3), [0, 1, 3]);
    assert_eq!(with_3.helper_cpus, [4, 5, 7]);
    let mut machine = topology(CPUS_OFFLINE);
    machine.cpus[3].online = false;
    let without_3 = plan(&machine, &policy("auto", Order::Compact, None)).expect("a plan");
    assert_eq!(cpus(&without_3), [0, 1, 7]);
}

#[test]
fn one_cpu_is_enough() {
    let plan = planned(ONE_CPU, &Policy::default());
    assert_eq!((cpus(&plan), plan.helper_cpus), (vec![0], vec![0]));
}

#[test]
fn with_leave_more_shards_than_cpus_start_over() {
    let with_leave =
        |cpus: &str, shards: Option<usize>| oversubscribed(policy(cpus, Order::Compact, shards));
    let plan = planned(ONE_SOCKET_SMT, &with_leave("auto", Some(10)));
    assert_eq!(cpus(&plan), [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]);
    // None is left over, so helpers get all.
    assert_eq!(plan.helper_cpus, [0, 1, 2, 3, 4, 5, 6, 7]);
    let plan = planned(TWO_SOCKETS, &with_leave("5,1", Some(5)));
    assert_eq!(cpus(&plan), [5, 1, 5, 1, 5]);
    assert_eq!(plan.shards[4].numa_node, 1);
    assert!(!plan.helper_cpus.contains(&1) && plan.helper_cpus.len() == 14);
    // A CPU that is listed twice has two shards, and the list is gone through before it repeats.
    let plan = planned(ONE_SOCKET_SMT, &with_leave("0,1,0", None));
    assert_eq!(cpus(&plan), [0, 1, 0]);
    // Leave changes nothing where there is enough.
    for shards in [None, Some(3)] {
        assert_eq!(
            planned(ONE_SOCKET_SMT, &with_leave("auto", shards)),
            planned(ONE_SOCKET_SMT, &policy("auto", Order::Compact, shards))
        );
    }
    // Leave to share is no leave for what is not there.
    let error = refused(ONE_SOCKET_SMT, &with_leave("0,8", None));
    assert!(matches!(error, PlacementError::Absent { cpu: 8, .. }));
    let nothing = Policy {
        cpus: Cpus::List(Vec::new()),
        ..oversubscribed(Policy::default())
    };
    assert_eq!(refused(ONE_CPU, &nothing), PlacementError::NoShards);
}

#[test]
fn each_refusal_has_its_own_error() {
    let list = |text| policy(text, Order::Compact, None);
    for (json, policy, words) in [
        (
            ONE_SOCKET_SMT,
            list("0,8"),
            "CPU 8 does not exist: this machine has 0-7",
        ),
        (
            CPUS_OFFLINE,
            list("2"),
            "CPU 2 is offline; name CPUs among 0-1,3-5,7, or switch it on",
        ),
        (
            ODD_CPUSET,
            list("1-2"),
            "CPU 2 is outside the affinity mask of this process; name CPUs among 1,3,5,7",
        ),
        (ONE_SOCKET_SMT, list("0,1,0"), "CPU 0 is named twice"),
        (
            ONE_SOCKET_SMT,
            policy("auto", Order::Spread, 9),
            "9 shards need as many CPUs, and there are 8 (0-7)",
        ),
        (
            ODD_CPUSET,
            policy("auto", Order::Compact, 5),
            "there are 4 (1,3,5,7)",
        ),
        (
            ONE_SOCKET_SMT,
            policy("4,5", Order::Compact, 3),
            "there are 2 (4-5); ask for at most 2 shards",
        ),
        (
            ONE_SOCKET_SMT,
            policy("auto", Order::Compact, 0),
            "0 shards run nothing",
        ),
        (
            r#"{"cpus":[]}"#,
            Policy::default(),
            "none of the machine's online CPUs (none)",
        ),
    ] {
        let shown = refused(json, &policy).to_string();
        assert!(shown.contains(words), "{shown}");
    }
    let mut machine = topology(ONE_SOCKET_SMT);
    machine.cpus.iter_mut().for_each(|cpu| cpu.allowed = false);
    let error = plan(&machine, &Policy::default()).expect_err("nothing allowed");
    assert_eq!(
        error,
        PlacementError::NoUsableCpu {
            online: "0-7".to_owned()
        }
    );
    let nothing = Policy {
        cpus: Cpus::List(Vec::new()),
        ..Policy::default()
    };
    assert_eq!(refused(ONE_CPU, &nothing), PlacementError::NoShards);
}

#[test]
fn what_probe_reads_survives_json_and_can_be_planned_for() {
    let machine = probe().expect("this machine");
    let json = serde_json::to_string(&machine).expect("JSON");
    assert_eq!(topology(&json), machine);
    let plan = plan(&machine, &Policy::default()).expect("a plan");
    assert!(
        cpus(&plan)
            .iter()
            .all(|cpu| machine.usable_ids().contains(cpu)),
        "{plan:?}"
    );
}

#[test]
fn a_cpu_that_cannot_be_had_is_an_error_of_its_line() {
    let config = Config::from_toml("shards = 1\n\n[placement]\ncpus = [8191]").expect("TOML");
    let error = place(&config.check().expect("possible on some machine")).expect_err("8192 CPUs");
    assert!(matches!(error, ConfigError::Placement { .. }), "{error:?}");
    assert_eq!(
        (error.line(), error.key()),
        (Some(4), Some("placement.cpus"))
    );
    assert!(
        error
            .to_string()
            .starts_with("<text>:4: placement.cpus: CPU 8191 does not exist"),
        "{error}"
    );

    let config = Config::from_toml("\nshards = 8191").expect("TOML");
    let error = place(&config.check().expect("possible on some machine")).expect_err("8191 shards");
    assert_eq!(
        (error.line(), error.key()),
        (Some(2), Some("shards")),
        "{error}"
    );
}

/// The path that `Runtime::start` takes, on machines that these tests do not run on.
#[test]
fn what_a_machine_refuses_is_an_error_of_its_line() {
    for (json, text, key, line) in [
        (
            CPUS_OFFLINE,
            "[placement]\ncpus = [0, 2]",
            "placement.cpus",
            2,
        ),
        (
            ODD_CPUSET,
            "[placement]\ncpus = \"1-2\"",
            "placement.cpus",
            2,
        ),
        (ONE_CPU, "[placement]\n\ncpus = [1]", "placement.cpus", 3),
        (ONE_CPU, "shards = 2", "shards", 1),
    ] {
        let settings = Config::from_toml(text).and_then(Config::check);
        let error = place_on(&topology(json), &settings.expect(text)).expect_err(text);
        assert!(matches!(error, ConfigError::Placement { .. }), "{error:?}");
        assert_eq!(
            (error.line(), error.key()),
            (Some(line), Some(key)),
            "{error}"
        );
    }
}

/// Topologies that no machine has: a plan that keeps its promises, or an error; never a panic.
#[test]
fn plans_keep_their_promises_on_random_topologies() {
    let seed = 0x706c_616e;
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut plans = 0;
    for round in 0..3_000 {
        let mut machine = topology(TWO_SOCKETS);
        for cpu in &mut machine.cpus {
            cpu.id = rng.random_range(0..20);
            cpu.numa_node = rng.random_range(0..4);
            cpu.package = rng.random_range(0..2);
            cpu.online = rng.random_ratio(4, 5);
            cpu.allowed = rng.random_ratio(4, 5);
            cpu.smt_siblings = (0..rng.random_range(0..3))
                .map(|_| rng.random_range(0..20))
                .collect();
            if rng.random_ratio(1, 4) {
                cpu.kind = CoreKind::Efficiency;
            }
        }
        let list = (0..rng.random_range(1..4))
            .map(|_| rng.random_range(0..20))
            .collect();
        let policy = Policy {
            shards: rng.random_bool(0.5).then(|| rng.random_range(0..12)),
            cpus: if rng.random_bool(0.3) {
                Cpus::List(list)
            } else {
                Cpus::Auto
            },
            order: [Order::Compact, Order::Spread, Order::PerNode][rng.random_range(0..3)],
            oversubscribe: rng.random_bool(0.3),
            memory: MemoryPolicy::default(),
        };
        let Ok(plan) = plan(&machine, &policy) else {
            continue;
        };
        plans += 1;
        let context = format!("seed {seed} round {round}: {policy:?} {plan:?}");
        let usable = machine.usable_ids();
        let mut distinct = cpus(&plan);
        distinct.sort_unstable();
        distinct.dedup();
        assert!(
            policy.oversubscribe || distinct.len() == plan.shards.len(),
            "{context}"
        );
        assert!(
            distinct
                .iter()
                .chain(&plan.helper_cpus)
                .all(|cpu| usable.contains(cpu)),
            "{context}"
        );
        assert!(
            !plan.helper_cpus.is_empty() && !plan.shards.is_empty(),
            "{context}"
        );
        if let (Cpus::Auto, Some(shards)) = (&policy.cpus, policy.shards) {
            // None is shared while another one is free.
            assert_eq!(distinct.len(), shards.min(usable.len()), "{context}");
        }
        if policy.cpus == Cpus::Auto {
            let node = |place: &Place| place.numa_node;
            let mut nodes: Vec<usize> = plan.shards.iter().map(node).collect();
            nodes.dedup();
            let changes = nodes.len();
            nodes.sort_unstable();
            nodes.dedup();
            // Numbered in a row, unless they start over.
            assert!(
                policy.order != Order::PerNode || policy.oversubscribe || nodes.len() == changes,
                "{context}"
            );
        }
        assert!(
            policy
                .shards
                .is_none_or(|shards| shards == plan.shards.len()),
            "{context}"
        );
    }
    assert!(plans > 500, "only {plans} plans");
}
