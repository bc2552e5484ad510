//! The calling side: what this process sends, and the answers to it.

use quanta::Instant;

use super::{Core, Phase, Shard, turn::nanos};
use crate::{
    client::{Connect, Standing, Submission, Submitted, Target},
    engine::{ConnectionId, Engine},
    error::Lost,
    events::{Departure, Event},
    peers::{Entry, PeerId},
    wire::{Header, Kind, Outbox, Received},
};

impl<E: Engine> Shard<E> {
    /// Takes a bounded number of what other threads have submitted. What this shard's own tasks
    /// submit needs no taking: it is staged by then.
    pub(super) fn take_submissions(&mut self, now: Instant) -> usize {
        let mut count = 0;
        for _ in 0..self.core.options.turn_messages_max {
            let Some(submission) = self.core.submissions.pop() else {
                break;
            };
            count += 1;
            match submission {
                Submission::Message(message) => self.submit(now, message),
                Submission::Abandoned => {
                    self.core.side.caller.borrow_mut().look_for_abandoned();
                }
                Submission::Close(peer) => {
                    self.take_connect_of(now, peer);
                    if self.has_other_handles(now, peer) {
                        continue;
                    }
                    let until = now + self.core.options.close_within;
                    // Its links join it there.
                    self.core.closing.push((peer, until));
                }
            }
        }
        count
    }

    /// Begins the connections that tasks and other threads have asked for.
    pub(super) fn take_connects(&mut self, now: Instant) -> usize {
        let mut count = 0;
        while let Some(connect) = self.core.side.pop_connect() {
            self.connect(now, connect);
            count += 1;
        }
        count
    }

    fn connect(&mut self, now: Instant, connect: Connect) {
        let mut caller = self.core.side.caller.borrow_mut();
        caller.open(&connect);
        let Connect { peer, to, .. } = connect;
        if !matches!(self.core.phase, Phase::Running) {
            return caller.stand(peer, Standing::Unconnectable);
        }
        let endpoint = match to {
            Target::Endpoint(endpoint) => endpoint,
            Target::Caller(instance) => {
                drop(caller);
                return self.speak_of(instance, peer);
            }
        };
        match self.engine.connect(&endpoint) {
            Ok(connection) => {
                drop(caller);
                self.core.peers.insert(peer, connection);
                self.core.expect_link(now, peer);
            }
            Err(error) => {
                tracing::error!(%endpoint, %error, "cannot connect");
                caller.stand(peer, Standing::Unconnectable);
                drop(caller);
                self.core.do_without_link(now, peer);
            }
        }
    }

    /// What speaks of a peer may overtake its connection, which stands in another queue and may
    /// have been asked for after this turn had looked there.
    fn take_connect_of(&mut self, now: Instant, id: PeerId) {
        let is_closing = self.core.closing.iter().any(|&(closing, _)| closing == id);
        if is_closing || !self.core.side.caller.borrow().knows(id) {
            self.take_connects(now);
        }
    }

    /// A handle to a peer is gone. Whether there are others: to a process that connects to this one
    /// several may be asked for in turn, and the next one before the last is let go.
    fn has_other_handles(&mut self, now: Instant, id: PeerId) -> bool {
        let instance = self.core.side.caller.borrow().instance_of(id);
        let Some(instance) = instance else {
            return false;
        };
        self.take_connects(now);
        !self.core.callers.drop_handle(instance, id)
    }

    fn submit(&mut self, now: Instant, message: Submitted) {
        self.take_connect_of(now, message.peer());
        self.core.side.caller.borrow_mut().submit(now, message);
    }

    /// Closes the connections that nobody speaks of any more, once what was to be sent has left.
    pub(super) fn close_quiet_peers(&mut self, now: Instant) {
        if self.core.closing.is_empty() {
            return;
        }
        let mut closing = std::mem::take(&mut self.core.closing);
        let mut at = 0;
        while let Some(&(id, until)) = closing.get(at) {
            let caller = self.core.side.caller.borrow();
            if caller.is_sending(id) && now < until {
                at += 1;
                continue;
            }
            // A process's main connection knows the others, and goes last: after those, too, that
            // were begun since its last handle went.
            let links = caller.links_of(id);
            let mut links = links.into_iter().filter(|link| caller.knows(*link));
            let added = links.find(|link| closing.iter().all(|(other, _)| other != link));
            if let Some(link) = added {
                closing.insert(at, (link, until));
                continue;
            }
            if caller.has_links(id) && now < until {
                at += 1;
                continue;
            }
            drop(caller);
            closing.remove(at);
            self.close_quiet(id);
        }
        self.core.closing = closing;
    }

