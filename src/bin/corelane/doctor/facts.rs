//! What a host says of itself: read from `/proc` and `/sys`, or from a copy of them, and judged
//! elsewhere. What it does not say is `None`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use corelane::{
    config::Cpus,
    error::PlacementError,
    placement::{self, Topology},
    shard,
};

use super::cgroup::{self, Cgroup};

/// What the host says, as far as it bears on shards.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) topology: Topology,
    pub(super) locked_memory: Option<Limit>,
    pub(super) open_files: Option<Limit>,
    pub(super) io_uring: IoUring,
    /// By CPU.
    pub(super) governors: BTreeMap<usize, String>,
    /// CPUs that the scheduler does not balance, and those without a tick.
    pub(super) isolated: Option<Vec<usize>>,
    pub(super) tickless: Option<Vec<usize>>,
    pub(super) interrupts: Option<Vec<Interrupt>>,
    /// The word in brackets of `transparent_hugepage/enabled`.
    pub(super) huge_pages: Option<String>,
    /// Microseconds, of `net.core.busy_read` and `net.core.busy_poll`.
    pub(super) busy_read_us: Option<u64>,
    pub(super) busy_poll_us: Option<u64>,
    pub(super) clock_source: Option<String>,
    pub(super) numa_balancing: Option<u64>,
    pub(super) congestion_control: Option<String>,
    /// What an unprivileged socket may choose.
    pub(super) congestion_allowed: Vec<String>,
    pub(super) cgroup: Option<Cgroup>,
}

/// A resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    AtMost(u64),
    Unlimited,
}

impl Limit {
    pub(super) fn allows(self, amount: u64) -> bool {
        match self {
            Limit::AtMost(most) => amount <= most,
            Limit::Unlimited => true,
        }
    }
}

/// Whether shards may have their rings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum IoUring {
    /// One was made.
    Works,
    /// None could be made: why, and what helps.
    Refused(String),
    /// Not tried: only the setting `kernel.io_uring_disabled` is known.
    Setting(u64),
    #[default]
    Unknown,
}

/// A device's interrupt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interrupt {
    pub(super) number: u64,
    /// What raises it, as far as `/proc/interrupts` says.
    pub(super) source: String,
    /// Where it may be handled from now on.
    pub(super) cpus: Vec<usize>,
    /// How often it was handled, by CPU.
    pub(super) counts: BTreeMap<usize, u64>,
}

impl Facts {
    /// Reads this machine, and tries to make an io_uring.
    pub(super) fn of_this_machine() -> Result<Self, PlacementError> {
        let io_uring = match shard::check_io_uring() {
            Ok(()) => IoUring::Works,
            Err(error) => IoUring::Refused(error.to_string()),
        };
        Ok(Self {
            io_uring,
            ..Self::read(Path::new("/"), placement::probe()?)
        })
    }

    /// Reads a copy of a machine's `/proc` and `/sys`.
    pub(super) fn of_copy(root: &Path) -> Result<Self, PlacementError> {
        Ok(Self::read(root, placement::probe_copy(root)?))
    }

