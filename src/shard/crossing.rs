//! Messages that run on another shard than the one that read them.
//!
//! The shard that reads such a message, its home, puts it into a [`Parcel`] and sends that over;
//! there the handler runs and writes its answer into the parcel, and it comes home, where the
//! answer goes out on the connection that the message came in on. Parcels are used again: nothing
//! is allocated per message. A payload of 16 KiB or more goes along in the buffer that it was read
//! into; a smaller one is copied out of it, once, since the buffer holds other messages too.
//!
//! A ring that is full holds back the connection that fills it: its last message waits here, and
//! nothing more is read from it until there is room.

use std::{collections::VecDeque, ops::Range};

use quanta::Instant;

use super::{
    Core, Shard,
    answering::{HAS_WAITED, IS_STOPPING},
    batches::Waiting,
    parcel::{self, Parcel},
    tasks::{Origin, TaskEnd},
    underway::Sent,
};
use crate::{
    engine::{ConnectionId, Engine},
    handler::{Arrival, Dispatch, Lent},
    route::{Mesh, Published},
    wire::{Header, Kind, Outbox, Reason, Received},
};

/// What a home knows of its parcels.
#[derive(Debug)]
pub(super) struct Crossing {
    mesh: Mesh<Parcel>,
    /// By shard.
    routes: Vec<Route>,
    held: usize,
    /// Bytes of payloads that are held or away.
    bytes: usize,
    /// Those of them that are held.
    held_bytes: usize,
    bytes_max: usize,
    #[expect(clippy::vec_box, reason = "the box is what crosses")]
    spare: Vec<Box<Parcel>>,
    spare_max: usize,
    /// Where the answer to what runs for another shard is written.
    answer: Outbox,
    /// What was just taken from a ring; kept for its memory.
    #[expect(clippy::vec_box, reason = "the box is what crosses")]
    taken: Vec<Box<Parcel>>,
    /// Whose ring is looked at first.
    first: usize,
}

/// The way to one other shard.
#[derive(Debug, Default)]
struct Route {
    /// What had no room in its ring, in its order.
    held: VecDeque<Box<Parcel>>,
    /// What has left and not come back.
    away: usize,
}

impl Route {
    fn may_leave(&self, away: usize, bytes_max: usize) -> bool {
        let first = self.held.front();
        first.is_some_and(|it| away == 0 || away + it.payload_bytes() <= bytes_max)
    }
}

impl Crossing {
    pub(super) fn new(mesh: Mesh<Parcel>, bytes_max: usize) -> Self {
        let shards = mesh.shards();
        Self {
            spare_max: mesh.capacity() * shards.saturating_sub(1),
            mesh,
            routes: (0..shards).map(|_| Route::default()).collect(),
            held: 0,
            bytes: 0,
            held_bytes: 0,
            bytes_max,
            spare: Vec::new(),
            answer: Outbox::new(1, usize::MAX),
            taken: Vec::new(),
            first: 0,
        }
    }

    /// Whether another message for this shard would have to wait.
    fn is_full(&mut self, shard: usize, bytes: usize) -> bool {
        // A large one passes alone.
        let is_over = self.bytes > 0 && self.bytes + bytes > self.bytes_max;
        is_over || !self.routes[shard].held.is_empty() || !self.mesh.has_room(shard)
    }

    /// Whether the bytes of the first message that is held for this shard may leave: only what is
    /// away counts, or all that is held would wait for each other. A large one passes alone.
    fn may_leave(&self, shard: usize) -> bool {
        let (away, bytes_max) = (self.bytes - self.held_bytes, self.bytes_max);
        self.routes[shard].may_leave(away, bytes_max)
    }

    fn hold(&mut self, shard: usize, parcel: Box<Parcel>) {
        self.held += 1;
        self.held_bytes += parcel.payload_bytes();
        self.routes[shard].held.push_back(parcel);
    }

    fn take_held(&mut self, shard: usize) -> Option<Box<Parcel>> {
        let parcel = self.routes[shard].held.pop_front()?;
        self.held -= 1;
        self.held_bytes -= parcel.payload_bytes();
        Some(parcel)
    }

    fn pack(&mut self, header: Header, connection: ConnectionId, read: Instant) -> Box<Parcel> {
        match self.spare.pop() {
            Some(mut parcel) => {
                parcel.header = header;
                parcel.connection = connection;
                parcel.read = read;
                parcel
            }
            None => Box::new(Parcel::new(header, connection, read)),
        }
    }

