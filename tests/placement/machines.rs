//! The whole plan of each recorded machine under each policy. `tests/topologies/README.md` says
//! which machines they are.

use corelane::config::{Cpus, Order};
use corelane::placement::plan;

use crate::{ODD_CPUSET, ONE_SOCKET_SMT, cpus, oversubscribed, planned, policy, topology};

const INTERLEAVED: &str = include_str!("../topologies/two-sockets-interleaved.json");
const FOUR_SOCKETS: &str = include_str!("../topologies/four-sockets.json");
const NODES_IN_SOCKETS: &str = include_str!("../topologies/two-sockets-four-nodes-each.json");
const VM_192: &str = include_str!("../topologies/vm-of-192-cpus.json");
const HYBRID_SMT: &str = include_str!("../topologies/hybrid-smt.json");
const LITTLE_FIRST: &str = include_str!("../topologies/hybrid-little-first.json");

const ORDERS: [Order; 3] = [Order::Compact, Order::Spread, Order::PerNode];

/// The CPUs of the shards in their order, as a list of the configuration.
fn list(json: &str, order: Order, shards: Option<usize>) -> String {
    let plan = planned(json, &policy("auto", order, shards));
    let machine = topology(json);
    for place in &plan.shards {
        let cpu = machine.cpu(place.cpu).expect("a CPU of the machine");
        assert_eq!(place.numa_node, cpu.numa_node, "{place:?}");
    }
    Cpus::List(cpus(&plan)).to_string()
}

/// Without a number of shards, and with each of some numbers: compact, spread, per node.
#[track_caller]
fn assert_plans(json: &str, expected: &[(Option<usize>, [&str; 3])]) {
    for (shards, lists) in expected {
        for (order, expected) in ORDERS.into_iter().zip(lists) {
            let planned = list(json, order, *shards);
            assert_eq!(planned, *expected, "{order} {shards:?}");
        }
    }
}

#[test]
fn one_socket_with_smt() {
    assert_plans(
        ONE_SOCKET_SMT,
        &[
            (None, ["0-3"; 3]),
            (Some(2), ["0-1"; 3]),
            (Some(6), ["0-5"; 3]),
            (Some(8), ["0-7"; 3]),
        ],
    );
}

#[test]
fn two_sockets_whose_cpus_alternate() {
    let evens = "0,2,4,6,8,10,12,14,16,18,20,22,24,26";
    let odds = "1,3,5,7,9,11,13,15,17,19,21,23,25,27";
    let by_node = format!("{evens},{odds}");
    let with_siblings = format!("{evens},28,30");
    assert_plans(
        INTERLEAVED,
        &[
            (None, [&by_node, "0-27", &by_node]),
            (Some(1), ["0"; 3]),
            (Some(7), ["0,2,4,6,8,10,12", "0-6", "0,2,4,6,1,3,5"]),
            (
                Some(16),
                [
                    &with_siblings,
                    "0-15",
                    "0,2,4,6,8,10,12,14,1,3,5,7,9,11,13,15",
                ],
            ),
        ],
    );
    // 28 on one node, siblings included; a 29th on the other.
    let all = list(INTERLEAVED, Order::Compact, Some(29));
    assert!(all.starts_with(evens) && all.ends_with(",54,1"), "{all}");
}

#[test]
fn four_sockets() {
    assert_plans(
        FOUR_SOCKETS,
        &[
            (
                None,
                [
                    "0-31",
                    "0,8,16,24,1,9,17,25,2,10,18,26,3,11,19,27,4,12,20,28,5,13,21,29,6,14,22,30,\
                     7,15,23,31",
                    "0-31",
                ],
            ),
            (Some(3), ["0-2", "0,8,16", "0,8,16"]),
            (Some(6), ["0-5", "0,8,16,24,1,9", "0-1,8-9,16,24"]),
            (
                Some(12),
                [
                    "0-7,32-35",
                    "0,8,16,24,1,9,17,25,2,10,18,26",
                    "0-2,8-10,16-18,24-26",
                ],
            ),
        ],
    );
    let all = list(FOUR_SOCKETS, Order::Compact, Some(20));
    assert_eq!(all, "0-7,32-39,8-11");
    let shared = list(FOUR_SOCKETS, Order::PerNode, Some(34));
    assert_eq!(shared, "0-7,32,8-15,40,16-31");
}

