//! Gathers what the shards have recorded: for readers in this process, and for the dump.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    error::DumpError,
    metrics::{Blank, Counters, DumpWriter, Interval, Snapshot},
    route::Port,
    shard::{Command, Drained},
    wire::HandlerKey,
};

/// How long a shard may take to end its turn.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Collector {
    shards: Vec<Port<Command>>,
    /// Emptied storage for each shard's next interval; `None` while the shard has it.
    blanks: Vec<Option<Blank>>,
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
            shards,
            handlers,
            total: snapshot.clone(),
            undumped: snapshot,
            dump,
            dumped_until: SystemTime::now(),
        }
    }

    /// Has every shard hand out what it recorded, and returns all since the start. Shards that are
    /// gone are left as they last were.
    pub(super) fn measure(&mut self) -> &Snapshot {
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
        while let Ok((shard, interval, names)) = replies.recv_deadline(deadline) {
            self.enter(shard, interval, &names);
        }
        &self.total
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