    fn read(root: &Path, topology: Topology) -> Self {
        let tree = Tree::new(root);
        let limits = tree.text("proc/self/limits").unwrap_or_default();
        let disabled = tree.number("proc/sys/kernel/io_uring_disabled");
        let ids: Vec<usize> = topology.cpus.iter().map(|cpu| cpu.id).collect();
        let governor = |&id: &usize| {
            let file = format!("sys/devices/system/cpu/cpu{id}/cpufreq/scaling_governor");
            Some((id, tree.word(&file)?))
        };
        let ipv4 = "proc/sys/net/ipv4";
        let allowed = tree.text(&format!("{ipv4}/tcp_allowed_congestion_control"));
        Self {
            locked_memory: limit(&limits, "Max locked memory"),
            open_files: limit(&limits, "Max open files"),
            io_uring: disabled.map_or(IoUring::Unknown, IoUring::Setting),
            governors: ids.iter().filter_map(governor).collect(),
            isolated: tree.cpus("sys/devices/system/cpu/isolated"),
            tickless: tree.cpus("sys/devices/system/cpu/nohz_full"),
            interrupts: interrupts(&tree),
            huge_pages: tree
                .text("sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|text| bracketed(&text)),
            busy_read_us: tree.number("proc/sys/net/core/busy_read"),
            busy_poll_us: tree.number("proc/sys/net/core/busy_poll"),
            clock_source: tree
                .word("sys/devices/system/clocksource/clocksource0/current_clocksource"),
            numa_balancing: tree.number("proc/sys/kernel/numa_balancing"),
            congestion_control: tree.word(&format!("{ipv4}/tcp_congestion_control")),
            congestion_allowed: allowed.as_deref().map(words).unwrap_or_default(),
            cgroup: cgroup::read(&tree),
            topology,
        }
    }
}

/// A machine's files, below their root.
pub(super) struct Tree<'a>(&'a Path);

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Path) -> Self {
        Self(root)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// `None` if it is not there, may not be read, or is no text.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    pub(super) fn word(&self, name: &str) -> Option<String> {
        let text = self.text(name)?;
        Some(text.trim().to_owned()).filter(|word| !word.is_empty())
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.trim().parse().ok()
    }

    pub(super) fn cpus(&self, name: &str) -> Option<Vec<usize>> {
        parse_cpus(&self.text(name)?)
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The kernel's list of CPUs; it writes nothing, or `(null)`, for none.
fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    match text.trim() {
        "" | "(null)" => Some(Vec::new()),
        list => match list.parse() {
            Ok(Cpus::List(cpus)) => Some(cpus),
            _ => None,
        },
    }
}

fn bracketed(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// The soft limit of a line of `/proc/PID/limits`.
fn limit(limits: &str, name: &str) -> Option<Limit> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(Limit::Unlimited),
        number => number.parse().ok().map(Limit::AtMost),
    }
}

/// Those with a directory in `/proc/irq` and a line in `/proc/interrupts`. The others there are the
/// CPU's own, which cannot be moved.
fn interrupts(tree: &Tree<'_>) -> Option<Vec<Interrupt>> {
    let text = tree.text("proc/interrupts")?;
    let mut lines = text.lines();
    let cpu = |head: &str| head.strip_prefix("CPU")?.parse().ok();
    // Only CPUs that are online have a column.
    let columns: Vec<usize> = lines.next()?.split_whitespace().filter_map(cpu).collect();
    let parse = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let number: u64 = number.trim().parse().ok()?;
        let directory = format!("proc/irq/{number}");
        // The effective one is where the hardware sends it; older kernels do not tell.
        let cpus = tree
            .cpus(&format!("{directory}/effective_affinity_list"))
            .filter(|cpus| !cpus.is_empty())
            .or_else(|| tree.cpus(&format!("{directory}/smp_affinity_list")))?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let counts = columns
            .iter()
            .zip(&fields)
            .map(|(&cpu, count)| Some((cpu, count.parse().ok()?)));
        Some(Interrupt {
            number,
            source: (*fields.last()?).to_owned(),
            cpus,
            counts: counts.collect::<Option<_>>()?,
        })
    };
    Some(lines.filter_map(parse).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_soft_ones() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max open files            1024                 524288               files\n\
                    Max locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(limit(text, "Max open files"), Some(Limit::AtMost(1_024)));
        assert_eq!(limit(text, "Max locked memory"), Some(Limit::Unlimited));
        assert_eq!(limit(text, "Max file locks"), None);
        assert_eq!(limit("Max open files  x", "Max open files"), None);
    }

    #[test]
    fn lists_of_the_kernel_may_be_empty() {
        assert_eq!(parse_cpus("2-3,5\n"), Some(vec![2, 3, 5]));
        assert_eq!(parse_cpus("\n"), Some(vec![]));
        assert_eq!(parse_cpus(" (null)\n"), Some(vec![]));
        assert_eq!(parse_cpus("many"), None);
        assert_eq!(
            bracketed("always [madvise] never\n").as_deref(),
            Some("madvise")
        );
        assert_eq!(bracketed("always"), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        let facts = Facts::of_this_machine().expect("an affinity mask");
        assert!(!facts.topology.usable_ids().is_empty());
        assert!(facts.open_files.is_some(), "{facts:?}");
        assert!(!matches!(
            facts.io_uring,
            IoUring::Unknown | IoUring::Setting(_)
        ));
    }
}