    fn close_quiet(&mut self, id: PeerId) {
        if self.core.peers.is_accepted(id) {
            return self.let_go_of(id);
        }
        let Self { engine, core } = self;
        let instance = core.side.caller.borrow().instance_of(id);
        if let Some(instance) = instance {
            core.callers.forget(instance, id);
        }
        core.nearby.forget(id);
        core.part_from_dialed(id, Departure::LetGo);
        let connection = core.peers.connection_of(id);
        let mut caller = core.side.caller.borrow_mut();
        caller.close(id, connection.and_then(|it| engine.outbox(it)));
        drop(caller);
        core.peers.remove(id);
        if let Some(connection) = connection {
            engine.close(connection);
        }
    }

    /// Says hello on connections that have just come up, before anything else is sent. What is to
    /// be sent waits for the welcome: it says to which shard each message goes.
    pub(super) fn greet(&mut self, now: Instant) -> usize {
        if self.core.came_up.is_empty() {
            return 0;
        }
        let Self { engine, core } = self;
        let mut came_up = std::mem::take(&mut core.came_up);
        let count = came_up.len();
        let mut tried = Vec::new();
        came_up.retain(|&connection| {
            let Some((id, _)) = core.peers.dialed_at(connection) else {
                tried.extend(core.nearby.is_tried(connection).then_some(connection));
                return false;
            };
            let Some(outbox) = engine.outbox(connection) else {
                return false;
            };
            let hello = Header::new(Kind::Hello, 0);
            if outbox.push(&hello, &core.hello).is_err() {
                // Full of answers to what the peer sent first: hello goes once they have left.
                return true;
            }
            core.expect_welcome(now, id);
            false
        });
        core.came_up = came_up;
        let count = count - core.came_up.len();
        for connection in tried {
            self.greet_nearby(connection);
        }
        count
    }

    /// Moves what is to be sent into its connections' outboxes. Returns for how many of them there
    /// was anything.
    pub(super) fn load(&mut self, now: Instant) -> usize {
        let Self { engine, core } = self;
        let mut caller = core.side.caller.borrow_mut();
        caller.begin_load();
        let (mut loaded, mut index) = (0, 0);
        while let Some(id) = caller.busy(index) {
            if let Some(connection) = core.peers.connection_of(id)
                && let Some(outbox) = engine.outbox(connection)
            {
                loaded += usize::from(caller.load(now, id, outbox));
            }
            index += 1;
        }
        loaded
    }

    /// Enters what has left.
    pub(super) fn settle(&mut self) {
        let Self { engine, core } = self;
        let mut caller = core.side.caller.borrow_mut();
        let mut index = 0;
        while let Some(id) = caller.busy(index) {
            let connection = core.peers.connection_of(id);
            let outbox = connection.and_then(|connection| engine.look(connection));
            index += usize::from(caller.settle(index, outbox));
        }
    }

    /// Ends whatever goes to any peer, and what was submitted and not yet taken.
    pub(super) fn stop_calling(&mut self) {
        let now = self.core.clock.now();
        self.take_connects(now);
        let Self { engine, core } = self;
        let mut caller = core.side.caller.borrow_mut();
        // Other threads may go on submitting: they are refused once the inbox is gone.
        let inbox = std::iter::from_fn(|| core.submissions.pop());
        for submission in inbox.take(core.options.inbox_capacity) {
            if let Submission::Message(message) = submission {
                caller.submit(now, message);
            }
        }
        for id in caller.peers() {
            let connection = core.peers.connection_of(id);
            caller.close(id, connection.and_then(|it| engine.outbox(it)));
        }
    }
}

impl Core {
    pub(super) fn on_answer(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        header: &Header,
        message: &mut Received<'_>,
    ) {
        // The turn began before the answer was read, perhaps by many handlers' time.
        let now = self.read_time(now);
        let is_awaited = self.peers.id_at(connection).is_some_and(|peer| {
            let mut caller = self.side.caller.borrow_mut();
            caller.answer(now, peer, header, message)
        });
        if !is_awaited {
            self.recorder.counters.late_answers += 1;
        }
    }

