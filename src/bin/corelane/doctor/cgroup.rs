//! What the process's control groups allow it: version 2, version 1, or both beside each other.

use super::facts::Tree;

/// The tightest limits on the way from the process's groups to their roots.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cgroup {
    /// Time on CPUs per time; `None` without a quota. 1.5 is one CPU and a half.
    pub(super) quota_cpus: Option<f64>,
    /// `None` without a limit.
    pub(super) memory_bytes: Option<u64>,
    /// Whether nobody else's cpuset has the CPUs of this one.
    pub(super) owns_cpus: bool,
}

const MOUNT: &str = "sys/fs/cgroup";

/// `None` if no group can be read: then nobody knows.
pub(super) fn read(tree: &Tree<'_>) -> Option<Cgroup> {
    let groups = tree.text("proc/self/cgroup")?;
    let mut found = Cgroup::default();
    let mut any = false;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let of_v2 = controllers.is_empty();
        let mounts: Vec<String> = match of_v2 {
            true => vec![MOUNT.to_owned(), format!("{MOUNT}/unified")],
            // Controllers may be mounted together, under either's name.
            false => controllers
                .split(',')
                .chain([controllers])
                .map(|name| format!("{MOUNT}/{name}"))
                .collect(),
        };
        let directories = mounts.iter().flat_map(|mount| to_root(mount, path));
        let present = directories.filter(|directory| tree.path(directory).is_dir());
        let mut innermost = None;
        for directory in present {
            any = true;
            narrow(&mut found, tree, &directory, of_v2);
            innermost = Some(directory);
        }
        // A group above may share its CPUs among those below it.
        let owns = |directory: String| owns_cpus(tree, &directory, of_v2);
        found.owns_cpus |= innermost.is_some_and(owns);
    }
    any.then_some(found)
}

/// The group's directory and those above it. Inside a container that sees its host's path but not
/// its host's tree only the mount itself is there, and it is the container's group.
fn to_root(mount: &str, path: &str) -> Vec<String> {
    let mut directories = vec![mount.to_owned()];
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let above = directories.last().map_or("", String::as_str);
        directories.push(format!("{above}/{part}"));
    }
    directories
}

/// Takes over each limit of the group that is tighter.
fn narrow(found: &mut Cgroup, tree: &Tree<'_>, directory: &str, of_v2: bool) {
    let file = |name: &str| format!("{directory}/{name}");
    let (quota, memory) = match of_v2 {
        true => (
            tree.word(&file("cpu.max")).and_then(|text| quota_v2(&text)),
            tree.number(&file("memory.max")),
        ),
        false => (
            quota_v1(
                tree.number(&file("cpu.cfs_quota_us")),
                tree.number(&file("cpu.cfs_period_us")),
            ),
            // Without a limit it is the largest number of whole pages.
            tree.number(&file("memory.limit_in_bytes"))
                .filter(|&bytes| bytes < i64::MAX as u64 - (1 << 20)),
        ),
    };
    found.quota_cpus = [found.quota_cpus, quota]
        .into_iter()
        .flatten()
        .reduce(f64::min);
    found.memory_bytes = [found.memory_bytes, memory].into_iter().flatten().min();
}

/// The root groups say so of themselves; it means nothing there.
fn owns_cpus(tree: &Tree<'_>, directory: &str, of_v2: bool) -> bool {
    let depth = |path: &str| path.matches('/').count();
    let is_below = depth(directory) > depth(MOUNT) + usize::from(!of_v2);
    let partition = tree.word(&format!("{directory}/cpuset.cpus.partition"));
    let is_partition = partition.is_some_and(|kind| ["root", "isolated"].contains(&kind.as_str()));
    let is_exclusive = tree.number(&format!("{directory}/cpuset.cpu_exclusive")) == Some(1);
    is_below && (is_partition || is_exclusive)
}

/// `max 100000` or `150000 100000`.
fn quota_v2(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    quota_v1(quota.parse().ok(), period.parse().ok())
}

/// -1 is no quota, and no number here.
fn quota_v1(quota_us: Option<u64>, period_us: Option<u64>) -> Option<f64> {
    let (quota, period) = (quota_us?, period_us.filter(|&period| period > 0)?);
    Some(quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn found(files: &[(&str, &str)]) -> Option<Cgroup> {
        let root = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let file = root.path().join(name);
            fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
            fs::write(file, text).expect("a file");
        }
        read(&Tree::new(root.path()))
    }

    #[test]
    fn the_tightest_of_the_way_up_counts() {
        let cgroup = found(&[
            ("proc/self/cgroup", "0::/a.slice/b.service\n"),
            ("sys/fs/cgroup/a.slice/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/a.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/a.slice/b.service/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.max", "1073741824\n"),
            (
                "sys/fs/cgroup/a.slice/b.service/cpuset.cpus.partition",
                "isolated\n",
            ),
        ]);
        let expected = Cgroup {
            quota_cpus: Some(1.5),
            memory_bytes: Some(1 << 30),
            owns_cpus: true,
        };
        assert_eq!(cgroup, Some(expected));
    }

    #[test]
    fn version_1_is_read_by_controller() {
        let cgroup = found(&[
            (
                "proc/self/cgroup",
                "4:memory:/docker/x\n3:cpuset:/docker/x\n2:cpu,cpuacct:/docker/x\n0::/\n",
            ),
            // A container sees its own group as the mount.
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/cpuset/cpuset.cpu_exclusive", "1\n"),
        ]);
        let expected = Cgroup {
            quota_cpus: Some(0.5),
            ..Cgroup::default()
        };
        assert_eq!(cgroup, Some(expected));
    }

    #[test]
    fn no_limit_and_no_groups_are_told_apart() {
        let groups = ("proc/self/cgroup", "0::/\n");
        let root = ("sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
        assert_eq!(found(&[groups, root]), Some(Cgroup::default()));
        assert_eq!(found(&[groups]), None);
        assert_eq!(found(&[root]), None);
        assert_eq!(read(&Tree::new(Path::new("/no/such/root"))), None);
    }
}
