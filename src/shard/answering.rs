//! The serving side: messages from peers, and their answers.

use std::time::Duration;

use quanta::Instant;

use super::{
    Core, Parcel, Phase, Shard,
    batches::Waiting,
    callers::At,
    tasks::{FinishedTask, Origin, Ran, TaskEnd},
    turn::nanos,
};
use crate::{
    engine::{ConnectionId, Engine, Incoming},
    error::Malformation,
    handler::{Arrival, Dispatch, Lent, Spawning},
    wire::{Header, Hello, Kind, Outbox, Reason, Received},
};

/// Unreadable headers in a row after which a connection is closed.
const STRIKES_MAX: u32 = 3;

pub(super) const HAS_WAITED: &str = "it has waited longer than limits.shed_target_us";
pub(super) const IS_STOPPING: &str = "this process is stopping";

impl Core {
    /// A message of two frames has arrived.
    pub(super) fn on_message(&mut self, now: Instant, incoming: Incoming<'_>) {
        let Incoming {
            connection,
            since,
            mut message,
            outbox,
        } = incoming;
        let header = match Header::decode(message.header()) {
            Ok(header) => header,
            Err(error) => {
                if let Some(correlation) = error.correlation {
                    nack(outbox, correlation, Reason::Malformed, &error.to_string());
                }
                return self.strike(connection, error.what);
            }
        };
        if !self.strikes.is_empty() {
            self.strikes.remove(&connection);
        }
        match header.kind {
            Kind::OneWay | Kind::Confirm | Kind::Request => {
                self.serve((now, since), connection, header, &mut message, outbox);
            }
            Kind::Ack | Kind::Response | Kind::Nack => {
                self.on_answer(now, connection, &header, &mut message);
            }
            Kind::Hello => self.on_hello(now, connection, &header, message.payload(), outbox),
            Kind::Welcome => self.on_welcome(now, connection, message.payload()),
            Kind::Goodbye => self.on_goodbye(connection),
            Kind::Cancel => self.on_cancel(now, connection, &header),
        }
    }

    fn serve(
        &mut self,
        (turn_began, since): (Instant, Option<Instant>),
        connection: ConnectionId,
        header: Header,
        message: &mut Received<'_>,
        outbox: &mut Outbox,
    ) {
        self.recorder.counters.accepted += 1;
        if !self.takes(&header) {
            return self.refuse(outbox, &header, Reason::Draining, IS_STOPPING);
        }
        if message.payload_bytes() > self.options.message_bytes_max {
            return self.refuse_too_large(outbox, &header);
        }
        let read = self.read_time(turn_began);
        if since.is_some_and(|since| self.sheds(&header, since, read)) {
            return self.refuse(outbox, &header, Reason::Overloaded, HAS_WAITED);
        }
        let deadline = match header.deadline_us {
            0 => None,
            us => Some(turn_began + Duration::from_micros(u64::from(us))),
        };
        if let Some(shard) = self.registry.elsewhere(&header) {
            let times = (read, deadline);
            return self.send_over(shard, connection, header, times, message, outbox);
        }
        let asker = At {
            connection,
            shard: self.info.shard,
            introduced: &self.introduced,
            peers: &self.peers,
        };
        let lent = Lent {
            shard: &self.info,
            client: &self.local_client,
            asker: &asker,
            timers: &self.timers,
            may_spawn: self.tasks.has_room(),
            reply_bytes_max: self.options.message_bytes_max,
        };
        let arrival = Arrival {
            header,
            message: &mut *message,
            outbox: &mut *outbox,
            deadline,
            now: read,
        };
        match self.registry.dispatch(arrival, &lent) {
            Dispatch::Handled(handler) => {
                self.recorder.counters.handled += 1;
                self.record_inline(handler, read, header.kind);
            }
            Dispatch::Nacked(handler, reason) => {
                self.recorder.counters.count_nack(reason.to_u16());
                match handler {
                    Some(handler) => {
                        self.recorder.record_nack(handler, reason.to_u16());
                        self.record_inline(handler, read, header.kind);
                    }
                    None => self.record_refusal(&header, reason),
                }
            }
            Dispatch::Spawn(spawning) => {
                self.recorder.counters.spawned += 1;
                self.registry.begin(spawning.handler);
                let origin = Origin::here(connection, outbox);
                let underway = &mut self.underway;
                self.tasks.spawn(origin, read, spawning, underway);
            }
            Dispatch::Order(handler) => {
                let times = (read, deadline);
                self.order(handler, connection, header, times, message, outbox);
            }
            Dispatch::Block(call) => self.block(connection, read, call, message, outbox),
            Dispatch::Collect(handler) => {
                let is_answered = header.kind != Kind::OneWay;
                let waiting = Waiting {
                    origin: Origin::here(connection, outbox),
                    header,
                    read,
                    deadline,
                    promise: is_answered.then(|| outbox.promise()),
                    is_cancelled: false,
                };
                self.join_batch(handler, waiting, message.payload_bytes());
            }
            Dispatch::NoRoom => self.lose(&header),
        }
    }