    /// A parcel that has come home and is done with.
    fn keep(&mut self, mut parcel: Box<Parcel>) {
        self.bytes -= parcel.payload_bytes();
        if parcel.empty() && self.spare.len() < self.spare_max {
            self.spare.push(parcel);
        }
    }

    #[inline]
    pub(super) fn publish(&mut self) -> Published {
        self.mesh.publish()
    }

    /// Sends a task's answer home, or gives the parcel back: there is no room now.
    pub(super) fn answer_task(
        &mut self,
        home: usize,
        mut parcel: Box<Parcel>,
        end: &TaskEnd,
    ) -> Result<(), Box<Parcel>> {
        parcel.answer_task(end, &mut self.answer);
        self.mesh.give_back(home, parcel)
    }

    pub(super) fn may_park(&mut self) -> bool {
        let (away, bytes_max) = (self.bytes - self.held_bytes, self.bytes_max);
        let routes = &self.routes;
        // What may not leave for its bytes waits for others to come back, and not for room.
        self.mesh
            .may_park(|shard| routes[shard].may_leave(away, bytes_max))
    }

    /// Whether all that has left has come back, and nothing waits to leave.
    pub(super) fn is_idle(&self) -> bool {
        let mut routes = self.routes.iter().enumerate();
        let is_home = routes.all(|(shard, route)| route.away == 0 || self.mesh.is_gone(shard));
        is_home && self.held == 0 && self.mesh.is_published()
    }

    /// What waits in the fullest ring to this shard, and the most that did.
    pub(super) fn waiting(&self) -> (usize, usize) {
        self.mesh.waiting()
    }

    /// What is held, what is away, and the bytes of both.
    pub(super) fn depths(&self) -> (usize, usize, usize) {
        let away = self.routes.iter().map(|route| route.away).sum();
        (self.held, away, self.bytes)
    }

    /// Messages that had no room anywhere.
    pub(super) fn held(&self) -> usize {
        self.held
    }
}

impl Core {
    /// A message has arrived that is to run on another shard.
    pub(super) fn send_over(
        &mut self,
        shard: usize,
        connection: ConnectionId,
        header: Header,
        (read, deadline): (Instant, Option<Instant>),
        message: &mut Received<'_>,
        outbox: &mut Outbox,
    ) {
        if header.kind != Kind::OneWay && outbox.is_full() {
            // As on this shard: one that was dialed is read though its peer takes no answers.
            return self.lose(&header);
        }
        let is_full = self.crossing.is_full(shard, message.payload_bytes());
        // One that brings answers, too, is always read.
        let may_hold = !outbox.is_held() && self.peers.id_at(connection).is_none();
        if is_full && !may_hold {
            let text = format!("the ring to shard {shard} is full: limits.ring_capacity");
            return self.refuse(outbox, &header, Reason::Overloaded, &text);
        }
        let mut parcel = self.crossing.pack(header, connection, read);
        parcel.deadline = deadline;
        parcel.promise = (header.kind != Kind::OneWay).then(|| outbox.promise());
        parcel.fill(message, self.asker_at(connection));
        self.crossing.bytes += parcel.payload_bytes();
        if is_full {
            outbox.hold();
            self.crossing.hold(shard, parcel);
        } else {
            self.leave(shard, parcel);
        }
    }

    /// Has a message stopped that went to another shard, if any is there and there is room on the
    /// way: it comes behind the message, by the same ring. Else the deadline stops it.
    pub(super) fn send_cancel_over(
        &mut self,
        now: Instant,
        shard: usize,
        connection: ConnectionId,
        header: &Header,
    ) {
        let crossing = &mut self.crossing;
        if crossing.routes[shard].away == 0 || crossing.is_full(shard, 0) {
            return;
        }
        let parcel = crossing.pack(*header, connection, now);
        let asked = crossing.mesh.ask(shard, parcel);
        debug_assert!(asked.is_ok(), "there was room");
        crossing.routes[shard].away += 1;
    }

    fn leave(&mut self, shard: usize, parcel: Box<Parcel>) {
        let asked = self.crossing.mesh.ask(shard, parcel);
        debug_assert!(asked.is_ok(), "there was room");
        self.crossing.routes[shard].away += 1;
        self.recorder.counters.hopped_out += 1;
    }

