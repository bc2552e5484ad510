//! Placement: which shard runs on which CPU.
//!
//! [`probe`] alone reads the machine, and [`probe_copy`] a copy of another one's files. [`plan`] is
//! pure: it takes a [`Topology`], which serde reads and writes, so that the plans for machines that
//! nobody here has are tested wherever the tests run. [`place`] does both for a configuration,
//! [`place_on`] plans for one on a topology that is at hand.
//!
//! What a plan keeps to:
//!
//! - only CPUs that are online and in the process's affinity mask, and none twice without leave;
//! - performance cores, then efficiency cores, then SMT siblings, within the order that the policy
//!   asks for;
//! - threads that are not shards go to the CPUs left over, or to all of them if none is left.

mod memory;
mod order;
mod probe;

use serde::{Deserialize, Serialize};

pub use crate::config::Policy;
use crate::config::{Cpus, Settings, format_list};
use crate::error::{ConfigError, PlacementError};
pub use memory::Memory;
pub use probe::{probe, probe_copy};

/// The CPUs of a machine, as one process sees them. Plain data: a topology recorded as JSON on one
/// machine can be planned for on another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Topology {
    /// Every CPU that is present, in any order.
    pub cpus: Vec<Cpu>,
}

/// One logical CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// The kernel's number.
    pub id: usize,
    /// The kernel's number of its physical core; unique only within a package.
    pub core: usize,
    /// The kernel's number of its socket.
    pub package: usize,
    /// Its NUMA node.
    pub numa_node: usize,
    /// Whether it is switched on.
    pub online: bool,
    /// Whether the process's affinity mask has it; a cgroup's cpuset narrows that mask.
    pub allowed: bool,
    /// The other CPUs of its physical core.
    #[serde(default)]
    pub smt_siblings: Vec<usize>,
    /// Which kind of core it is.
    #[serde(default)]
    pub kind: CoreKind,
}

/// What a core is made for, on machines with cores of two kinds; all others have the first alone.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum CoreKind {
    /// Speed.
    #[default]
    Performance,
    /// Little power: a shard on it is slower than its neighbours.
    Efficiency,
}

/// Where everything runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// One place per shard, by number from 0; never empty.
    pub shards: Vec<Place>,
    /// Where threads that are not shards (blocking pool, dumper, the engine's own) run: the CPUs
    /// that no shard has, ascending; all usable ones if the shards have them all. Never empty.
    pub helper_cpus: Vec<usize>,
}

/// Where one shard runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The shard's number.
    pub shard: usize,
    /// Its CPU, which no other shard has unless [`Policy::oversubscribe`] allows it.
    pub cpu: usize,
    /// That CPU's NUMA node.
    pub numa_node: usize,
    /// From which nodes its memory comes.
    pub memory: Memory,
}

/// Reads the machine and plans for a configuration; errors name file, key and line.
///
/// Blocks for some small reads of `/sys`. Call it before any thread is pinned: the affinity mask
/// is that of the calling thread.
pub fn place(settings: &Settings) -> Result<Plan, ConfigError> {
    let topology = probe().map_err(|cause| settings.refuse_placement(cause))?;
    place_on(&topology, settings)
}

/// Plans for a configuration on this topology; errors name file, key and line. Pure.
pub fn place_on(topology: &Topology, settings: &Settings) -> Result<Plan, ConfigError> {
    plan(topology, settings.policy()).map_err(|cause| settings.refuse_placement(cause))
}