#[test]
fn four_nodes_in_each_of_two_sockets() {
    assert_plans(
        NODES_IN_SOCKETS,
        &[
            (Some(4), ["0-3", "0,4,8,12", "0,4,8,12"]),
            (
                Some(10),
                [
                    "0-3,32-35,4-5",
                    "0,4,8,12,16,20,24,28,1,5",
                    "0-1,4-5,8,12,16,20,24,28",
                ],
            ),
        ],
    );
    for order in [Order::Compact, Order::PerNode] {
        assert_eq!(list(NODES_IN_SOCKETS, order, None), "0-31");
    }
    // The largest node first, then those of its socket.
    let mut machine = topology(NODES_IN_SOCKETS);
    for cpu in &mut machine.cpus {
        cpu.allowed = matches!(cpu.id, 8 | 9 | 20..=27 | 52..=59);
    }
    let plan = plan(&machine, &policy("auto", Order::Compact, 18)).expect("a plan");
    let list = Cpus::List(cpus(&plan)).to_string();
    assert_eq!(list, "20-23,52-55,24-27,56-59,8-9");
}

#[test]
fn a_large_virtual_machine() {
    let alternating = |shards| {
        let cpus = (0..48).flat_map(|k| [k, 48 + k]).take(shards);
        Cpus::List(cpus.collect()).to_string()
    };
    assert_plans(
        VM_192,
        &[
            (None, ["0-95", &alternating(96), "0-95"]),
            (Some(4), ["0-3", "0,48,1,49", "0-1,48-49"]),
            (Some(48), ["0-47", &alternating(48), "0-23,48-71"]),
        ],
    );
    let all = list(VM_192, Order::Compact, Some(100));
    assert_eq!(all, "0-47,96-143,48-51");
}

#[test]
fn a_cpuset_of_odd_cpus() {
    assert_plans(
        ODD_CPUSET,
        &[
            (None, ["1,3,5,7"; 3]),
            (Some(2), ["1,3"; 3]),
            (Some(4), ["1,3,5,7"; 3]),
        ],
    );
}

#[test]
fn performance_cores_come_first_and_siblings_last() {
    let fast = "0,2,4,6,8,10,12,14";
    let with_slow = format!("{fast},16-19");
    let with_siblings = format!("{fast},16-23,1,3,5,7");
    assert_plans(
        HYBRID_SMT,
        &[
            (None, [fast; 3]),
            (Some(3), ["0,2,4"; 3]),
            (Some(12), [&with_slow; 3]),
            (Some(20), [&with_siblings; 3]),
        ],
    );
    let plan = planned(HYBRID_SMT, &policy("auto", Order::Compact, None));
    assert_eq!(
        Cpus::List(plan.helper_cpus).to_string(),
        "1,3,5,7,9,11,13,15-23"
    );
    assert_plans(
        LITTLE_FIRST,
        &[
            (None, ["4-7"; 3]),
            (Some(6), ["4-7,0-1"; 3]),
            (Some(8), ["4-7,0-3"; 3]),
        ],
    );
}

/// Where there is nothing faster, each efficiency core has a shard.
#[test]
fn efficiency_cores_are_enough_if_there_are_no_others() {
    let mut machine = topology(LITTLE_FIRST);
    machine
        .cpus
        .iter_mut()
        .for_each(|cpu| cpu.allowed = cpu.id < 4);
    for order in ORDERS {
        let plan = plan(&machine, &policy("auto", order, None)).expect("a plan");
        assert_eq!(cpus(&plan), [0, 1, 2, 3], "{order}");
    }
    // A list is taken as it stands.
    let plan = planned(HYBRID_SMT, &policy("16,1,0", Order::Compact, None));
    assert_eq!(cpus(&plan), [16, 1, 0]);
}

#[test]
fn offline_and_forbidden_cpus_are_passed_over_under_each_policy() {
    let mut machine = topology(FOUR_SOCKETS);
    for cpu in &mut machine.cpus {
        cpu.online = cpu.id != 1;
        cpu.allowed = cpu.online && cpu.package < 2;
    }
    for (order, expected) in ORDERS.into_iter().zip(["0,2-4", "0,8,2,9", "0,2,8-9"]) {
        let plan = plan(&machine, &policy("auto", order, 4)).expect("a plan");
        assert_eq!(Cpus::List(cpus(&plan)).to_string(), expected, "{order}");
    }
    // Without CPU 1 its sibling stands for the core.
    let all = plan(&machine, &policy("auto", Order::PerNode, None)).expect("a plan");
    assert_eq!(Cpus::List(cpus(&all)).to_string(), "0,2-7,33,8-15");
}

#[test]
fn by_leave_each_policy_starts_over_in_its_own_order() {
    let machine = topology(FOUR_SOCKETS);
    for order in ORDERS {
        let policy = oversubscribed(policy("auto", order, 70));
        let plan = plan(&machine, &policy).expect("a plan");
        let cpus = cpus(&plan);
        assert_eq!(cpus[..6], cpus[64..], "{order}");
        let mut once = cpus[..64].to_vec();
        once.sort_unstable();
        assert_eq!(once, machine.usable_ids(), "{order}");
    }
}
