//! The reactor.

use quanta::Instant;

use super::{Core, Phase, Shard};
use crate::{
    engine::{Engine, Event},
    error::Malformation,
};

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Whether anything happened: then the next turn should follow at once.
    pub worked: bool,
    /// The shard is drained: no turn must follow.
    pub is_over: bool,
}

impl<E: Engine> Shard<E> {
    /// Does all that can be done at this time without blocking, in a bounded amount of work.
    pub fn turn(&mut self, now: Instant) -> Turn {
        self.core.shedder.begin(now);
        let mut work = self.read_mail(now);
        // What tasks have submitted since the last turn does not wait for a look at the sockets.
        work += self.send(now);
        work += self.poll(now);
        work += self.cross(now);
        work += self.greet(now);
        work += self.core.timers.fire(now);
        work += self.core.run_due_batches(now);
        work += self.answer_tasks(now);
        work += self.tell_changes();
        self.core.publish();
        self.core.side.caller.borrow_mut().expire(now);
        self.core.underway.expire(now);
        self.core.stop_expecting(now);
        // Before the welcome leaves: whoever has it is known.
        self.core.news.hand_on();
        work += self.flush(now);
        work += self.send(now);
        self.close_quiet_peers(now);
        self.core.record_ends();
        self.step_drain(now);
        if work == 0 {
            self.core.shedder.rest();
        }
        Turn {
            worked: work > 0,
            is_over: matches!(self.core.phase, Phase::Over),
        }
    }

    /// The last look before parking: whether only the engine's descriptor, the doorbell, a task or
    /// a timer can bring work.
    pub fn may_park(&mut self) -> bool {
        let core = &self.core;
        let is_quiet = core.submissions.is_empty()
            && core.commands.is_empty()
            && core.side.is_quiet()
            && !core.tasks.has_finished()
            && !core.tasks.has_mail()
            && !core.jobs.has_finished()
            && core.untold.is_empty();
        is_quiet && self.core.crossing.may_park() && self.engine.may_park()
    }

    /// Takes what other threads have sent, if the doorbell was rung since the last time.
    #[inline]
    fn read_mail(&mut self, now: Instant) -> usize {
        let rings = self.core.doorbell.rings();
        if rings == self.core.rings_heard && !self.core.side.has_own_connects() {
            return 0;
        }
        let commands = self.obey_commands(now);
        let connects = self.take_connects(now);
        self.core.inbox_most = self.core.inbox_most.max(self.core.submissions.len());
        let submissions = self.take_submissions(now);
        let finished = self.core.take_finished_jobs();
        let most = self.core.options.turn_messages_max;
        let woken = self.core.tasks.take_mail(most);
        // Full measure: there may be more, and nobody rings for it again.
        if submissions.max(finished).max(woken) < most {
            self.core.rings_heard = rings;
        }
        commands + connects + submissions + finished + woken
    }

    fn poll(&mut self, now: Instant) -> usize {
        let Self { engine, core } = self;
        let messages_max = core.options.turn_messages_max;
        core.read_at = None;
        let events = engine.poll(now, messages_max, &mut |event| core.on_event(now, event));
        while let Some(connection) = core.condemned.pop() {
            core.strikes.remove(&connection);
            // A peer that was dialed is not given up for what one connection brought.
            if core.peers.dialed_at(connection).is_some() {
                engine.redial(connection);
                continue;
            }
            core.condemn(connection, engine.outbox(connection));
            // One that is tried or left is closed below, with what it means for its peer.
            if !core.nearby.on_down(now, connection) {
                engine.close(connection);
            }
        }
        if self.core.news.is_due {
            self.bind_callers();
        }
        if self.core.nearby.is_due {
            self.step_nearby(now);
        }
        events
    }

    /// Sends what is to be sent to peers and has room.
    #[inline]
    fn send(&mut self, now: Instant) -> usize {
        let wants_load = self.core.side.caller.borrow().wants_load();
        match wants_load {
            true => self.load(now) + self.flush(now),
            false => 0,
        }
    }

    /// Lets out what the turn has written, and enters what has left.
    #[inline]
    fn flush(&mut self, now: Instant) -> usize {
        let messages = self.engine.flush(now);
        self.core.record_replies();
        let is_busy = self.core.side.caller.borrow().is_busy();
        if is_busy {
            self.settle();
        }
        messages
    }

    /// When the next turn must come though nothing arrives.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        let drain = match &self.core.phase {
            Phase::Draining(draining) if now < draining.linger_until => Some(draining.linger_until),
            Phase::Draining(draining) => Some(draining.until),
            _ => None,
        };
        let drain = match self.core.news.is_due {
            true => drain.into_iter().chain(self.core.news.next_due(now)).min(),
            false => drain,
        };
        let drain = match self.core.nearby.is_due {
            true => drain.into_iter().chain(self.core.nearby.next_due()).min(),
            false => drain,
        };
        let timers = [
            self.core.closing.iter().map(|&(_, until)| until).min(),
            self.core.side.caller.borrow().next_deadline(),
            self.core.expected.iter().map(|it| it.until).min(),
            self.core.timers.next_due(),
            self.core.batches.next_due(),
            self.core.underway.next_deadline(),
            self.engine.next_wake(),
            drain,
        ];
        timers.into_iter().flatten().min()
    }
}

impl Core {
    fn on_event(&mut self, now: Instant, event: Event<'_>) {
        match event {
            Event::Message(incoming) => self.on_message(now, incoming),
            Event::Up(connection) => self.came_up.push(connection),
            Event::Declined {
                connection,
                header,
                reason,
                outbox,
            } => self.on_declined(connection, header, reason, outbox),
            Event::Malformed { connection, frames } => {
                self.strike(connection, Malformation::Frames(frames));
                if frames > self.options.frames_max {
                    self.condemned.push(connection);
                }
            }
            Event::Down {
                connection,
                why,
                outbox,
            } => self.on_down(now, connection, &why, outbox),
        }
    }

    /// Records, once the turn's replies are written out, how long each took from the read of its
    /// message.
    #[inline]
    fn record_replies(&mut self) {
        if self.replied.is_empty() {
            return;
        }
        let written = self.clock.now();
        for (handler, read) in self.replied.drain(..) {
            let took = written.saturating_duration_since(read);
            self.recorder.record_read_to_reply(handler, nanos(took));
        }
    }
}

/// Saturates after 584 years.
#[inline]
pub(super) fn nanos(duration: std::time::Duration) -> u64 {
    let seconds_ns = duration.as_secs().saturating_mul(1_000_000_000);
    seconds_ns.saturating_add(u64::from(duration.subsec_nanos()))
}