    /// Whether a message may run: while the process drains, a few built-in ones.
    #[inline]
    pub(super) fn takes(&mut self, header: &Header) -> bool {
        matches!(self.phase, Phase::Running) || self.registry.runs_while_draining(header)
    }

    /// Whether a message is refused, for it has waited since then. It is counted as shed.
    #[inline]
    pub(super) fn sheds(&mut self, header: &Header, since: Instant, now: Instant) -> bool {
        // Who asks how a shard is that cannot keep up is answered.
        let sheds = self.shedder.refuses(since, now) && !self.registry.is_built_in(header);
        self.recorder.counters.shed += u64::from(sheds);
        sheds
    }

    /// A message has arrived whose payload was not taken in.
    pub(super) fn on_declined(
        &mut self,
        connection: ConnectionId,
        header: &[u8],
        reason: Reason,
        outbox: &mut Outbox,
    ) {
        let header = match Header::decode(header) {
            Ok(header) => header,
            Err(error) => return self.strike(connection, error.what),
        };
        match (header.kind, reason) {
            (Kind::OneWay | Kind::Confirm | Kind::Request, Reason::TooLarge) => {
                self.recorder.counters.accepted += 1;
                self.refuse_too_large(outbox, &header);
            }
            (Kind::OneWay | Kind::Confirm | Kind::Request, reason) => {
                self.recorder.counters.accepted += 1;
                self.refuse(
                    outbox,
                    &header,
                    reason,
                    "limits.buffered_bytes_max is reached",
                );
            }
            // Its call ends by its deadline: there was an answer, and it was not to be had.
            _ => self.recorder.counters.late_answers += 1,
        }
    }

    fn refuse_too_large(&mut self, outbox: &mut Outbox, header: &Header) {
        let bytes_max = self.options.message_bytes_max;
        let text = format!("limits.message_bytes_max is {bytes_max}");
        self.refuse(outbox, header, Reason::TooLarge, &text);
    }

    pub(super) fn refuse(
        &mut self,
        outbox: &mut Outbox,
        header: &Header,
        reason: Reason,
        text: &str,
    ) {
        if header.kind != Kind::OneWay && !nack(outbox, header.correlation, reason, text) {
            self.lose(header);
        } else {
            self.recorder.counters.count_nack(reason.to_u16());
            self.record_refusal(header, reason);
        }
    }

    /// A message was nacked before its handler ran: it is counted for the shard already.
    pub(super) fn record_refusal(&mut self, header: &Header, reason: Reason) {
        if let Some(handler) = self.registry.index_of(header.handler) {
            self.recorder.record_refusal(handler, reason.to_u16());
        }
    }

    /// A message is dropped: there is no room for its answer.
    #[cold]
    pub(super) fn lose(&mut self, header: &Header) {
        self.recorder.counters.lost += 1;
        if let Some(handler) = self.registry.index_of(header.handler) {
            self.recorder.record_stop(handler, false);
        }
    }

