//! The threads of blocking handlers, and the one of the built-in handlers.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender};
use quanta::Clock;

use super::start::{shedding, spawn_helper};
use crate::{
    config::{Blocking, Settings},
    error::StartError,
    handler::Handler,
    placement::Plan,
    route::Doorbell,
    shard::{BlockingJob, BlockingPort, BlockingWorker, Shedding},
};

/// How long the end of a runtime waits for blocking handlers that still run.
const PATIENCE: Duration = Duration::from_millis(500);
/// Messages to built-in handlers that wait for the operator's thread.
const QUESTIONS_MAX: usize = 16;

/// The threads, and the queue that they share.
pub(super) struct Pool {
    /// `None` once it is to end: each shard has one, too, until it is over.
    jobs: Option<Sender<BlockingJob>>,
    queue: Receiver<BlockingJob>,
    under_way_max: usize,
    crew: Crew,
    threads: Vec<JoinHandle<()>>,
}

/// How the threads are made.
struct Crew {
    name: &'static str,
    threads: usize,
    shedding: Option<Shedding>,
    plan: Plan,
    clock: Clock,
}

impl Pool {
    /// Whether a handler needs threads that the configuration forbids.
    pub(super) fn check(handlers: &[Handler], settings: &Settings) -> Result<(), StartError> {
        match handlers.iter().find(|handler| handler.is_blocking()) {
            Some(handler) if settings.blocking().threads == 0 => Err(StartError::NoThreads {
                at: settings.place_of("blocking.threads"),
                handler: handler.name().to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Makes the queue, and starts the threads if any handler is for them. If one cannot be
    /// started, those before it end. `None` if the configuration forbids them.
    pub(super) fn start(
        handlers: &[Handler],
        settings: &Settings,
        plan: &Plan,
        clock: &Clock,
    ) -> Result<Option<Self>, StartError> {
        let Blocking {
            threads,
            queue_capacity,
            ..
        } = settings.blocking();
        if threads == 0 {
            return Ok(None);
        }
        let crew = Crew {
            name: "corelane-blocking",
            threads,
            shedding: shedding(settings.limits()),
            plan: plan.clone(),
            clock: clock.clone(),
        };
        let mut pool = Self::new(crew, queue_capacity);
        if handlers.iter().any(Handler::is_blocking) {
            pool.start_threads()?;
        }
        Ok(Some(pool))
    }

    /// Starts the one thread of the built-in handlers that wait for shards or files.
    pub(super) fn start_operator(plan: &Plan, clock: &Clock) -> Result<Self, StartError> {
        let crew = Crew {
            name: "corelane-operator",
            threads: 1,
            shedding: None,
            plan: plan.clone(),
            clock: clock.clone(),
        };
        let mut pool = Self::new(crew, QUESTIONS_MAX);
        pool.start_threads()?;
        Ok(pool)
    }

    fn new(crew: Crew, queue_capacity: usize) -> Self {
        let (jobs, queue) = crossbeam_channel::bounded(queue_capacity);
        Self {
            jobs: Some(jobs),
            queue,
            under_way_max: queue_capacity + crew.threads,
            crew,
            threads: Vec::new(),
        }
    }

    /// Starts the threads that do not run yet, as far as that can be done.
    pub(super) fn start_threads(&mut self) -> Result<(), StartError> {
        let crew = &self.crew;
        while self.threads.len() < crew.threads {
            let (queue, clock) = (self.queue.clone(), crew.clock.clone());
            let shedding = crew.shedding;
            let work = move || work(&queue, &clock, BlockingWorker::new(shedding));
            let thread = spawn_helper(crew.name, &crew.plan, work)?;
            self.threads.push(thread);
        }
        Ok(())
    }

    pub(super) fn lock(pool: &Mutex<Self>) -> MutexGuard<'_, Self> {
        pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to it for the shard that hears this doorbell.
    pub(super) fn port(&self, doorbell: &Arc<Doorbell>) -> BlockingPort {
        let jobs = self.jobs.clone().expect("has not ended");
        BlockingPort::new(jobs, self.under_way_max, doorbell)
    }
}

/// Ends when no shard is left that could bring a job, and no job.
fn work(queue: &Receiver<BlockingJob>, clock: &Clock, mut worker: BlockingWorker) {
    while let Some(job) = next(queue, || worker.rest()) {
        if let Some(end) = worker.run(job, clock.now()) {
            end.tell();
        }
    }
}

/// The next job. `rest` is called before it is waited for, and only then: whoever has to wait has
/// found no queue, whatever came in the meantime.
fn next<T>(queue: &Receiver<T>, rest: impl FnOnce()) -> Option<T> {
    if let Ok(job) = queue.try_recv() {
        return Some(job);
    }
    rest();
    queue.recv().ok()
}

/// By now the shards are over. A handler cannot be called off: a thread whose handler runs on ends
/// when that returns.
impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        // Not those of a shard that could not be stopped either.
        while self.queue.try_recv().is_ok() {}
        let left = join_within(std::mem::take(&mut self.threads), PATIENCE);
        if left > 0 {
            tracing::error!(
                threads = left,
                "blocking handlers do not return; their threads are left to themselves"
            );
        }
    }
}

/// Joins those of the threads that end within this time. Returns how many do not.
pub(super) fn join_within(mut threads: Vec<JoinHandle<()>>, patience: Duration) -> usize {
    let until = std::time::Instant::now() + patience;
    loop {
        for thread in threads.extract_if(.., |thread| thread.is_finished()) {
            let _ = thread.join();
        }
        if threads.is_empty() || std::time::Instant::now() >= until {
            return threads.len();
        }
        thread::sleep(Duration::from_micros(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or a thread that waits because another has taken what it saw would shed later on, though no
    /// queue had stood.
    #[test]
    fn a_thread_rests_before_it_waits_and_not_between_jobs_that_are_there() {
        let (jobs, queue) = crossbeam_channel::bounded(2);
        let rested = std::cell::Cell::new(0);
        // It is told so while there is still nothing: what comes then is taken all the same.
        let rest = || {
            rested.set(rested.get() + 1);
            jobs.send(rested.get()).expect("there is room");
        };
        jobs.send(10).unwrap();
        jobs.send(11).unwrap();
        let taken = || (next(&queue, rest), rested.get());
        assert_eq!([taken(), taken()], [(Some(10), 0), (Some(11), 0)]);
        assert_eq!([taken(), taken()], [(Some(1), 1), (Some(2), 2)]);
        let (jobs, queue) = crossbeam_channel::bounded::<()>(1);
        drop(jobs);
        let mut has_rested = false;
        assert_eq!(next(&queue, || has_rested = true), None);
        assert!(has_rested);
    }
}