    /// Runs what another shard has sent, as far as it may by now, and says how much that was.
    fn run_asked(&mut self, now: Instant, home: usize) -> usize {
        let most = self.options.turn_messages_max;
        let mut taken = std::mem::take(&mut self.crossing.taken);
        let count = self.crossing.mesh.take_asked(home, most, &mut taken);
        let mut parcels = taken.drain(..);
        while let Some(parcel) = parcels.next() {
            parcel::fetch_ahead(parcels.as_slice());
            self.run_arrived(now, home, parcel);
        }
        drop(parcels);
        self.crossing.taken = taken;
        count
    }

    /// Runs a message that another shard has sent.
    #[inline(never)]
    fn run_arrived(&mut self, now: Instant, home: usize, mut parcel: Box<Parcel>) {
        let header = parcel.header;
        if header.kind == Kind::Cancel {
            self.cancel_here(&Sent {
                home: Some(home),
                connection: parcel.connection,
                correlation: header.correlation,
            });
            return self.send_home(home, parcel);
        }
        self.recorder.counters.hopped_in += 1;
        if !self.takes(&header) {
            self.refuse_parcel(&mut parcel, Reason::Draining, IS_STOPPING);
            return self.send_home(home, parcel);
        }
        let began = self.read_time(now);
        if self.sheds(&header, parcel.read, began) {
            self.refuse_parcel(&mut parcel, Reason::Overloaded, HAS_WAITED);
            return self.send_home(home, parcel);
        }
        let origin = parcel.origin(home);
        let lent = Lent {
            shard: &self.info,
            client: &self.local_client,
            asker: &origin,
            timers: &self.timers,
            may_spawn: self.tasks.has_room(),
            reply_bytes_max: self.options.message_bytes_max,
        };
        let deadline = parcel.deadline;
        let mut is_taken = false;
        let arrival = Arrival {
            header,
            message: &mut parcel.message(&mut is_taken),
            outbox: &mut self.crossing.answer,
            deadline,
            now: began,
        };
        let dispatch = self.registry.dispatch(arrival, &lent);
        parcel.take_answer(&mut self.crossing.answer);
        let handler = match dispatch {
            Dispatch::Handled(handler) => {
                self.recorder.counters.handled += 1;
                Some(handler)
            }
            Dispatch::Nacked(handler, reason) => {
                self.recorder.counters.count_nack(reason.to_u16());
                match handler {
                    Some(handler) => self.recorder.record_nack(handler, reason.to_u16()),
                    None => self.record_refusal(&header, reason),
                }
                handler
            }
            Dispatch::Spawn(spawning) => {
                self.recorder.counters.spawned += 1;
                let read = parcel.read;
                let origin = Origin::There { home, parcel };
                self.registry.begin(spawning.handler);
                let underway = &mut self.underway;
                return self.tasks.spawn(origin, read, spawning, underway);
            }
            Dispatch::Order(handler) => match self.order_parcel(handler, home, parcel) {
                Some(refused) => return self.send_home(home, refused),
                None => return,
            },
            Dispatch::Block(call) => match self.block_parcel(home, parcel, call) {
                Some(refused) => return self.send_home(home, refused),
                None => return,
            },
            Dispatch::Collect(handler) => {
                let (read, deadline) = (parcel.read, parcel.deadline);
                let bytes = parcel.payload_bytes();
                let waiting = Waiting {
                    origin: Origin::There { home, parcel },
                    header,
                    read,
                    deadline,
                    promise: None,
                    is_cancelled: false,
                };
                return self.join_batch(handler, waiting, bytes);
            }
            Dispatch::NoRoom => unreachable!("there is room for one answer"),
        };
        parcel.set_handler(handler);
        if let Some(handler) = handler {
            // Its reply is written at home.
            self.record_inline(handler, began, Kind::OneWay);
        }
        self.send_home(home, parcel);
    }

    fn send_home(&mut self, home: usize, parcel: Box<Parcel>) {
        let given = self.crossing.mesh.give_back(home, parcel);
        debug_assert!(
            given.is_ok(),
            "no more is taken than has room on its way back"
        );
    }

