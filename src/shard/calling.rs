//! The calling side: what this process sends, and the answers to it.

use quanta::Instant;

use super::{Core, Phase, Shard};
use crate::{
    client::{Connect, Submission, Submitted},
    engine::{ConnectionId, Engine},
    error::{Lost, NotSent},
    peers::PeerId,
    wire::{Header, Hello, Kind, Outbox},
};

impl<E: Engine> Shard<E> {
    /// Takes what this shard's tasks have submitted, and a bounded number of what other threads
    /// have: neither can keep the other waiting. The tasks' queue goes first and whole, since
    /// another thread may only say that a peer is to be closed once all has been sent to it.
    pub(super) fn take_submissions(&mut self, now: Instant) -> usize {
        let mut count = 0;
        while let Some(submission) = self.core.local_queue.pop() {
            self.take_submission(now, submission);
            count += 1;
        }
        for _ in 0..self.core.options.turn_messages_max {
            let Some(submission) = self.core.submissions.pop() else {
                break;
            };
            self.take_submission(now, submission);
            count += 1;
        }
        count
    }

    fn take_submission(&mut self, now: Instant, submission: Submission) {
        match submission {
            Submission::Message(message) => self.submit(now, message),
            Submission::Connect(connect) => self.connect(connect),
            Submission::Close(peer) => {
                self.take_connect_of(peer);
                let until = now + self.core.options.close_within;
                self.core.closing.push((peer, until));
            }
        }
    }

    /// Begins the connections that other threads have asked for.
    pub(super) fn take_connects(&mut self) -> usize {
        let mut count = 0;
        while let Some(connect) = self.core.connects.pop() {
            self.connect(connect);
            count += 1;
        }
        count
    }

    fn connect(
        &mut self,
        Connect {
            peer,
            endpoint,
            shared,
        }: Connect,
    ) {
        self.core.caller.open(peer, shared.clone());
        match self.engine.connect(&endpoint) {
            Ok(connection) => self.core.peers.insert(peer, connection, shared),
            Err(error) => tracing::error!(%endpoint, %error, "cannot connect"),
        }
    }

    /// What speaks of a peer may overtake its connection, which stands in another queue and may
    /// have been asked for after this turn had looked there.
    fn take_connect_of(&mut self, id: PeerId) {
        if self.core.peers.get_mut(id).is_none() {
            self.take_connects();
        }
    }

    fn submit(&mut self, now: Instant, message: Submitted) {
        let id = message.peer();
        self.take_connect_of(id);
        let Self { engine, core } = self;
        core.recorder.counters.calls += u64::from(message.wants_answer());
        let is_running = matches!(core.phase, Phase::Running);
        let refused = match core.peers.get_mut(id) {
            _ if !is_running => NotSent::Closed,
            Some(peer) if peer.is_draining => NotSent::Draining,
            Some(peer) => {
                let outbox = engine.outbox(peer.connection);
                core.caller.submit(now, message, outbox);
                core.sending.insert(id);
                return;
            }
            None => NotSent::Unconnectable,
        };
        core.caller.refuse(message, refused);
    }

    /// Closes the connections that nobody speaks of any more, once what was to be sent has left.
    pub(super) fn close_quiet_peers(&mut self, now: Instant) {
        let Self { engine, core } = self;
        core.closing.retain(|&(id, until)| {
            let is_sending = core.caller.has_boxed(id) || core.caller.has_waiting(id);
            if is_sending && now < until {
                return true;
            }
            core.caller.close(id);
            core.sending.remove(&id);
            if let Some(peer) = core.peers.remove(id) {
                engine.close(peer.connection);
            }
            false
        });
    }

