//! Reads the machine: the only file of the library that looks at its CPUs.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use super::{CoreKind, Cpu, Topology};
use crate::config::parse_list;
use crate::error::PlacementError;

/// Reads the CPUs of this machine and which of them the calling thread may use.
///
/// The affinity mask is asked of the kernel; the rest is `/sys/devices`, and what is missing there
/// (in a container, a chroot, a kernel without NUMA) is taken as one package, one node, no SMT and
/// cores of one kind. Numbers over 1023 are not seen, as in glibc's CPU sets.
///
/// Blocks for some small reads. Errors: [`PlacementError::NoAffinityMask`] alone.
pub fn probe() -> Result<Topology, PlacementError> {
    let mask = core_affinity::get_core_ids().ok_or(PlacementError::NoAffinityMask)?;
    let allowed = mask.into_iter().map(|core| core.id).collect();
    Ok(read(Path::new("/sys/devices"), &allowed))
}

/// Reads the CPUs of another machine from a copy of its `/proc` and `/sys` below this directory.
/// The mask is that of `proc/self/status`; all else is as for [`probe`].
///
/// Blocks for some small reads. Errors: [`PlacementError::NoAffinityMask`] alone.
pub fn probe_copy(root: &Path) -> Result<Topology, PlacementError> {
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .and_then(|list| parse_list(list).ok())
        .ok_or(PlacementError::NoAffinityMask)?;
    let allowed = allowed.into_iter().collect();
    Ok(read(&root.join("sys/devices"), &allowed))
}

fn read(devices: &Path, allowed: &BTreeSet<usize>) -> Topology {
    let sys = devices.join("system");
    let present = read_list(&sys.join("cpu/present")).unwrap_or_default();
    // The kernel's mask never names a CPU that is off, so what is missing there is on if allowed.
    let online = read_list(&sys.join("cpu/online")).unwrap_or_else(|| allowed.clone());
    let node_of = read_nodes(&sys.join("node"));
    let efficient = read_efficient(devices, &present);
    let cpus = present.union(allowed).map(|&id| {
        let topology = sys.join(format!("cpu/cpu{id}/topology"));
        // `core_cpus_list` is the newer name of the same file.
        let core_cpus = read_list(&topology.join("core_cpus_list"))
            .or_else(|| read_list(&topology.join("thread_siblings_list")))
            .unwrap_or_default();
        Cpu {
            id,
            core: read_number(&topology.join("core_id")).unwrap_or(id),
            package: read_number(&topology.join("physical_package_id")).unwrap_or(0),
            numa_node: node_of.get(&id).copied().unwrap_or(0),
            online: online.contains(&id) || allowed.contains(&id),
            allowed: allowed.contains(&id),
            smt_siblings: core_cpus
                .into_iter()
                .filter(|&sibling| sibling != id)
                .collect(),
            kind: match efficient.contains(&id) {
                true => CoreKind::Efficiency,
                false => CoreKind::Performance,
            },
        }
    });
    Topology {
        cpus: cpus.collect(),
    }
}

/// The CPUs of efficiency cores. x86 lists each kind as a PMU of its own; Arm, and x86 without such
/// PMUs, scale each CPU's capacity to 1024 for the fastest. Performance cores differ from one
/// another by the clock that each can reach, which stays above four fifths.
fn read_efficient(devices: &Path, present: &BTreeSet<usize>) -> BTreeSet<usize> {
    // `cpu_lowpower` are those outside the package's ring, slower still.
    let listed: Vec<usize> = ["cpu_atom", "cpu_lowpower"]
        .iter()
        .filter_map(|kind| read_list(&devices.join(kind).join("cpus")))
        .flatten()
        .collect();
    if !listed.is_empty() {
        return listed.into_iter().collect();
    }
    let capacity = |id: &usize| {
        let file = devices.join(format!("system/cpu/cpu{id}/cpu_capacity"));
        read_number(&file).map(|capacity| (*id, capacity))
    };
    let capacities: Vec<(usize, usize)> = present.iter().filter_map(capacity).collect();
    let fastest = capacities.iter().map(|(_, capacity)| *capacity).max();
    let fastest = fastest.unwrap_or(0);
    capacities
        .into_iter()
        .filter(|(_, capacity)| capacity.saturating_mul(5) < fastest.saturating_mul(4))
        .map(|(id, _)| id)
        .collect()
}

/// The node of each CPU, from `nodeN/cpulist`. Nodes of memory alone have an empty list.
fn read_nodes(nodes: &Path) -> HashMap<usize, usize> {
    let mut node_of = HashMap::new();
    for node in read_list(&nodes.join("online")).unwrap_or_default() {
        let cpus = read_list(&nodes.join(format!("node{node}/cpulist"))).unwrap_or_default();
        node_of.extend(cpus.into_iter().map(|cpu| (cpu, node)));
    }
    node_of
}

fn read_list(file: &Path) -> Option<BTreeSet<usize>> {
    let text = fs::read_to_string(file).ok()?;
    Some(parse_list(&text).ok()?.into_iter().collect())
}

