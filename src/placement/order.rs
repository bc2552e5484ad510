//! The order in which a policy takes the usable CPUs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::{CoreKind, Cpu};
use crate::config::Order;

/// In the order in which they are taken; an efficiency core is faster than half a performance core.
const PERFORMANCE: usize = 0;
const EFFICIENCY: usize = 1;
const SIBLINGS: usize = 2;

/// The usable CPUs of one NUMA node.
struct Node<'a> {
    id: usize,
    package: usize,
    /// One CPU of each physical core, the lowest usable one, by kind; and all the others.
    tiers: [Vec<&'a Cpu>; 3],
}

/// All usable CPUs in the order of the policy. Without a number of shards only one CPU of each
/// physical core, since two shards on one core each run at little more than half its speed; and
/// none of an efficiency core if there are others.
///
/// `usable` ascends by id.
pub(super) fn by_policy<'a>(
    usable: &[&'a Cpu],
    order: Order,
    shards: Option<usize>,
) -> Vec<&'a Cpu> {
    let mut nodes = nodes(usable);
    if shards.is_none() {
        clear(&mut nodes, SIBLINGS);
        if nodes.iter().any(|node| !node.tiers[PERFORMANCE].is_empty()) {
            clear(&mut nodes, EFFICIENCY);
        }
    }
    match order {
        Order::Compact => compact(nodes, shards.unwrap_or(usize::MAX)),
        Order::Spread => spread(&nodes),
        Order::PerNode => per_node(&nodes, shards.unwrap_or(usize::MAX)),
    }
}

fn clear(nodes: &mut [Node<'_>], tier: usize) {
    nodes.iter_mut().for_each(|node| node.tiers[tier].clear());
}

/// Node after node. The first is one that holds all shards if there is any, on the best cores that
/// it can; then those of the same socket, which are nearer than others.
fn compact<'a>(mut nodes: Vec<Node<'a>>, shards: usize) -> Vec<&'a Cpu> {
    let fit = |node: &Node<'_>| {
        // 0: on performance cores alone; 3: not at all.
        let worst_tier = (PERFORMANCE..=SIBLINGS)
            .find(|&tier| node.len_up_to(tier) >= shards)
            .unwrap_or(SIBLINGS + 1);
        // Where none holds all, the largest: fewer shards are then on another node. Where some do,
        // the lowest: a large node is not broken up because it is large.
        let size = match worst_tier <= SIBLINGS {
            true => 0,
            false => node.len_up_to(SIBLINGS),
        };
        (worst_tier, Reverse(size), node.id)
    };
    nodes.sort_by_key(fit);
    if let Some(home) = nodes.first().map(|node| node.package) {
        // Stable: the order above stays within the socket and without.
        nodes.sort_by_key(|node| node.package != home);
    }
    nodes
        .into_iter()
        .flat_map(|node| node.tiers.concat())
        .collect()
}

/// One CPU of each node in turn, until all cores of the best kind are used; then likewise the next.
fn spread<'a>(nodes: &[Node<'a>]) -> Vec<&'a Cpu> {
    (PERFORMANCE..=SIBLINGS)
        .flat_map(|tier| in_turn(nodes.iter().map(|node| &node.tiers[tier]).collect()))
        .collect()
}

/// What `spread` takes for so many shards, node after node. A small node is not made to share its
/// cores between shards, so that all have as many, while another has a core to spare.
fn per_node<'a>(nodes: &[Node<'a>], shards: usize) -> Vec<&'a Cpu> {
    let mut taken = spread(nodes);
    taken.truncate(shards);
    // Stable: each node keeps its order.
    taken.sort_by_key(|cpu| cpu.numa_node);
    taken
}

fn in_turn<'a>(groups: Vec<&Vec<&'a Cpu>>) -> Vec<&'a Cpu> {
    let longest = groups.iter().map(|group| group.len()).max().unwrap_or(0);
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
            tiers: Default::default(),
        });
        let tier = match (is_sibling(cpu), cpu.kind) {
            (true, _) => SIBLINGS,
            (false, CoreKind::Performance) => PERFORMANCE,
            (false, CoreKind::Efficiency) => EFFICIENCY,
        };
        node.tiers[tier].push(cpu);
    }
    let mut nodes: Vec<Node<'a>> = nodes.into_values().collect();
    for node in &mut nodes {
        // Stable: ascending within a kind.
        node.tiers[SIBLINGS].sort_by_key(|cpu| cpu.kind);
    }
    nodes
}

impl Node<'_> {
    /// CPUs of this tier and of those before it.
    fn len_up_to(&self, tier: usize) -> usize {
        self.tiers[..=tier].iter().map(Vec::len).sum()
    }
}
