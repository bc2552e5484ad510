//! From which NUMA nodes the kernel takes a thread's memory: `set_mempolicy(2)`.
//!
//! rustix has no such call, so it is made through libc's `syscall`.
#![allow(unsafe_code)]

use std::io;

use libc::{c_int, c_long, c_ulong};
use serde::{Deserialize, Serialize};

use super::Topology;
use crate::config::MemoryPolicy;

/// The most nodes that Linux can be built for.
const NODES_MAX: usize = 1 << 10;
const WORD_BITS: usize = c_ulong::BITS as usize;

/// Room for every node; the kernel takes one bit less than it is told.
type Mask = [c_ulong; NODES_MAX / WORD_BITS];
const MASK_BITS: c_ulong = NODES_MAX as c_ulong + 1;

/// From which nodes the kernel takes a thread's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// As the process was started.
    Inherit,
    /// From the node of the CPU that it runs on, and others once that has none left.
    Local,
    /// From this node alone.
    Bind(usize),
}

/// What a shard on this node is to have. A machine of one node has nothing to choose.
pub(super) fn decide(topology: &Topology, policy: MemoryPolicy, node: usize) -> Memory {
    let is_elsewhere = |cpu: &super::Cpu| cpu.online && cpu.numa_node != node;
    if !topology.cpus.iter().any(is_elsewhere) {
        return Memory::Inherit;
    }
    match policy {
        MemoryPolicy::Local => Memory::Local,
        MemoryPolicy::Bind => Memory::Bind(node),
        MemoryPolicy::Inherit => Memory::Inherit,
    }
}

impl Memory {
    /// Sets it for the calling thread: for what it allocates from now on, and for the threads that
    /// it starts. Returns at once.
    ///
    /// Errors: `EPERM`, where a seccomp filter forbids the call, as containers' do by default;
    /// `ENOSYS`, where the kernel knows no nodes; `EINVAL`, where the node to bind to has no memory
    /// or is outside the cpuset.
    pub fn apply(self) -> io::Result<()> {
        let mut mask: Mask = [0; NODES_MAX / WORD_BITS];
        let mode = match self {
            Memory::Inherit => return Ok(()),
            Memory::Local => libc::MPOL_LOCAL,
            Memory::Bind(node) => {
                let word = mask.get_mut(node / WORD_BITS);
                *word.ok_or(io::ErrorKind::InvalidInput)? |= 1 << (node % WORD_BITS);
                libc::MPOL_BIND
            }
        };
        // The kernel wants none for `MPOL_LOCAL`.
        let (nodes, bits) = match mode == libc::MPOL_LOCAL {
            true => (std::ptr::null(), 0),
            false => (mask.as_ptr(), MASK_BITS),
        };
        // SAFETY: the kernel reads the mask, which lives on, up to the bits that it is told; it
        // writes nothing to this process.
        let refused =
            unsafe { libc::syscall(libc::SYS_set_mempolicy, c_long::from(mode), nodes, bits) };
        match refused {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What the calling thread has; `None` for a policy that is none of these, such as
    /// interleaving. Returns at once. Errors: `EPERM` and `ENOSYS`, as for [`apply`](Self::apply).
    pub fn current() -> io::Result<Option<Self>> {
        let mut mode: c_int = 0;
        let mut mask: Mask = [0; NODES_MAX / WORD_BITS];
        // SAFETY: the kernel writes both, which live on, and of the mask the bits that it is told.
        let refused = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut mode,
                mask.as_mut_ptr(),
                MASK_BITS,
                std::ptr::null::<u8>(),
                0 as c_ulong,
            )
        };
        if refused != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut nodes =
            (0..NODES_MAX).filter(|node| mask[node / WORD_BITS] >> (node % WORD_BITS) & 1 == 1);
        let only = (nodes.next(), nodes.next());
        Ok(match (mode, only) {
            (libc::MPOL_DEFAULT, _) => Some(Memory::Inherit),
            // Kernels before 5.14 call it preferring no node.
            (libc::MPOL_LOCAL, _) | (libc::MPOL_PREFERRED, (None, _)) => Some(Memory::Local),
            (libc::MPOL_BIND, (Some(node), None)) => Some(Memory::Bind(node)),
            _ => None,
        })
    }
}