    /// What was sent over has come back.
    fn on_back(&mut self, now: Instant, mut parcel: Box<Parcel>, outbox: Option<&mut Outbox>) {
        if let Some(promise) = parcel.promise.take() {
            let is_answered = parcel.is_answered();
            if outbox.is_some_and(|outbox| parcel.deliver(promise, outbox)) {
                if let Some(handler) = parcel.handler() {
                    self.replied.push((handler, parcel.read));
                }
                self.linger(now);
            } else if is_answered {
                self.recorder.counters.answers_lost += 1;
            }
        }
        self.crossing.keep(parcel);
    }
}

impl<E: Engine> Shard<E> {
    /// Sends over what this turn has read for others, runs what they have sent, and takes in the
    /// answers. Returns how much it did.
    #[inline]
    pub(super) fn cross(&mut self, now: Instant) -> usize {
        match self.core.crossing.routes.len() {
            1 => 0,
            shards => self.cross_to(shards, now),
        }
    }

    fn cross_to(&mut self, shards: usize, now: Instant) -> usize {
        let mut count = 0;
        if self.core.crossing.held > 0 {
            count += self.let_go(now);
        }
        self.core.publish();
        let crossing = &mut self.core.crossing;
        let first = match crossing.first + 1 {
            end if end == shards => 0,
            next => next,
        };
        crossing.first = first;
        for Range { mut start, end } in [first..shards, 0..first] {
            while let Some(home) = self.core.crossing.mesh.next_asking(start..end) {
                count += self.core.run_asked(now, home);
                start = home + 1;
            }
        }
        // The others may go on while this shard writes.
        self.core.publish();
        let mut start = 0;
        while let Some(shard) = self.core.crossing.mesh.next_answering(start..shards) {
            count += self.take_back(now, shard);
            start = shard + 1;
        }
        count
    }

    /// Takes in what comes back from a shard, and says how much that was.
    fn take_back(&mut self, now: Instant, shard: usize) -> usize {
        let crossing = &mut self.core.crossing;
        let mut taken = std::mem::take(&mut crossing.taken);
        let count = crossing.mesh.take_back(shard, &mut taken);
        crossing.routes[shard].away -= count;
        let mut parcels = taken.drain(..);
        while let Some(parcel) = parcels.next() {
            parcel::fetch_ahead(parcels.as_slice());
            let outbox = self.engine.outbox(parcel.connection);
            self.core.on_back(now, parcel, outbox);
        }
        drop(parcels);
        self.core.crossing.taken = taken;
        count
    }

    /// Sends over what was held back, as far as there is room now, and has its connections read
    /// again.
    fn let_go(&mut self, now: Instant) -> usize {
        let before = self.core.crossing.held;
        for shard in 0..self.core.crossing.routes.len() {
            loop {
                let crossing = &mut self.core.crossing;
                let is_gone = crossing.mesh.is_gone(shard);
                let has_room = crossing.may_leave(shard) && crossing.mesh.has_room(shard);
                if !is_gone && !has_room {
                    break;
                }
                let Some(parcel) = crossing.take_held(shard) else {
                    break;
                };
                let mut outbox = self.engine.outbox(parcel.connection);
                if let Some(outbox) = &mut outbox {
                    outbox.release();
                }
                if is_gone {
                    self.core.turn_back(now, parcel, outbox);
                } else {
                    self.core.leave(shard, parcel);
                }
            }
        }
        before - self.core.crossing.held
    }
}

impl Core {
    /// The shard that it was for has ended.
    fn turn_back(&mut self, now: Instant, mut parcel: Box<Parcel>, outbox: Option<&mut Outbox>) {
        self.refuse_parcel(&mut parcel, Reason::Draining, IS_STOPPING);
        self.on_back(now, parcel, outbox);
    }

    /// Refuses a message that has crossed, or was to.
    pub(super) fn refuse_parcel(&mut self, parcel: &mut Parcel, reason: Reason, text: &str) {
        let emptied = Outbox::new(1, usize::MAX);
        let mut answer = std::mem::replace(&mut self.crossing.answer, emptied);
        self.refuse(&mut answer, &parcel.header, reason, text);
        parcel.take_answer(&mut answer);
        self.crossing.answer = answer;
    }

    /// Lets the other shards have what this one has for them.
    #[inline]
    pub(super) fn publish(&mut self) {
        let Published { woken, .. } = self.crossing.publish();
        self.recorder.counters.shards_woken += woken as u64;
    }
}
