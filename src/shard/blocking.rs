//! Blocking handlers: from the reactor to the threads of the pool, and back.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crossbeam_channel::Sender;
use quanta::Instant;

use super::{
    Core,
    answering::HAS_WAITED,
    parcel::Parcel,
    shedding::{Shedder, Shedding},
    tasks::{FinishedTask, Origin, Ran, TaskEnd},
    underway::{Claim, Sent, Underway},
};
use crate::{
    codec::Decoder,
    engine::ConnectionId,
    handler::{BlockingCall, Failure, Lane},
    route::{Doorbell, Inbox, Port, inbox},
    wire::{Outbox, Reason, Received},
};

/// One shard's way to the pool or to the operator's thread, and back.
///
/// The queue of jobs is bounded, and shared by all shards. Back there is an inbox of the shard's
/// own, with room for as many as the shard has under way: jobs that it has put into the queue and
/// not yet answered, whether they wait, run, stand in the inbox or wait for room in an outbox. A
/// shard that has `under_way_max` of them puts no more into the queue, so a thread that has run one
/// always finds room for its end.
pub struct BlockingPort {
    jobs: Sender<BlockingJob>,
    home: Arc<Home>,
    finished: Inbox<FinishedTask>,
    under_way: usize,
    under_way_most: usize,
    under_way_max: usize,
    /// Jobs that have begun and are answered.
    answered: u64,
}

/// A shard's ways to all threads that run handlers. Without one, what is for it is nacked
/// `Overloaded`.
#[derive(Debug, Default)]
pub struct BlockingPorts {
    /// To the pool of blocking handlers.
    pub pool: Option<BlockingPort>,
    /// To the thread of the built-in ones.
    pub operator: Option<BlockingPort>,
}

/// Where the ends of a shard's jobs go.
struct Home {
    port: Port<FinishedTask>,
    gate: Gate,
}

/// Counts a shard's jobs as they begin, until the shard is over: then none begins any more, and it
/// is known how many had. One number, so that a job begins either before or after.
struct Gate(AtomicU64);

const CLOSED: u64 = 1 << 63;

const POOL_IS_FULL: &str = "blocking.queue_capacity messages wait for blocking.threads already";
const OPERATOR_IS_BUSY: &str = "too many messages to built-in handlers wait already";

/// A message that waits for a thread of the pool.
pub struct BlockingJob {
    call: Box<BlockingCall>,
    origin: Origin,
    read: Instant,
    /// Its place among the messages that are under way.
    place: usize,
    claim: Claim,
    home: Arc<Home>,
}

/// How a job ended, to be told to its shard.
pub struct BlockingEnd {
    task: FinishedTask,
    home: Arc<Home>,
}

/// Runs jobs: one for each thread of the pool.
pub struct BlockingWorker {
    /// Keeps its memory from job to job.
    decoder: Decoder,
    shedder: Shedder,
}

impl BlockingPort {
    /// For the shard that hears this doorbell. `under_way_max` is what the queue holds and the
    /// threads run: with less, a shard alone could not fill the queue.
    pub fn new(jobs: Sender<BlockingJob>, under_way_max: usize, doorbell: &Arc<Doorbell>) -> Self {
        let (port, finished) = inbox(under_way_max, doorbell);
        let gate = Gate(AtomicU64::new(0));
        Self {
            jobs,
            home: Arc::new(Home { port, gate }),
            finished,
            under_way: 0,
            under_way_most: 0,
            under_way_max,
            answered: 0,
        }
    }

    fn has_room(&self) -> bool {
        self.under_way < self.under_way_max && !self.jobs.is_full()
    }