    pub(super) fn on_goodbye(&mut self, connection: ConnectionId) {
        match self.peers.dialed_at(connection) {
            Some((id, _)) => {
                self.expected.retain(|it| it.peer != id);
                self.nearby.forget(id);
                let mut caller = self.side.caller.borrow_mut();
                caller.stand(id, Standing::Draining);
                drop(caller);
                let epoch = self.peers.note_goodbye(id);
                self.tell_of_dialed(id, epoch, Event::Draining);
            }
            None => {
                let shard = self.info.shard;
                if let Some(it) = self.introduced.get_mut(&connection)
                    && !std::mem::replace(&mut it.is_draining, true)
                {
                    self.news.tell(|| Event::Draining(it.info(shard)));
                }
                if let Some(link) = self.peers.id_at(connection) {
                    let mut caller = self.side.caller.borrow_mut();
                    caller.stand(link, Standing::Draining);
                }
            }
        }
    }

    pub(super) fn on_down(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        why: &Lost,
        outbox: &mut Outbox,
    ) {
        if *why == Lost::SlowConsumer {
            self.recorder.counters.slow_consumers += 1;
        }
        self.strikes.remove(&connection);
        self.came_up.retain(|&up| up != connection);
        let is_ended = self.end_sent_by(connection, outbox);
        self.part_from(connection, Departure::Lost(why.clone()));
        match self.peers.id_at(connection) {
            // Its goodbye was this connection's, too; whoever comes next has said none.
            Some(id) => {
                let answers = self.side.caller.borrow_mut().lost(id, outbox);
                self.recorder.counters.answers_lost += answers as u64;
                self.part_from_dialed(id, Departure::Lost(why.clone()));
                self.nearby.forget(id);
                let instance = self.peers.instance_of(id);
                let pauses = self.options.reconnect;
                let mut caller = self.side.caller.borrow_mut();
                let losses = caller.lose_way(now, id, instance, pauses.longest);
                drop(caller);
                if let Some(losses) = losses {
                    self.nearby.lose(now, id, losses, &pauses);
                }
                self.expect_link(now, id);
            }
            None if is_ended || self.nearby.on_down(now, connection) => {}
            None => self.recorder.counters.answers_lost += outbox.messages() as u64,
        }
    }

    /// The connections that were dialed and stand, to shards of processes that are known and have
    /// not said goodbye.
    pub(super) fn met(&self) -> Vec<ConnectionId> {
        let caller = self.side.caller.borrow();
        let up = caller.acquaintances();
        let up = up
            .filter(|it| it.standing == Standing::Up)
            .map(|it| it.peer);
        let met = up.filter(|it| self.peers.instance_of(*it).is_some());
        met.filter_map(|it| self.peers.connection_of(it)).collect()
    }

    /// An accepted connection is closed for messages that cannot be read.
    pub(super) fn condemn(&mut self, connection: ConnectionId, outbox: Option<&mut Outbox>) {
        let mut nothing = Outbox::new(0, 0);
        let outbox = outbox.unwrap_or(&mut nothing);
        let is_ended = self.end_sent_by(connection, outbox);
        if !is_ended && !self.nearby.is_tried(connection) {
            self.recorder.counters.answers_lost += outbox.messages() as u64;
        }
        self.part_from(connection, Departure::Unreadable);
    }

    /// The names of the handlers that peers have told of.
    pub(super) fn called_names(&self) -> Vec<String> {
        self.peers.handler_names().map(String::from).collect()
    }

    /// Counts how this shard's own messages have ended.
    #[inline]
    pub(super) fn record_ends(&mut self) {
        let mut caller = self.side.caller.borrow_mut();
        if !caller.has_news() {
            return;
        }
        let ends = caller.take_ends();
        let counters = &mut self.recorder.counters;
        counters.calls += ends.calls;
        counters.answered += ends.of(Entry::Handled);
        counters.call_nacked += ends.of(Entry::Nacked);
        counters.call_indeterminate += ends.of(Entry::Indeterminate);
        counters.not_sent += ends.of(Entry::NotSent);
        counters.one_way_sent += ends.of(Entry::OneWaySent);
        counters.one_way_lost += ends.of(Entry::Lost);
        for (handler, took) in caller.drain_round_trips() {
            self.recorder.record_round_trip(handler.get(), nanos(took));
        }
    }
}
