//! What the shards tell as they begin to listen, and what the runtime says of itself then.

use crossbeam_channel::Receiver;
use uuid::Uuid;

use super::{RunningShard, thread::ShardThread};
use crate::{
    config::Endpoint,
    error::{EngineError, StartError},
    handler::Handler,
    wire::{HandlerEntry, Hello},
};

/// Waits until every shard listens, or one cannot.
pub(super) fn await_listening(
    shards: &mut [RunningShard],
    listens: &Receiver<(usize, Result<Vec<Endpoint>, EngineError>)>,
) -> Result<(), StartError> {
    let mut silent: Vec<usize> = (0..shards.len()).collect();
    while !silent.is_empty() {
        match listens.recv() {
            Ok((shard, Ok(endpoints))) => {
                shards[shard].endpoints = endpoints.iter().map(Endpoint::to_string).collect();
                silent.retain(|&other| other != shard);
            }
            Ok((shard, Err(cause))) => return Err(StartError::Engine { shard, cause }),
            // All have dropped their ends, so the silent ones have ended.
            Err(_) => return Err(first_failure(shards, &silent)),
        }
    }
    Ok(())
}

/// Why a shard ended before it listened: its thread says.
fn first_failure(shards: &mut [RunningShard], ended: &[usize]) -> StartError {
    for &shard in ended {
        if let Some(Err(error)) = shards[shard].thread.take().map(ShardThread::join) {
            return error;
        }
    }
    let why = "its thread ended".to_owned();
    StartError::Shard {
        shard: ended[0],
        why,
    }
}

pub(super) fn describe(instance: Uuid, shards: &[RunningShard], handlers: &[Handler]) -> Hello {
    // Unreadable in some sandboxes: then nobody takes this host for another's.
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Hello {
        host: host.trim().to_owned(),
        endpoints: shards
            .iter()
            .flat_map(|shard| shard.endpoints.iter().cloned())
            .collect(),
        shards: shards.len(),
        handlers: entries(handlers, shards.len()),
        ..Hello::of_instance(instance)
    }
}

/// What a process of so many shards says of its handlers.
pub(super) fn entries(handlers: &[Handler], shards: usize) -> Vec<HandlerEntry> {
    let entry = |it: &Handler| HandlerEntry::new(it.name(), it.affinity(shards));
    handlers.iter().map(entry).collect()
}
