//! The pool of blocking handlers of one process, in the thread that all shards run in: a handler
//! runs at once, and its shard is told so a while later, as if it had taken that long.

use std::{ops::Range, time::Duration};

use corelane::shard::{BlockingEnd, BlockingJob, BlockingWorker, Shedding};
use crossbeam_channel::{Receiver, Sender};
use fastrand::Rng;
use quanta::Instant;

pub(crate) struct Pool {
    /// So many run at once; a test may change it.
    pub(crate) threads: usize,
    /// What a handler takes, likewise.
    pub(crate) takes_us: Range<u64>,
    queue: Receiver<BlockingJob>,
    worker: BlockingWorker,
    running: Vec<(Instant, BlockingEnd)>,
    random: Rng,
}

impl Pool {
    /// A pool, and where its process's shards put their jobs.
    pub(crate) fn new(
        seed: u64,
        (threads, capacity): (usize, usize),
        shedding: Option<Shedding>,
    ) -> (Self, Sender<BlockingJob>) {
        let (jobs, queue) = crossbeam_channel::bounded(capacity);
        let pool = Self {
            threads,
            takes_us: 0..5_000,
            queue,
            worker: BlockingWorker::new(shedding),
            running: Vec::new(),
            random: Rng::with_seed(seed),
        };
        (pool, jobs)
    }

    /// Ends what has run long enough, and begins what there is a thread for. True if anything did.
    pub(crate) fn turn(&mut self, now: Instant) -> bool {
        let mut worked = false;
        for (_, end) in self.running.extract_if(.., |(until, _)| *until <= now) {
            end.tell();
            worked = true;
        }
        while self.running.len() < self.threads {
            let Ok(job) = self.queue.try_recv() else {
                self.worker.rest();
                break;
            };
            worked = true;
            if let Some(end) = self.worker.run(job, now) {
                let takes = Duration::from_micros(self.random.u64(self.takes_us.clone()));
                self.running.push((now + takes, end));
            }
        }
        worked
    }

    /// When the next handler ends.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.running.iter().map(|(until, _)| *until).min()
    }
}
