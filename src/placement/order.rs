//! The order in which a policy takes the usable CPUs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::Cpu;
use crate::config::Order;

/// The usable CPUs of one NUMA node, ascending.
struct Node<'a> {
    id: usize,
    package: usize,
    /// One CPU of each physical core: the lowest usable one.
    cores: Vec<&'a Cpu>,
    /// The others.
    siblings: Vec<&'a Cpu>,
}

/// All usable CPUs in the order of the policy; without a number of shards only one CPU of each
/// physical core, since two shards on one core each run at little more than half its speed.
///
/// `usable` ascends by id.
pub(super) fn by_policy<'a>(
    usable: &[&'a Cpu],
    order: Order,
    shards: Option<usize>,
) -> Vec<&'a Cpu> {
    let mut nodes = nodes(usable);
    if shards.is_none() {
        nodes.iter_mut().for_each(|node| node.siblings.clear());
    }
    match order {
        Order::Compact => compact(nodes, shards.unwrap_or(usize::MAX)),
        Order::Spread => spread(nodes),
    }
}

/// Node after node. The first is one that holds all shards if there is any, on physical cores if it
/// can; then those of the same socket, which are nearer than others.
fn compact<'a>(mut nodes: Vec<Node<'a>>, shards: usize) -> Vec<&'a Cpu> {
    let fit = |node: &Node<'_>| {
        let holds_on_cores = node.cores.len() >= shards;
        let holds = node.len() >= shards;
        // Where none holds all, the largest: fewer shards are then on another node. Where some do,
        // the lowest: a large node is not broken up because it is large.
        let size = if holds { 0 } else { node.len() };
        (!holds_on_cores, !holds, Reverse(size), node.id)
    };
    nodes.sort_by_key(fit);
    if let Some(home) = nodes.first().map(|node| node.package) {
        // Stable: the order above stays within the socket and without.
        nodes.sort_by_key(|node| node.package != home);
    }
    nodes
        .into_iter()
        .flat_map(|node| [node.cores, node.siblings].concat())
        .collect()
}

/// One CPU of each node in turn, until all cores are used; then likewise their siblings.
fn spread(nodes: Vec<Node<'_>>) -> Vec<&Cpu> {
    let (cores, siblings): (Vec<_>, Vec<_>) = nodes
        .into_iter()
        .map(|node| (node.cores, node.siblings))
        .unzip();
    [in_turn(&cores), in_turn(&siblings)].concat()
}

fn in_turn<'a>(groups: &[Vec<&'a Cpu>]) -> Vec<&'a Cpu> {
    let longest = groups.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest)
        .flat_map(|i| groups.iter().filter_map(move |group| group.get(i).copied()))
        .collect()
}

fn nodes<'a>(usable: &[&'a Cpu]) -> Vec<Node<'a>> {
    let by_id: HashMap<usize, &Cpu> = usable.iter().map(|cpu| (cpu.id, *cpu)).collect();
    // Siblings, not core numbers, say who shares a core: core numbers repeat across sockets, and on
    // some machines across dies of one socket.
    let is_sibling = |cpu: &Cpu| {
        cpu.smt_siblings
            .iter()
            .any(|sibling| *sibling < cpu.id && by_id.contains_key(sibling))
    };
    let mut nodes: BTreeMap<usize, Node<'a>> = BTreeMap::new();
    for &cpu in usable {
        let node = nodes.entry(cpu.numa_node).or_insert_with(|| Node {
            id: cpu.numa_node,
            package: cpu.package,
            cores: Vec::new(),
            siblings: Vec::new(),
        });
        match is_sibling(cpu) {
            true => node.siblings.push(cpu),
            false => node.cores.push(cpu),
        }
    }
    nodes.into_values().collect()
}

impl Node<'_> {
    fn len(&self) -> usize {
        self.cores.len() + self.siblings.len()
    }
}
