//! Gathers what the shards have recorded: for readers in this process, for the built-in handlers,
//! and for the dump.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::Receiver;

use crate::{
    error::DumpError,
    metrics::{Blank, Counters, DumpWriter, Interval, Snapshot},
    route::Port,
    shard::{Command, Drained, ShardPeers},
    wire::HandlerKey,
};

/// How long a shard may take to end its turn.
const PATIENCE: Duration = Duration::from_secs(1);

/// A shard, what it recorded, and the names of handlers that its peers have told of.
type Measured = (usize, Interval, Vec<String>);

pub(super) struct Collector {
    shards: Vec<Port<Command>>,
    /// Emptied storage for each shard's next interval; `None` while the shard has it.
    blanks: Vec<Option<Blank>>,
    /// Where shards that were too late answer what they were asked, the oldest first. No more than
    /// their commands hold.
    late: Vec<Receiver<Measured>>,
    handlers: usize,
    /// Since the start.
    total: Snapshot,
    /// Since the last dump.
    undumped: Snapshot,
    dump: Option<DumpWriter>,
    dumped_until: SystemTime,
}

impl Collector {
    pub(super) fn new(
        names: Arc<[String]>,
        shards: Vec<Port<Command>>,
        dump: Option<DumpWriter>,
    ) -> Self {
        let handlers = names.len();
        let snapshot = Snapshot::new(names, shards.len());
        Self {
            blanks: shards.iter().map(|_| Some(Blank::new(handlers))).collect(),
            late: Vec::new(),
            shards,
            handlers,
            total: snapshot.clone(),
            undumped: snapshot,
            dump,
            dumped_until: SystemTime::now(),
        }
    }

    /// Has every shard hand out what it recorded, and returns all since the start. Shards that are
    /// gone, or do not end their turn in time, are left as they last were, and named so.
    pub(super) fn measure(&mut self) -> &Snapshot {
        self.enter_late();
        let mut silent: Vec<usize> = (0..self.shards.len()).collect();
        let (reply, replies) = crossbeam_channel::unbounded();
        for (shard, blank) in self.shards.iter().zip(&mut self.blanks) {
            // A shard that still owes its last interval gets new storage: it hands out both.
            let blank = Box::new(blank.take().unwrap_or_else(|| Blank::new(self.handlers)));
            let _ = shard.try_send(Command::Measure {
                blank,
                reply: reply.clone(),
            });
        }
        drop(reply);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match replies.recv_deadline(deadline) {
                Ok((shard, interval, names)) => {
                    silent.retain(|&other| other != shard);
                    self.enter(shard, interval, &names);
                }
                Err(error) if error.is_timeout() => {
                    self.late.push(replies);
                    break;
                }
                Err(_) => break,
            }
        }
        self.total.set_silent(silent);
        &self.total
    }

    /// Has every shard list its peers, no more than so many of each kind. Shards that are gone, or
    /// do not end their turn in time, are left out.
    pub(super) fn list_peers(&self, listed_max: usize) -> Vec<ShardPeers> {
        let (reply, replies) = crossbeam_channel::unbounded();
        for shard in &self.shards {
            let reply = reply.clone();
            let _ = shard.try_send(Command::Peers { listed_max, reply });
        }
        drop(reply);
        let deadline = Instant::now() + PATIENCE;
        let mut lists: Vec<ShardPeers> = Vec::new();
        while let Ok(list) = replies.recv_deadline(deadline) {
            lists.push(list);
        }
        lists.sort_by_key(|list| list.shard);
        lists
    }

    /// There are more handlers now. Before any shard serves them.
    pub(super) fn grow(&mut self, names: &Arc<[String]>) {
        self.handlers = names.len();
        self.total.grow(names.clone());
        self.undumped.grow(names.clone());
    }

    /// How many shards there are, or were.
    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Enters what was asked of shards that had not ended their turn then.
    fn enter_late(&mut self) {
        for replies in std::mem::take(&mut self.late) {
            let is_over = loop {
                match replies.try_recv() {
                    Ok((shard, interval, names)) => self.enter(shard, interval, &names),
                    Err(error) => break error.is_disconnected(),
                }
            };
            if !is_over {
                self.late.push(replies);
            }
        }
    }

    /// Writes what was recorded since the last dump.
    pub(super) fn dump(&mut self) -> Result<(), DumpError> {
        self.measure();
        self.dump_rest()
    }

    /// Writes what is known of since the last dump.
    pub(super) fn dump_rest(&mut self) -> Result<(), DumpError> {
        let Some(dump) = &mut self.dump else {
            return Ok(());
        };
        let now = SystemTime::now();
        dump.write(&self.undumped, self.dumped_until, now)?;
        self.undumped.clear_histograms();
        self.dumped_until = now;
        Ok(())
    }

    pub(super) fn dump_path(&self) -> Option<PathBuf> {
        self.dump.as_ref().map(|dump| dump.path().to_owned())
    }

    /// A shard has ended.
    pub(super) fn enter_last(&mut self, last: Drained) {
        self.enter_late();
        self.enter(last.shard, last.interval, &last.called_names);
    }

    /// The sum of the counters that were last handed out.
    pub(super) fn counters(&self) -> Counters {
        self.total.total()
    }

    fn enter(&mut self, shard: usize, interval: Interval, called_names: &[String]) {
        for snapshot in [&mut self.total, &mut self.undumped] {
            for name in called_names {
                snapshot.name_called(HandlerKey::of(name).get(), name);
            }
            snapshot.add(shard, &interval);
        }
        self.blanks[shard] = Some(interval.clear());
    }
}
