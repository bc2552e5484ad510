//! What the runtime tells its shards.

use std::{fmt, future::Future, pin::Pin};

use quanta::Instant;

use super::{Change, Changed, ShardPeers};
use crate::{
    handler::TaskContext,
    metrics::{Blank, Counters, Interval},
};

/// A task's future, on the shard that runs it.
pub type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// What makes a guest's future, once it is on its shard.
pub type Guest = Box<dyn FnOnce(TaskContext) -> LocalFuture + Send>;

/// From the runtime to one shard.
pub enum Command {
    /// Hand out what was recorded since the last time, at the turn's boundary, and go on in this
    /// storage.
    Measure {
        /// Emptied storage.
        blank: Box<Blank>,
        /// Takes what was recorded, and the names of handlers that peers have told of.
        reply: crossbeam_channel::Sender<(usize, Interval, Vec<String>)>,
    },
    /// List the peers that are known, no more than so many of each kind.
    Peers {
        /// How many.
        listed_max: usize,
        /// Takes the list.
        reply: crossbeam_channel::Sender<ShardPeers>,
    },
    /// Run a guest: a task that is no handler's.
    Run(Guest),
    /// Change what is served.
    Change {
        /// How.
        change: Change,
        /// Told when it is done.
        reply: crossbeam_channel::Sender<Changed>,
    },
    /// Handle nothing new, answer what there is, and end by this time.
    Drain {
        /// What is not answered by then is given up.
        until: Instant,
        /// Told when the shard is over.
        done: crossbeam_channel::Sender<Drained>,
    },
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Command::Measure { .. } => "Measure",
            Command::Peers { .. } => "Peers",
            Command::Run(_) => "Run",
            Command::Change { .. } => "Change",
            Command::Drain { .. } => "Drain",
        })
    }
}

/// A shard's last words.
#[derive(Debug)]
pub struct Drained {
    /// Which shard.
    pub shard: usize,
    /// Its totals.
    pub counters: Counters,
    /// What it recorded since it was last measured.
    pub interval: Interval,
    /// The names of handlers that its peers have told of.
    pub called_names: Vec<String>,
}
