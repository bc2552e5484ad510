//! Gathers what the shards have recorded: for readers in this process, for the built-in handlers,
//! and for the dump.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::{
    error::DumpError,
    metrics::{Blank, Counters, DumpWriter, Interval, Snapshot},
    route::Port,
    shard::{Command, Drained, ShardPeers},
    wire::HandlerKey,
};

/// How long a shard may take to end its turn.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long one that has already been silent for longer than that is waited for again.
const LATE_PATIENCE: Duration = Duration::from_millis(20);

/// A shard, what it recorded, and the names of handlers that its peers have told of.
type Measured = (usize, Interval, Vec<String>);

pub(super) struct Collector {
    shards: Vec<Port<Command>>,
    /// Emptied storage for each shard's next interval; `None` while the shard has it.
    blanks: Vec<Option<Blank>>,
    /// Where each shard answers what it was asked last; `None` once it has. Nobody is asked again
    /// before: that would fill the commands of a shard whose handler does not return.
    owed: Vec<Option<Receiver<Measured>>>,
    /// Likewise, the lists of peers.
    owed_lists: Vec<Option<Receiver<ShardPeers>>>,
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
            owed: shards.iter().map(|_| None).collect(),
            owed_lists: shards.iter().map(|_| None).collect(),
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
        let begun = Instant::now();
        let mut due = Vec::new();
        for (shard, port) in self.shards.iter().enumerate() {
            let blank = &mut self.blanks[shard];
            let measure = |reply| {
                let blank = blank.take().unwrap_or_else(|| Blank::new(self.handlers));
                let blank = Box::new(blank);
                Command::Measure { blank, reply }
            };
            due.push(begun + ask(port, &mut self.owed[shard], measure));
        }
        let mut silent = Vec::new();
        for (shard, due) in due.into_iter().enumerate() {
            match take_owed(&mut self.owed[shard], due) {
                Some((shard, interval, names)) => self.enter(shard, interval, &names),
                None => silent.push(shard),
            }
        }
        self.total.set_silent(silent);
        &self.total
    }

    /// Has every shard list its peers, no more than so many of each kind. Shards that are gone, or
    /// do not end their turn in time, are left out.
    pub(super) fn list_peers(&mut self, listed_max: usize) -> Vec<ShardPeers> {
        let begun = Instant::now();
        let mut due = Vec::new();
        for (port, owed) in self.shards.iter().zip(&mut self.owed_lists) {
            // What was owed tells of another time, and perhaps of fewer.
            drop(take_owed(owed, begun));
            due.push(begun + ask(port, owed, |reply| Command::Peers { listed_max, reply }));
        }
        let owed = self.owed_lists.iter_mut().zip(due);
        owed.filter_map(|(owed, due)| take_owed(owed, due))
            .collect()
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

    /// Enters what was asked of a shard that had not ended its turn then.
    fn enter_late(&mut self, shard: usize) {
        if let Some((shard, interval, names)) = take_owed(&mut self.owed[shard], Instant::now()) {
            self.enter(shard, interval, &names);
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
        self.enter_late(last.shard);
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

/// Asks a shard something, unless it owes the answer already. Returns how long it may take.
fn ask<T>(
    port: &Port<Command>,
    owed: &mut Option<Receiver<T>>,
    command: impl FnOnce(Sender<T>) -> Command,
) -> Duration {
    if owed.is_some() {
        return LATE_PATIENCE;
    }
    let (reply, answer) = crossbeam_channel::bounded(1);
    if port.try_send(command(reply)).is_ok() {
        *owed = Some(answer);
    }
    PATIENCE
}

/// What a shard owes, if it gives it by then.
fn take_owed<T>(owed: &mut Option<Receiver<T>>, due: Instant) -> Option<T> {
    let answer = owed.as_ref()?.recv_deadline(due);
    if !matches!(answer, Err(RecvTimeoutError::Timeout)) {
        *owed = None;
    }
    answer.ok()
}