    /// Says hello on connections that have just come up, before anything else, and sends what
    /// waited for them.
    pub(super) fn greet(&mut self, now: Instant) -> usize {
        let Self { engine, core } = self;
        let count = core.came_up.len();
        core.came_up.retain(|&connection| {
            let Some((id, peer)) = core.peers.at(connection) else {
                return false;
            };
            let Some(outbox) = engine.outbox(connection) else {
                return false;
            };
            if outbox
                .push(&Header::new(Kind::Hello, 0), &core.hello)
                .is_err()
            {
                // Full of answers to what the peer sent first: hello goes once they have left.
                return true;
            }
            peer.is_up = true;
            core.caller.pump(now, id, outbox);
            core.sending.insert(id);
            false
        });
        count - core.came_up.len()
    }

    /// Enters what the engine has taken, and writes what waited for room. True if anything was
    /// written.
    pub(super) fn settle_sent(&mut self, now: Instant) -> bool {
        let Self { engine, core } = self;
        let mut has_written = false;
        core.sending.retain(|&id| {
            let Some(peer) = core.peers.get_mut(id) else {
                return false;
            };
            if let Some(outbox) = engine.look(peer.connection) {
                core.caller.taken(id, outbox.taken().messages);
            }
            if peer.is_up
                && core.caller.has_waiting(id)
                && let Some(outbox) = engine.outbox(peer.connection)
            {
                has_written |= core.caller.pump(now, id, outbox);
            }
            core.caller.has_boxed(id) || core.caller.has_waiting(id)
        });
        has_written
    }
}

impl Core {
    pub(super) fn on_answer(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        header: &Header,
        payload: &[u8],
    ) {
        let peer = self.peers.at(connection).map(|(id, _)| id);
        // The turn began before the answer was read, perhaps by many handlers' time.
        let now = self.clock.now().max(now);
        if !peer.is_some_and(|peer| self.caller.answer(now, peer, header, payload)) {
            self.recorder.counters.late_answers += 1;
        }
    }

    pub(super) fn on_welcome(&mut self, connection: ConnectionId, payload: &mut [u8]) {
        let Some((id, peer)) = self.peers.at(connection) else {
            return;
        };
        match Hello::decode(payload) {
            Ok(hello) => peer.identity = Some(hello),
            Err(error) => tracing::warn!(peer = %id, %error, "cannot read the peer's welcome"),
        }
    }

    pub(super) fn on_goodbye(&mut self, connection: ConnectionId) {
        match self.peers.at(connection) {
            Some((_, peer)) => peer.is_draining = true,
            None => drop(self.introduced.remove(&connection)),
        }
    }

    pub(super) fn on_down(&mut self, connection: ConnectionId, why: &Lost, outbox: &mut Outbox) {
        if *why == Lost::SlowConsumer {
            self.recorder.counters.slow_consumers += 1;
        }
        self.introduced.remove(&connection);
        self.strikes.remove(&connection);
        self.came_up.retain(|&up| up != connection);
        match self.peers.at(connection) {
            Some((id, peer)) => {
                peer.is_up = false;
                // Its goodbye was this connection's; whoever comes next has said none.
                peer.is_draining = false;
                self.caller.lost(id, outbox.taken().messages);
            }
            None => self.recorder.counters.answers_lost += outbox.messages() as u64,
        }
    }

    /// The names of the handlers that peers have told of.
    pub(super) fn called_names(&self) -> Vec<String> {
        self.peers.handler_names().map(String::from).collect()
    }

    /// Ends whatever goes to any peer, and what was submitted and not yet taken.
    pub(super) fn stop_calling(&mut self) {
        let mut queued = Vec::new();
        queued.extend(std::iter::from_fn(|| self.local_queue.pop()));
        // Other threads may go on submitting: they are refused once the inbox is gone.
        let inbox = std::iter::from_fn(|| self.submissions.pop());
        queued.extend(inbox.take(self.options.inbox_capacity));
        for submission in queued {
            if let Submission::Message(message) = submission {
                self.recorder.counters.calls += u64::from(message.wants_answer());
                self.caller.refuse(message, NotSent::Closed);
            }
        }
        self.sending.clear();
        self.caller.stop(None);
    }
}