    /// When the message that is being looked at was read. One look at the clock serves all messages
    /// of a poll between which no handler ran.
    #[inline]
    pub(super) fn read_time(&mut self, turn_began: Instant) -> Instant {
        match self.read_at {
            Some(read_at) => read_at,
            None => {
                let now = self.clock.now().max(turn_began);
                self.read_at = Some(now);
                now
            }
        }
    }

    #[inline]
    pub(super) fn record_inline(&mut self, handler: usize, began: Instant, kind: Kind) {
        // The end of one run is the beginning of the next.
        let ended = self.clock.now();
        self.read_at = Some(ended);
        let ran_ns = nanos(ended.saturating_duration_since(began));
        let budget_ns = self.inline_budget_ns;
        if self.recorder.record_inline_run(handler, ran_ns, budget_ns) {
            self.outran(handler, ran_ns);
        }
        if kind != Kind::OneWay {
            self.replied.push((handler, began));
        }
    }

    /// Names a handler that outran its budget; again only when it has doubled its longest run, so
    /// that a slow one does not flood the log. Its policy may demote it.
    #[cold]
    pub(super) fn outran(&mut self, handler: usize, ran_ns: u64) {
        if self.registry.is_news(handler, ran_ns) {
            tracing::warn!(
                handler = self.registry.name_of(handler),
                shard = self.info.shard,
                ran_us = ran_ns / 1000,
                budget_us = self.options.inline_budget.as_micros() as u64,
                "a handler outran its inline budget; nothing else ran on its shard meanwhile"
            );
        }
        if self.registry.note_overrun(handler) {
            self.recorder.record_demotion(handler);
            tracing::warn!(
                handler = self.registry.name_of(handler),
                shard = self.info.shard,
                "an inline handler outran its budget too often; it runs as a task from now on"
            );
        }
    }

    /// An unreadable message; after a few in a row the connection is closed.
    pub(super) fn strike(&mut self, connection: ConnectionId, what: Malformation) {
        self.recorder.counters.malformed += 1;
        let strikes = self.strikes.entry(connection).or_insert(0);
        *strikes += 1;
        if *strikes == STRIKES_MAX {
            tracing::warn!(?connection, %what, "closed after {STRIKES_MAX} unreadable messages");
            self.condemned.push(connection);
        }
    }

    fn on_hello(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        header: &Header,
        payload: &mut [u8],
        outbox: &mut Outbox,
    ) {
        match Hello::decode(payload) {
            Ok(hello) => {
                tracing::debug!(?connection, instance = %hello.instance, "hello");
                self.introduce(now, connection, hello);
                let welcome = Header::new(Kind::Welcome, header.correlation);
                if outbox.push(&welcome, &self.hello).is_err() {
                    self.recorder.counters.answers_lost += 1;
                }
                if !matches!(self.phase, Phase::Running) {
                    // It connected after the others were told; without room its messages' nacks do.
                    let _ = outbox.push(&Header::new(Kind::Goodbye, 0), &[]);
                }
            }
            Err(error) => {
                nack(
                    outbox,
                    header.correlation,
                    Reason::Malformed,
                    &error.to_string(),
                );
            }
        }
    }
}

impl<E: Engine> Shard<E> {
    /// Writes the answers of tasks and of the pool's jobs that have finished.
    pub(super) fn answer_tasks(&mut self, now: Instant) -> usize {
        let Self { engine, core } = self;
        let mut count = 0;
        for _ in 0..core.tasks.finished_len() {
            let Some(task) = core.tasks.pop_finished() else {
                break;
            };
            count += 1;
            let unanswered = match task.origin {
                Origin::Here { connection, epoch } => {
                    let outbox = engine.outbox(connection);
                    let outbox = outbox.filter(|outbox| outbox.epoch() == epoch);
                    core.answer_task(now, task, outbox)
                }
                Origin::There { home, parcel } => {
                    core.answer_from_afar(now, home, parcel, task.end)
                }
            };
            if let Some(unanswered) = unanswered {
                // No room yet: it keeps its place among the tasks.
                core.tasks.push_back(unanswered);
                count -= 1;
            }
        }
        if count > 0 {
            core.linger(now);
        }
        count
    }
}