/// Chooses a CPU for each shard. Pure: the same arguments give the same plan.
///
/// - A list: shard k on the k-th CPU; one shard per CPU unless [`Policy::shards`] says fewer.
/// - `auto` with a number of shards: that many CPUs in the order of [`Policy::order`].
/// - `auto` without: one shard per physical core that has a usable CPU, in that order. Where there
///   are performance cores among them, efficiency cores are left to other threads: work is divided
///   evenly among shards, and the slowest would make the tail of all.
///
/// With [`Policy::oversubscribe`], more shards than CPUs start over from the first: shard k on the
/// (k mod n)-th of n; and a list may name a CPU twice.
///
/// Errors: a CPU that is absent, offline or outside the affinity mask; one named twice, or more
/// shards than CPUs, without leave to oversubscribe; no usable CPU at all.
pub fn plan(topology: &Topology, policy: &Policy) -> Result<Plan, PlacementError> {
    let usable = topology.usable();
    if usable.is_empty() {
        return Err(PlacementError::NoUsableCpu {
            online: format_list(&topology.online_ids()),
        });
    }
    let candidates = match &policy.cpus {
        Cpus::List(list) => topology.listed(list, policy.oversubscribe)?,
        Cpus::Auto => order::by_policy(&usable, policy.order, policy.shards),
    };
    let shards = policy.shards.unwrap_or(candidates.len());
    if shards == 0 {
        return Err(PlacementError::NoShards);
    }
    let may_wrap = policy.oversubscribe && !candidates.is_empty();
    if shards > candidates.len() && !may_wrap {
        return Err(PlacementError::TooManyShards {
            shards,
            cpus: candidates.len(),
            usable: format_list(&ids(&candidates)),
        });
    }
    let chosen: Vec<&Cpu> = candidates.into_iter().cycle().take(shards).collect();
    Ok(Plan {
        shards: places(topology, policy, &chosen),
        helper_cpus: left_over(&usable, &chosen),
    })
}

impl Topology {
    /// The CPU with this number.
    pub fn cpu(&self, id: usize) -> Option<&Cpu> {
        self.cpus.iter().find(|cpu| cpu.id == id)
    }

    /// The CPUs that are online and allowed, ascending.
    pub fn usable_ids(&self) -> Vec<usize> {
        ids(&self.usable())
    }

    fn usable(&self) -> Vec<&Cpu> {
        self.ascending(|cpu| cpu.online && cpu.allowed)
    }

    fn online_ids(&self) -> Vec<usize> {
        ids(&self.ascending(|cpu| cpu.online))
    }

    /// A recorded topology may be in any order, and say a CPU twice: the first one counts.
    fn ascending(&self, wanted: impl Fn(&Cpu) -> bool) -> Vec<&Cpu> {
        let mut cpus: Vec<&Cpu> = self.cpus.iter().collect();
        cpus.sort_by_key(|cpu| cpu.id);
        cpus.dedup_by_key(|cpu| cpu.id);
        cpus.retain(|cpu| wanted(cpu));
        cpus
    }

    fn listed(&self, list: &[usize], may_repeat: bool) -> Result<Vec<&Cpu>, PlacementError> {
        let usable = || format_list(&self.usable_ids());
        let present = || format_list(&ids(&self.ascending(|_| true)));
        let mut cpus: Vec<&Cpu> = Vec::with_capacity(list.len());
        for &id in list {
            let absent = || PlacementError::Absent {
                cpu: id,
                present: present(),
                usable: usable(),
            };
            let cpu = self.cpu(id).ok_or_else(absent)?;
            if !cpu.online {
                return Err(PlacementError::Offline {
                    cpu: id,
                    usable: usable(),
                });
            }
            if !cpu.allowed {
                return Err(PlacementError::NotAllowed {
                    cpu: id,
                    usable: usable(),
                });
            }
            if !may_repeat && cpus.iter().any(|earlier| earlier.id == id) {
                return Err(PlacementError::NamedTwice { cpu: id });
            }
            cpus.push(cpu);
        }
        Ok(cpus)
    }
}

fn places(topology: &Topology, policy: &Policy, chosen: &[&Cpu]) -> Vec<Place> {
    let place = |(shard, cpu): (usize, &&Cpu)| Place {
        shard,
        cpu: cpu.id,
        numa_node: cpu.numa_node,
        memory: memory::decide(topology, policy.memory, cpu.numa_node),
    };
    chosen.iter().enumerate().map(place).collect()
}

fn left_over(usable: &[&Cpu], chosen: &[&Cpu]) -> Vec<usize> {
    let is_free = |cpu: &&&Cpu| chosen.iter().all(|taken| taken.id != cpu.id);
    let free: Vec<usize> = usable.iter().filter(is_free).map(|cpu| cpu.id).collect();
    if free.is_empty() { ids(usable) } else { free }
}

fn ids(cpus: &[&Cpu]) -> Vec<usize> {
    cpus.iter().map(|cpu| cpu.id).collect()
}
