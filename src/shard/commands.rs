//! What the runtime asks for, and how a shard ends.

use std::{collections::VecDeque, time::Duration};

use quanta::Instant;

use super::{Command, Core, Drained, Draining, Phase, Shard, tasks::Ran};
use crate::{
    engine::{Engine, Outgoing},
    metrics::Blank,
    wire::{Header, Kind},
};

/// For so long a draining shard goes on reading, to nack what was sent before its goodbye arrived,
/// and after its last answer, so that the answer is there before the connection closes.
const LINGER: Duration = Duration::from_millis(50);

impl<E: Engine> Shard<E> {
    pub(super) fn obey_commands(&mut self, now: Instant) -> usize {
        let mut count = 0;
        while let Some(command) = self.core.commands.pop() {
            count += 1;
            match command {
                Command::Measure { blank, reply } => {
                    self.core.gauge(self.engine.outgoing());
                    let interval = self.core.recorder.take(*blank);
                    let _ = reply.send((self.core.info.shard, interval, self.core.called_names()));
                }
                Command::Peers { listed_max, reply } => {
                    // Nobody there: the asker has gone on without.
                    let _ = reply.send(self.core.list_peers(now, listed_max));
                }
                Command::Run(guest) => {
                    let future = guest(self.core.task_context());
                    self.core.tasks.spawn_guest(future);
                }
                Command::Change { change, reply } => self.change(change, &reply),
                Command::Drain { until, done } => self.begin_drain(now, until, done),
            }
        }
        count
    }

    fn begin_drain(
        &mut self,
        now: Instant,
        until: Instant,
        done: crossbeam_channel::Sender<Drained>,
    ) {
        if let Phase::Draining(draining) = &mut self.core.phase {
            draining.until = draining.until.min(until);
            draining.linger_until = draining.linger_until.min(draining.until);
            draining.done.push_back(done);
            return;
        }
        self.engine.stop_listening();
        self.core.run_batches(None);
        self.core.registry.board().close();
        self.core.side.caller.borrow_mut().refuse_new();
        let goodbye = Header::new(Kind::Goodbye, 0);
        let introduced = self.core.introduced.iter();
        // Who drains, too, sends nothing new.
        let introduced = introduced.filter(|(_, it)| !it.is_draining);
        let introduced = introduced.map(|(&connection, _)| connection);
        // Servers may send to this process by the connections that it has dialed.
        for connection in introduced.chain(self.core.met()) {
            if let Some(outbox) = self.engine.outbox(connection) {
                // A peer whose queue is full learns of it when the connection closes.
                let _ = outbox.push(&goodbye, &[]);
            }
        }
        self.core.phase = Phase::Draining(Draining {
            until,
            linger_until: (now + LINGER).min(until),
            has_answered: true,
            done: VecDeque::from([done]),
        });
    }

    /// Ends the shard once all is answered and sent, or the drain's time is over.
    pub(super) fn step_drain(&mut self, now: Instant) {
        let Self { engine, core } = self;
        let is_batching = core.batches.under_way() != (0, 0);
        let Phase::Draining(draining) = &mut core.phase else {
            return;
        };
        let is_calling = !core.side.caller.borrow().is_idle();
        let is_serving = core.tasks.live() > 0
            || core.jobs.under_way() > 0
            || is_batching
            || !core.crossing.is_idle();
        let is_flushed = engine.is_flushed();
        if is_flushed && std::mem::take(&mut draining.has_answered) {
            // The last answer may have waited until now for its peer to read.
            draining.linger_until = (now + LINGER).min(draining.until);
        }
        let is_done = !is_serving && !is_calling && is_flushed;
        if now < draining.until && !(is_done && now >= draining.linger_until) {
            return;
        }
        let done = std::mem::take(&mut draining.done);
        core.phase = Phase::Over;
        self.give_up();
        for told in done {
            let _ = told.send(self.core.last_words(self.engine.outgoing()));
        }
    }
}

impl<E: Engine> Shard<E> {
    /// What is under way now ends here, and is counted.
    fn give_up(&mut self) {
        // Those that wait for their turn are tasks, too; but they will not run.
        let unbegun = self.core.registry.lines().waiting();
        // Nor will those whose turn never came, and there was no room to say so.
        let out_of_turn = self.core.tasks.count_finished(|ran| ran == Ran::OutOfTurn);
        let unbegun = unbegun + out_of_turn;
        let begun = self.core.tasks.live_handlers() - unbegun;
        self.core.recorder.counters.indeterminate += begun as u64;
        self.core.recorder.counters.lost += unbegun as u64;
        self.core.recorder.counters.lost += self.core.crossing.held() as u64;
        let (waiting, unanswered) = self.core.batches.under_way();
        // Too late or cancelled as their batch ran, and there was no room to say so.
        let not_run = self.core.tasks.count_finished(|ran| ran == Ran::OutOfBatch);
        self.core.recorder.counters.lost += (waiting + not_run) as u64;
        self.core.recorder.counters.indeterminate += (unanswered - not_run) as u64;
        self.core.give_jobs_up();
        self.stop_calling();
        self.core.record_ends();
    }
}

impl Core {
    /// Something was answered: a draining shard stays a little longer. A close right behind an
    /// answer can overtake it, where the peer writes at that moment and finds the connection gone.
    pub(super) fn linger(&mut self, now: Instant) {
        if let Phase::Draining(draining) = &mut self.phase {
            draining.linger_until = (now + LINGER).min(draining.until);
            draining.has_answered = true;
        }
    }

    /// Takes down how much there is of what comes and goes.
    fn gauge(&mut self, outgoing: Outgoing) {
        for handler in 0..self.recorder.names().len() {
            let (running, running_most) = self.registry.under_way(handler);
            let (waiting, waiting_most) = self.batches.waiting_for(handler);
            let most = running_most.max(waiting_most);
            let recorder = &mut self.recorder;
            recorder.record_under_way(handler, running + waiting, most);
        }
        let counters = &mut self.recorder.counters;
        counters.spawned_now = self.tasks.live() as u64;
        counters.spawned_most = self.tasks.most_handlers() as u64;
        counters.blocking_now = self.jobs.under_way_on_pool() as u64;
        counters.blocking_most = self.jobs.most_on_pool() as u64;
        counters.batched_now = self.batches.under_way().0 as u64;
        counters.batched_most = self.batches.most_waiting() as u64;
        let caller = self.side.caller.borrow();
        counters.outstanding_now = caller.outstanding() as u64;
        counters.outstanding_most = caller.most_outstanding() as u64;
        counters.inbox_now = self.submissions.len() as u64;
        counters.inbox_most = self.inbox_most as u64;
        let (now, most) = self.crossing.waiting();
        (counters.ring_now, counters.ring_most) = (now as u64, most as u64);
        counters.outgoing_now = outgoing.now as u64;
        counters.outgoing_most = outgoing.most as u64;
    }

    fn last_words(&mut self, outgoing: Outgoing) -> Drained {
        self.gauge(outgoing);
        self.recorder.counters.spawned_now = 0;
        self.recorder.counters.blocking_now = 0;
        self.recorder.counters.outstanding_now = 0;
        self.recorder.counters.batched_now = 0;
        self.recorder.counters.outgoing_now = 0;
        Drained {
            shard: self.info.shard,
            counters: self.recorder.counters,
            interval: self.recorder.take(Blank::new(self.recorder.names().len())),
            called_names: self.called_names(),
        }
    }
}
