//! From which nodes shards have their memory: as planned, and as the kernel takes it.

use std::{io, thread};

use corelane::config::{MemoryPolicy, Order};
use corelane::placement::{Memory, Policy, Topology, plan};

use crate::{ODD_CPUSET, ONE_SOCKET_SMT, TWO_SOCKETS, policy, topology};

const NODES_IN_SOCKETS: &str = include_str!("../topologies/two-sockets-four-nodes-each.json");

/// Of four shards, one on each node in turn.
fn planned(json: &str, memory: MemoryPolicy) -> Vec<Memory> {
    let policy = Policy {
        memory,
        ..policy("auto", Order::Spread, 4)
    };
    let plan = plan(&topology(json), &policy).expect("a plan");
    plan.shards.iter().map(|place| place.memory).collect()
}

#[test]
fn each_shard_has_the_memory_of_its_node() {
    for (json, bound) in [
        (TWO_SOCKETS, [0, 1, 0, 1]),
        (NODES_IN_SOCKETS, [0, 1, 2, 3]),
    ] {
        assert_eq!(planned(json, MemoryPolicy::default()), [Memory::Local; 4]);
        assert_eq!(planned(json, MemoryPolicy::Bind), bound.map(Memory::Bind));
        assert_eq!(planned(json, MemoryPolicy::Inherit), [Memory::Inherit; 4]);
    }
}

#[test]
fn on_one_node_there_is_nothing_to_choose() {
    for json in [ONE_SOCKET_SMT, ODD_CPUSET] {
        for memory in [MemoryPolicy::Local, MemoryPolicy::Bind] {
            assert_eq!(planned(json, memory), [Memory::Inherit; 4]);
        }
    }
    // Memory may lie on a node whose CPUs are forbidden, and on one whose CPUs are off it may not.
    let mut machine = topology(TWO_SOCKETS);
    machine
        .cpus
        .iter_mut()
        .for_each(|cpu| cpu.allowed = cpu.numa_node == 0);
    let memory = |machine: &Topology| {
        let plan = plan(machine, &Policy::default()).expect("a plan");
        plan.shards[0].memory
    };
    assert_eq!(memory(&machine), Memory::Local);
    machine
        .cpus
        .iter_mut()
        .for_each(|cpu| cpu.online = cpu.numa_node == 0);
    assert_eq!(memory(&machine), Memory::Inherit);
}

/// On a thread of its own, and on any machine: node 0 is always there.
#[test]
fn what_is_set_is_read_back() {
    let set_and_read = || {
        let read = |memory: Memory| memory.apply().and_then(|()| Memory::current());
        Ok([
            read(Memory::Local)?,
            read(Memory::Bind(0))?,
            read(Memory::Inherit)?,
        ])
    };
    let read: io::Result<_> = thread::spawn(set_and_read).join().expect("no panic");
    match read {
        // To inherit is to leave what is there.
        Ok(read) => {
            let expected = [Memory::Local, Memory::Bind(0), Memory::Bind(0)];
            assert_eq!(read, expected.map(Some));
        }
        Err(error) => eprintln!("SKIPPED: the kernel refuses memory policies: {error}"),
    }
}

#[test]
fn a_node_that_is_not_there_is_refused() {
    for node in [1_023, 1_024, usize::MAX] {
        let bound = thread::spawn(move || Memory::Bind(node).apply());
        let error = bound.join().expect("no panic").expect_err("no such node");
        // Or the kernel refuses the call itself.
        let is_refusal = matches!(
            error.kind(),
            io::ErrorKind::InvalidInput
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::Unsupported
        );
        assert!(is_refusal, "{node}: {error}");
    }
}