    /// Puts a job into the queue, unless another shard was quicker and has filled it: then its
    /// origin comes back.
    fn submit(
        &mut self,
        origin: Origin,
        read: Instant,
        call: Box<BlockingCall>,
        underway: &mut Underway,
    ) -> Result<(), Origin> {
        let claim = Claim::default();
        let sent = Sent::of(&origin, call.header.correlation);
        let place = underway.add_job(sent, claim.clone());
        let job = BlockingJob {
            call,
            origin,
            read,
            place,
            claim,
            home: self.home.clone(),
        };
        let submitted = self.jobs.try_send(job);
        submitted.map_err(|refused| {
            underway.remove(place);
            refused.into_inner().origin
        })?;
        self.under_way += 1;
        self.under_way_most = self.under_way_most.max(self.under_way);
        Ok(())
    }

    /// A job is answered, or cannot be.
    fn retire(&mut self, has_run: bool) {
        self.under_way -= 1;
        self.answered += u64::from(has_run);
    }

    /// No job begins from now on. Returns how many have begun and are not answered, and how many
    /// have not begun.
    fn close(&self) -> (u64, u64) {
        let begun = self.home.gate.close() - self.answered;
        (begun, self.under_way as u64 - begun)
    }
}

impl BlockingPorts {
    /// The way on which there is room now.
    fn open(&mut self, lane: Lane) -> Option<&mut BlockingPort> {
        let port = match lane {
            Lane::Pool => &mut self.pool,
            Lane::Operator => &mut self.operator,
        };
        port.as_mut().filter(|port| port.has_room())
    }

    fn each(&self) -> impl Iterator<Item = &BlockingPort> {
        [&self.pool, &self.operator].into_iter().flatten()
    }

    /// A job is answered, or cannot be.
    pub(super) fn retire(&mut self, lane: Lane, has_run: bool) {
        let port = match lane {
            Lane::Pool => &mut self.pool,
            Lane::Operator => &mut self.operator,
        };
        if let Some(port) = port {
            port.retire(has_run);
        }
    }

    /// Whether an end waits to be taken.
    pub(super) fn has_finished(&self) -> bool {
        self.each().any(|port| !port.finished.is_empty())
    }

    /// Messages that were handed over and are not answered.
    pub(super) fn under_way(&self) -> usize {
        self.each().map(|port| port.under_way).sum()
    }

    /// The most of the pool's that there have been at once.
    pub(super) fn most_on_pool(&self) -> usize {
        self.pool.as_ref().map_or(0, |port| port.under_way_most)
    }

    /// Those of the pool.
    pub(super) fn under_way_on_pool(&self) -> usize {
        self.pool.as_ref().map_or(0, |port| port.under_way)
    }
}

fn has_waited() -> Failure {
    Failure {
        reason: Reason::Overloaded,
        text: HAS_WAITED.to_owned(),
    }
}

/// Why a message is refused that a thread should run.
fn why_full(lane: Lane) -> &'static str {
    match lane {
        Lane::Pool => POOL_IS_FULL,
        Lane::Operator => OPERATOR_IS_BUSY,
    }
}

impl Gate {
    /// Whether a job may begin: it is counted then.
    fn enter(&self) -> bool {
        self.0.fetch_add(1, Relaxed) & CLOSED == 0
    }

    /// Returns how many have begun.
    fn close(&self) -> u64 {
        self.0.fetch_or(CLOSED, Relaxed) & !CLOSED
    }
}

impl BlockingWorker {
    /// One that refuses what has waited too long in the queue, or nothing.
    pub fn new(shedding: Option<Shedding>) -> Self {
        Self {
            decoder: Decoder::default(),
            shedder: Shedder::new(shedding),
        }
    }

    /// It finds the queue empty.
    pub fn rest(&mut self) {
        self.shedder.rest();
    }