/// `None` too for -1, which some kernels give where they do not know.
fn read_number(file: &Path) -> Option<usize> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
            fs::write(file, text).expect("a file");
        }
        dir
    }

    #[test]
    fn the_machine_that_runs_this_has_a_cpu_for_it() {
        let topology = probe().expect("an affinity mask");
        assert!(!topology.usable_ids().is_empty(), "{topology:?}");
        assert!(
            topology.cpus.windows(2).all(|pair| pair[0].id < pair[1].id),
            "{topology:?}"
        );
    }

    #[test]
    fn a_copy_is_read_with_the_mask_in_it() {
        let dir = sys(&[
            (
                "proc/self/status",
                "Name:\tcat\nCpus_allowed_list:\t1-2\nThreads:\t1\n",
            ),
            ("sys/devices/system/cpu/present", "0-2\n"),
            ("sys/devices/system/cpu/online", "0-2\n"),
        ]);
        let topology = probe_copy(dir.path()).expect("a mask");
        assert_eq!(topology.cpus.len(), 3);
        assert_eq!(topology.usable_ids(), [1, 2]);
        let nothing = sys(&[("proc/self/status", "Name:\tcat\n")]);
        let error = probe_copy(nothing.path()).expect_err("no mask");
        assert_eq!(error, PlacementError::NoAffinityMask);
    }

    #[test]
    fn reads_what_the_kernel_writes() {
        let dir = sys(&[
            ("system/cpu/present", "0-3\n"),
            ("system/cpu/online", "0-2\n"),
            ("system/cpu/cpu0/topology/core_id", "0\n"),
            ("system/cpu/cpu0/topology/physical_package_id", "0\n"),
            ("system/cpu/cpu0/topology/thread_siblings_list", "0,2\n"),
            ("system/cpu/cpu2/topology/core_id", "0\n"),
            ("system/cpu/cpu2/topology/physical_package_id", "-1\n"),
            ("system/cpu/cpu2/topology/core_cpus_list", "0,2\n"),
            ("system/node/online", "0-1,7\n"),
            ("system/node/node0/cpulist", "0,2\n"),
            ("system/node/node1/cpulist", "1\n"),
            ("system/node/node7/cpulist", "\n"),
        ]);
        let topology = read(dir.path(), &BTreeSet::from([0, 1]));
        let cpu = |id, core, numa_node, online, allowed, smt_siblings| Cpu {
            id,
            core,
            package: 0,
            numa_node,
            online,
            allowed,
            smt_siblings,
            kind: CoreKind::Performance,
        };
        assert_eq!(
            topology.cpus,
            [
                cpu(0, 0, 0, true, true, vec![2]),
                cpu(1, 1, 1, true, true, vec![]),
                cpu(2, 0, 0, true, false, vec![0]),
                cpu(3, 3, 0, false, false, vec![]),
            ]
        );
    }

    #[test]
    fn without_sys_the_mask_is_the_machine() {
        let topology = read(Path::new("/no/such/directory"), &BTreeSet::from([3, 5]));
        assert_eq!(topology.usable_ids(), [3, 5]);
        assert!(
            topology
                .cpus
                .iter()
                .all(|cpu| cpu.numa_node == 0 && cpu.smt_siblings.is_empty())
        );
    }

    fn efficient(files: &[(&str, &str)]) -> Vec<usize> {
        let topology = read(sys(files).path(), &BTreeSet::new());
        let is_efficient = |cpu: &&Cpu| cpu.kind == CoreKind::Efficiency;
        topology
            .cpus
            .iter()
            .filter(is_efficient)
            .map(|cpu| cpu.id)
            .collect()
    }

    #[test]
    fn cores_of_two_kinds_are_told_apart() {
        let present = ("system/cpu/present", "0-5\n");
        let capacity = |id, capacity| match id {
            0 => ("system/cpu/cpu0/cpu_capacity", capacity),
            1 => ("system/cpu/cpu1/cpu_capacity", capacity),
            _ => ("system/cpu/cpu2/cpu_capacity", capacity),
        };
        assert_eq!(efficient(&[present]), [0; 0]);
        let intel = [
            present,
            ("cpu_core/cpus", "0-2\n"),
            ("cpu_atom/cpus", "3-4\n"),
            ("cpu_lowpower/cpus", "5\n"),
            // Favoured cores clock higher.
            capacity(0, "1009\n"),
        ];
        assert_eq!(efficient(&intel), [3, 4, 5]);
        let arm = [
            present,
            capacity(0, "397\n"),
            capacity(1, "1024\n"),
            capacity(2, "997\n"),
        ];
        assert_eq!(efficient(&arm), [0]);
        let alike = [present, capacity(0, "1024\n"), capacity(1, "1024\n")];
        assert_eq!(efficient(&alike), [0; 0]);
    }

    #[test]
    fn garbage_in_sys_is_taken_as_missing() {
        let dir = sys(&[
            ("system/cpu/present", "0-\n"),
            ("system/cpu/online", "99999999999\n"),
            ("system/node/online", "x"),
            ("cpu_atom/cpus", "one"),
            ("system/cpu/cpu1/cpu_capacity", "18446744073709551615"),
        ]);
        assert_eq!(read(dir.path(), &BTreeSet::from([1])).usable_ids(), [1]);
    }
}