impl Core {
    fn answer_task(
        &mut self,
        now: Instant,
        task: FinishedTask,
        outbox: Option<&mut Outbox>,
    ) -> Option<FinishedTask> {
        let end = &task.end;
        let answered = outbox.and_then(|outbox| match (end.promise, &end.result) {
            (Some(promise), result) => {
                if let Some(result) = result {
                    let _ = Spawning::answer(&end.header, result, &mut self.kept_answer);
                }
                let is_kept = outbox.keep(promise, &mut self.kept_answer);
                self.kept_answer.clear();
                is_kept.then_some(Ok(()))
            }
            (None, Some(result)) => Some(Spawning::answer(&end.header, result, outbox)),
            (None, None) => Some(Ok(())),
        });
        let is_awaited = end.header.kind != Kind::OneWay && end.result.is_some();
        let has_run = end.ran.is_somewhere();
        match answered {
            Some(Err(_)) => return Some(task),
            Some(Ok(())) if is_awaited && has_run => self.replied.push((end.handler, end.read)),
            Some(Ok(())) => {}
            None if is_awaited => self.recorder.counters.answers_lost += 1,
            None => {}
        }
        self.retire_task(now, task.end);
        None
    }

    /// The answer of a task whose message another shard has read goes there.
    fn answer_from_afar(
        &mut self,
        now: Instant,
        home: usize,
        parcel: Box<Parcel>,
        end: TaskEnd,
    ) -> Option<FinishedTask> {
        match self.crossing.answer_task(home, parcel, &end) {
            Ok(()) => {
                self.retire_task(now, end);
                None
            }
            Err(parcel) => Some(FinishedTask {
                origin: Origin::There { home, parcel },
                end,
            }),
        }
    }

    fn retire_task(&mut self, now: Instant, end: TaskEnd) {
        match end.ran {
            Ran::AsTask | Ran::OutOfTurn => self.tasks.retire(),
            Ran::InBatch | Ran::OutOfBatch => self.batches.retire(),
            Ran::OnThread(lane) | Ran::Nowhere(lane) => {
                self.jobs.retire(lane, end.ran.is_somewhere());
            }
        }
        if !matches!(end.ran, Ran::InBatch | Ran::OutOfBatch) {
            self.underway.remove(end.place);
            self.registry.end(end.handler);
        }
        if matches!(end.ran, Ran::AsTask | Ran::OnThread(_)) {
            let took = now.saturating_duration_since(end.read);
            self.recorder.record_in_handler(end.handler, nanos(took));
        }
        match end.result {
            Some(Ok(_)) => self.recorder.counters.handled += 1,
            Some(Err(failure)) => {
                let reason = failure.reason.to_u16();
                self.recorder.counters.count_nack(reason);
                let is_shed = matches!(end.ran, Ran::Nowhere(_));
                let is_shed = is_shed && failure.reason == Reason::Overloaded;
                self.recorder.counters.shed += u64::from(is_shed);
                match end.ran.is_somewhere() {
                    true => self.recorder.record_nack(end.handler, reason),
                    false => self.recorder.record_refusal(end.handler, reason),
                }
            }
            None => self.count_stopped(end.ran, end.handler),
        }
    }
}

impl Core {
    /// A message has ended without an answer: what has begun may have done anything.
    #[cold]
    fn count_stopped(&mut self, ran: Ran, handler: usize) {
        self.recorder.record_stop(handler, ran.is_somewhere());
        let counters = &mut self.recorder.counters;
        counters.stopped += 1;
        match ran {
            Ran::Nowhere(_) | Ran::OutOfBatch | Ran::OutOfTurn => counters.lost += 1,
            Ran::AsTask | Ran::OnThread(_) | Ran::InBatch => counters.indeterminate += 1,
        }
    }
}

/// Writes a nack; false if there is no room.
fn nack(outbox: &mut Outbox, correlation: u64, reason: Reason, text: &str) -> bool {
    let header = Header {
        reason,
        ..Header::new(Kind::Nack, correlation)
    };
    outbox.push(&header, text.as_bytes()).is_ok()
}