    /// Runs a job's handler, for as long as it takes, unless its deadline has passed by now, it is
    /// refused for having waited, or its sender has cancelled it. `None` without running it if its
    /// shard is over.
    pub fn run(&mut self, job: BlockingJob, now: Instant) -> Option<BlockingEnd> {
        self.shedder.begin(now);
        let BlockingJob {
            call,
            origin,
            read,
            place,
            claim,
            home,
        } = job;
        let (handler, header, lane) = (call.handler, call.header, call.lane);
        let (ran, result) = match call.lateness(now) {
            _ if !claim.take() => (Ran::Nowhere(lane), None),
            Some(failure) => (Ran::Nowhere(lane), Some(Err(failure))),
            None if self.shedder.refuses(read, now) => {
                (Ran::Nowhere(lane), Some(Err(has_waited())))
            }
            None if home.gate.enter() => (Ran::OnThread(lane), Some(call.run(&mut self.decoder))),
            None => return None,
        };
        let end = TaskEnd {
            ran,
            header,
            handler,
            read,
            place,
            promise: None,
            result,
        };
        let task = FinishedTask { origin, end };
        Some(BlockingEnd { task, home })
    }
}

impl BlockingEnd {
    /// Tells the shard, and wakes it if it is parked. Never waits: see [`BlockingPort`].
    pub fn tell(self) {
        // A shard that is over has counted it.
        let _ = self.home.port.send(self.task);
    }
}

impl Core {
    /// Hands a message to the pool, or refuses it.
    pub(super) fn block(
        &mut self,
        connection: ConnectionId,
        read: Instant,
        mut call: Box<BlockingCall>,
        message: &mut Received<'_>,
        outbox: &mut Outbox,
    ) {
        let (header, handler, lane) = (call.header, call.handler, call.lane);
        if let Some(port) = self.jobs.open(lane) {
            call.take_payload(message);
            let origin = Origin::here(connection, outbox);
            let underway = &mut self.underway;
            if port.submit(origin, read, call, underway).is_ok() {
                self.registry.begin(handler);
                self.recorder.counters.blocking += u64::from(lane == Lane::Pool);
                return;
            }
        }
        self.refuse(outbox, &header, Reason::Overloaded, why_full(lane));
    }

    /// As [`block`](Self::block), for a message that another shard has read. A refused one comes
    /// back with its answer.
    pub(super) fn block_parcel(
        &mut self,
        home: usize,
        mut parcel: Box<Parcel>,
        mut call: Box<BlockingCall>,
    ) -> Option<Box<Parcel>> {
        let (handler, lane) = (call.handler, call.lane);
        if let Some(port) = self.jobs.open(lane) {
            let read = parcel.read;
            call.take_payload(&mut parcel.message(&mut false));
            let origin = Origin::There { home, parcel };
            parcel = match port.submit(origin, read, call, &mut self.underway) {
                Err(Origin::There { parcel, .. }) => parcel,
                _ => {
                    self.registry.begin(handler);
                    self.recorder.counters.blocking += u64::from(lane == Lane::Pool);
                    return None;
                }
            };
        }
        self.refuse_parcel(&mut parcel, Reason::Overloaded, why_full(lane));
        Some(parcel)
    }

    /// Takes a bounded number of ends from the pool's threads, to be answered in this turn.
    pub(super) fn take_finished_jobs(&mut self) -> usize {
        let ended = self
            .jobs
            .each()
            .flat_map(|port| std::iter::from_fn(|| port.finished.pop()));
        let ended = ended.take(self.options.turn_messages_max);
        ended.map(|task| self.tasks.push_back(task)).count()
    }

    /// The drain's time is over: who runs may have done anything, who waits will not run.
    pub(super) fn give_jobs_up(&mut self) {
        for port in self.jobs.each() {
            let (begun, not_begun) = port.close();
            self.recorder.counters.indeterminate += begun;
            self.recorder.counters.lost += not_begun;
        }
    }
}

impl fmt::Debug for BlockingPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingPort")
            .field("under_way", &self.under_way)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BlockingJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.call.fmt(f)
    }
}

impl fmt::Debug for BlockingEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingEnd")
            .field("header", &self.task.end.header)
            .field("ran", &self.task.end.ran)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BlockingWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingWorker").finish_non_exhaustive()
    }
}
