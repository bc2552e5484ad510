//! A shard's thread: its CPU and its memory first, then its executor, and all of its life on that.

use std::{future::Future, io, sync::Once, thread};

use glommio::{LocalExecutorBuilder, Placement};
use rustix::io::Errno;

use crate::{
    error::{MemoryRefusal, StartError},
    placement::{Memory, Place},
};

/// glommio's registered buffers serve file I/O, which a shard does not do.
const IO_MEMORY_BYTES: usize = 64 << 10;
/// Entries of each of glommio's rings.
const RING_DEPTH: usize = 128;

/// Ends with what its executor could not be made for.
#[derive(Debug)]
pub(super) struct ShardThread {
    shard: usize,
    thread: thread::JoinHandle<Result<(), StartError>>,
}

/// Starts a thread on the place's CPU, and on it the future that `live` makes.
pub(super) fn spawn<F: Future<Output = ()>>(
    place: Place,
    live: impl FnOnce() -> F + Send + 'static,
) -> Result<ShardThread, StartError> {
    let shard = place.shard;
    let run = move || {
        // In this order: whatever is allocated from here on, the executor and its rings included,
        // is to lie on the node of this CPU.
        super::start::keep_to(&[place.cpu]);
        settle_memory(&place)?;
        let executor = LocalExecutorBuilder::new(Placement::Fixed(place.cpu))
            .io_memory(IO_MEMORY_BYTES)
            .ring_depth(RING_DEPTH)
            .make()
            .map_err(|error| failure(shard, with_remedy(&error.into())))?;
        executor.run(async move { live().await });
        Ok(())
    };
    let thread = thread::Builder::new()
        .name(format!("corelane-shard-{shard}"))
        .spawn(run)
        .map_err(StartError::Thread)?;
    Ok(ShardThread { shard, thread })
}

impl ShardThread {
    /// Blocks until it has ended. Errors: why it could not live, or the text of its panic.
    pub(super) fn join(self) -> Result<(), StartError> {
        self.thread.join().unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let text = text.unwrap_or_default();
            // glommio's executor has a thread of its own, and panics for want of it.
            let remedy = match text.starts_with("failed to spawn thread") {
                true => "; raise the limit of processes (`ulimit -u`)",
                false => "",
            };
            Err(failure(self.shard, format!("a panic: {text}{remedy}")))
        })
    }
}

/// What was there when the start looked for it may be gone when the executor is made.
fn with_remedy(error: &io::Error) -> String {
    let remedy = match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE) => "raise the limit of open files (`ulimit -n`)",
        Some(Errno::NOMEM) => "raise the memory that may be locked (`ulimit -l`), or free some",
        Some(Errno::PERM | Errno::NOSYS) => "`corelane doctor` says what io_uring takes here",
        _ => return error.to_string(),
    };
    format!("{error}; {remedy}")
}

fn failure(shard: usize, why: String) -> StartError {
    StartError::Shard { shard, why }
}

/// A preference that is refused costs time on some messages, and is no reason not to start.
fn settle_memory(place: &Place) -> Result<(), StartError> {
    static TOLD: Once = Once::new();
    let Err(error) = place.memory.apply() else {
        return Ok(());
    };
    let refusal = MemoryRefusal::from(error);
    if let Memory::Bind(node) = place.memory {
        let shard = place.shard;
        return Err(StartError::Memory {
            shard,
            node,
            refusal,
        });
    }
    TOLD.call_once(|| {
        tracing::warn!(
            %refusal,
            "placement.memory = \"local\" has no effect: shards have the memory policy that the \
             process was started with"
        );
    });
    Ok(())
}

#[cfg(test)]
#[allow(clippy::print_stderr)] // a skip is to be seen
mod tests {
    use super::*;

    fn place(memory: Memory) -> Place {
        let topology = crate::placement::probe().expect("a topology");
        let cpu = topology.usable_ids()[0];
        Place {
            shard: 7,
            cpu,
            numa_node: 0,
            memory,
        }
    }

    #[test]
    fn a_shard_lives_on_its_cpu_with_its_memory() {
        let place = place(Memory::Bind(0));
        if let Err(error) = Memory::current() {
            eprintln!("SKIPPED: the kernel refuses memory policies: {error}");
            return;
        }
        let (say, said) = crossbeam_channel::bounded(1);
        let thread = spawn(place, move || async move {
            let cpus = crate::placement::probe().map(|topology| topology.usable_ids());
            let _ = say.send((cpus, Memory::current().ok()));
        });
        thread.expect("a thread").join().expect("an executor");
        let (cpus, memory) = said.recv().expect("it lived");
        assert_eq!(cpus, Ok(vec![place.cpu]));
        assert_eq!(memory, Some(Some(Memory::Bind(0))));
    }

    /// Whether the kernel has no such node or refuses the call: it does not live, and says why.
    #[test]
    fn a_shard_that_cannot_have_its_memory_does_not_live() {
        let place = place(Memory::Bind(1_023));
        let thread = spawn(place, || async { unreachable!("it has no memory") });
        let error = thread.expect("a thread").join().expect_err("no such node");
        let is_refusal = matches!(
            error,
            StartError::Memory {
                shard: 7,
                node: 1_023,
                ..
            }
        );
        assert!(is_refusal, "{error}");
    }

    #[test]
    fn a_panic_is_told_with_its_text() {
        let thread = spawn(place(Memory::Inherit), || async {
            std::panic::resume_unwind(Box::new("no state to be had"));
        });
        let error = thread.expect("a thread").join().expect_err("a panic");
        let text = error.to_string();
        assert_eq!(text, "shard 7 could not start: a panic: no state to be had");
    }
}
