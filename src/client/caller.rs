//! The calling side of a shard, without I/O: what waits for a connection, what waits for an answer,
//! and how each message ends.

mod callers;
mod cancelling;
mod ending;
mod links;

use std::{collections::VecDeque, rc::Rc, task::Waker, time::Duration};

use bytes::{Bytes, BytesMut};
use quanta::Instant;
use rustc_hash::FxHashMap;

use self::cancelling::Search;
pub use self::{ending::Ends, links::Acquaintance};
use super::{
    Connect, Submitted,
    answers::{Answers, LocalAnswer},
    call::Outcome,
    calls::{Calls, Outstanding},
    order::Order,
    queue::{Queue, Standing, Way},
};
use crate::{
    error::{Indeterminate, NotSent},
    peers::{Entry, PeerId},
    wire::{ATTACHED_BYTES_MIN, Codec, HandlerKey, Header, Kind, Outbox, Received},
};

/// Replies to a shard's own tasks share buffers of this size, until they are dropped.
const REPLIES_BYTES: usize = 16 << 10;

/// Every message that this shard was given to send, until its end.
///
/// Each ends once: it is answered, nacked, told as never sent, or indeterminate; a one-way message
/// is sent or lost. Its end is told to whoever waits, entered in its peer's account, and counted
/// for the shard's metrics.
///
/// A message to a peer whose connection stands is framed as it is submitted, into the peer's stage;
/// once per turn the stage goes into the connection's outbox, whole ([`load`](Self::load)), and
/// after the flush what has left is entered ([`settle`](Self::settle)).
#[derive(Debug)]
pub struct Caller {
    calls: Calls,
    queues: FxHashMap<PeerId, Queue>,
    /// Peers that something is on its way to: staged, waiting, or in their outbox. Each once.
    busy: Vec<PeerId>,
    answers: Rc<Answers>,
    search: Search,
    replies: BytesMut,
    limits: CallerLimits,
    ends: Ends,
    round_trips: Vec<(HandlerKey, Duration)>,
    /// Something has been counted or recorded since the shard last asked.
    has_news: bool,
    /// Something is staged, or may leave its queue.
    wants_load: bool,
    /// Nothing new is taken.
    is_closed: bool,
    /// Some process has told of more than one shard, or is spoken of that has connected to this.
    knows_shards: bool,
    /// Connections to further shards, to be begun by the reactor.
    wanted: VecDeque<Connect>,
}

/// What a caller may hold.
#[derive(Clone, Copy, Debug)]
pub struct CallerLimits {
    /// Calls whose answers are outstanding.
    pub outstanding_max: usize,
    /// Messages to one peer that have not left.
    pub messages_max: usize,
    /// Bytes of these.
    pub bytes_max: usize,
}

impl Caller {
    /// A side that holds at most so much.
    pub fn new(limits: CallerLimits) -> Self {
        Self::with_answers(limits, Rc::default())
    }

    /// As [`new`](Self::new), with what its shard's tasks hear by.
    pub(super) fn with_answers(limits: CallerLimits, answers: Rc<Answers>) -> Self {
        Self {
            calls: Calls::new(limits.outstanding_max),
            queues: FxHashMap::default(),
            busy: Vec::new(),
            answers,
            search: Search::default(),
            replies: BytesMut::new(),
            limits,
            ends: Ends::default(),
            round_trips: Vec::new(),
            has_news: false,
            wants_load: false,
            is_closed: false,
            knows_shards: false,
            wanted: VecDeque::new(),
        }
    }

    /// Calls whose answers are outstanding.
    pub fn outstanding(&self) -> usize {
        self.calls.len()
    }

    /// The most of them that there have been at once.
    pub fn most_outstanding(&self) -> usize {
        self.calls.most()
    }

    /// Messages that have not left, and the most of them that go to one peer. Looks at every peer.
    pub fn queued(&self) -> (usize, usize) {
        let depths = || self.queues.values().map(Queue::messages);
        (depths().sum(), depths().max().unwrap_or(0))
    }

    /// How many wakers of this shard's own tasks it holds of which this is true; `None` if there
    /// are more than this to look at.
    pub fn count_wakers(&self, most: usize, is_counted: impl Fn(&Waker) -> bool) -> Option<usize> {
        (self.answers.len() <= most).then(|| self.answers.count_wakers(is_counted))
    }

    /// Whether nothing is on its way and nothing is outstanding.
    pub fn is_idle(&self) -> bool {
        self.calls.len() == 0 && self.queues.values().all(|queue| !queue.is_busy())
    }

    /// Whether something is on its way to this peer and has not left.
    pub fn is_sending(&self, peer: PeerId) -> bool {
        self.queues.get(&peer).is_some_and(Queue::is_busy)
    }

    /// Whether anything may be loaded into an outbox now: it was staged, or a connection has come
    /// up, or room has come. Also if a call is to be cancelled.
    #[inline]
    pub fn wants_load(&self) -> bool {
        self.wants_load || self.has_abandoned()
    }

    /// All busy peers are being loaded. What nobody waits for goes first.
    pub fn begin_load(&mut self) {
        if self.has_abandoned() {
            self.cancel_abandoned();
        }
        self.wants_load = false;
    }

    /// Whether anything was submitted or has ended since the ends were last taken.
    #[inline]
    pub fn has_news(&self) -> bool {
        self.has_news
    }

    /// The ends that were counted since the last time.
    pub fn take_ends(&mut self) -> Ends {
        self.has_news = false;
        std::mem::take(&mut self.ends)
    }

    /// The round trips that were made since the last time.
    pub fn drain_round_trips(&mut self) -> impl Iterator<Item = (HandlerKey, Duration)> {
        self.round_trips.drain(..)
    }

    /// Begins to keep a queue for a peer that is not connected yet.
    pub fn open(&mut self, connect: &Connect) {
        let queue = Queue::new(connect, self.limits.messages_max, self.limits.bytes_max);
        self.queues.entry(connect.peer).or_insert(queue);
    }

    /// The peer's connection stands and is greeted, or has gone, or the peer drains.
    pub fn stand(&mut self, peer: PeerId, standing: Standing) {
        if let Some(queue) = self.queues.get_mut(&peer) {
            queue.standing = standing;
            self.wants_load = true;
        }
    }

    /// Whether it keeps a queue for this peer.
    pub fn knows(&self, peer: PeerId) -> bool {
        self.queues.contains_key(&peer)
    }

    /// Takes a message of another thread, whose credit is taken.
    pub fn submit(&mut self, now: Instant, mut message: Submitted) {
        let order = &message.order;
        message.peer = self.way_to(message.peer, order.handler, order.route_key);
        self.ends.calls += u64::from(message.wants_answer());
        self.has_news = true;
        let is_closed = self.is_closed;
        let queue = self.queues.get_mut(&message.peer);
        let Some(queue) = queue.filter(|_| !is_closed) else {
            return self.refuse(message, NotSent::Closed);
        };
        if let Some(why) = queue.standing.refuses() {
            return self.refuse(message, why);
        }
        if message.wants_answer() && self.calls.is_full() {
            return self.refuse(message, NotSent::Outstanding);
        }
        if message.deadline.is_some_and(|deadline| deadline <= now) {
            return self.refuse(message, NotSent::Deadline);
        }
        let Submitted {
            peer,
            order,
            submitted_at,
            deadline,
            completion,
        } = message;
        let bytes = order.payload.len();
        let way = queue.way(bytes);
        let correlation = match (completion, deadline) {
            (Some(completion), Some(deadline)) => self.calls.insert(Outstanding {
                peer,
                kind: order.kind,
                handler: order.handler,
                route_key: order.route_key,
                submitted_at,
                deadline,
                is_staged: way == Way::Stage,
                completion: Completion::Remote(completion),
            }),
            _ => self.calls.unanswered(),
        };
        let mut header = order.header(correlation);
        header.deadline_us = deadline.map_or(0, |deadline| remaining_us(now, deadline));
        queue.take_credited(way, header, order.payload, deadline, bytes);
        self.wants_load = true;
        if queue.note() {
            self.busy.push(peer);
        }
    }

    /// Takes a one-way message of one of this shard's own tasks, or says why not. A buffer that the
    /// payload was written to is left in the order.
    #[inline]
    pub(super) fn submit_one_way(
        &mut self,
        peer: PeerId,
        order: &mut Order,
    ) -> Result<(), NotSent> {
        let peer = self.way_to(peer, order.handler, order.route_key);
        let queue = self.queues.get_mut(&peer).ok_or(NotSent::Closed)?;
        let way = queue.admit(order.payload.len())?;
        if self.is_closed {
            return Err(NotSent::Closed);
        }
        let header = order.header(self.calls.unanswered());
        queue.take(way, header, &mut order.payload, None);
        self.wants_load = true;
        if queue.note() {
            self.busy.push(peer);
        }
        Ok(())
    }

    /// Takes a call of one of this shard's own tasks, or says why not. A buffer that the payload
    /// was written to is left in the order.
    #[inline]
    pub(super) fn submit_call(
        &mut self,
        now: Instant,
        peer: PeerId,
        order: &mut Order,
        within: Duration,
    ) -> Result<LocalAnswer, NotSent> {
        if self.calls.is_full() {
            return Err(NotSent::Outstanding);
        }
        if self.is_closed {
            return Err(NotSent::Closed);
        }
        if within.is_zero() {
            return Err(NotSent::Deadline);
        }
        let peer = self.way_to(peer, order.handler, order.route_key);
        let queue = self.queues.get_mut(&peer).ok_or(NotSent::Closed)?;
        let way = queue.admit(order.payload.len())?;
        let deadline = now + within;
        let (slot, mut answer) = Answers::open(&self.answers);
        let correlation = self.calls.insert(Outstanding {
            peer,
            kind: order.kind,
            handler: order.handler,
            route_key: order.route_key,
            submitted_at: now,
            deadline,
            is_staged: way == Way::Stage,
            completion: Completion::Local(slot),
        });
        answer.belongs_to(correlation);
        let mut header = order.header(correlation);
        header.deadline_us = remaining_us(now, deadline);
        queue.take(way, header, &mut order.payload, Some(deadline));
        self.wants_load = true;
        if queue.note() {
            self.busy.push(peer);
        }
        self.ends.calls += 1;
        self.has_news = true;
        Ok(answer)
    }

    /// Whether something is on its way to any peer.
    #[inline]
    pub fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// The peers that something is on its way to, by number; one that `settle` finds idle is
    /// replaced by another.
    pub fn busy(&self, index: usize) -> Option<PeerId> {
        self.busy.get(index).copied()
    }

    /// Moves what is staged for this peer into its connection's outbox, and what waits as far as
    /// there is room. True if it moved anything.
    pub fn load(&mut self, now: Instant, peer: PeerId, outbox: &mut Outbox) -> bool {
        let Some(queue) = self.queues.get_mut(&peer) else {
            return false;
        };
        if !matches!(queue.standing, Standing::Up | Standing::Draining) {
            return false;
        }
        let (calls, wants_load) = (&mut self.calls, &mut self.wants_load);
        queue.load(outbox, |waiting| {
            let mut header = waiting.header;
            if let Some(deadline) = waiting.deadline {
                if deadline <= now {
                    // Its end comes first, later in this turn.
                    *wants_load = true;
                    return None;
                }
                header.deadline_us = remaining_us(now, deadline);
            }
            if let Some(call) = calls.get_mut(header.correlation) {
                call.is_staged = true;
            }
            Some(header)
        })
    }

    /// Enters what has left the outbox of the busy peer with this number. False once nothing more
    /// is on its way there: then the peer is busy no longer, and another has its number.
    pub fn settle(&mut self, index: usize, outbox: Option<&Outbox>) -> bool {
        let queue = self
            .busy
            .get(index)
            .and_then(|peer| self.queues.get_mut(peer));
        if let Some(queue) = queue {
            let sent = outbox.map_or(0, |outbox| queue.settle(outbox));
            // Room has come for what waits.
            self.wants_load |= queue.has_waiting() && queue.has_room(0);
            let is_busy = queue.is_busy();
            if !is_busy {
                queue.forget_note();
            }
            self.add_ends(Entry::OneWaySent, sent);
            if is_busy {
                return true;
            }
        }
        self.busy.swap_remove(index);
        false
    }

    /// An answer has come from this peer. False if it is late, a duplicate, or not this peer's to
    /// give.
    pub fn answer(
        &mut self,
        now: Instant,
        peer: PeerId,
        header: &Header,
        message: &mut Received<'_>,
    ) -> bool {
        let fits = |call: &Outstanding| {
            call.peer == peer
                && call.is_staged
                && match header.kind {
                    Kind::Ack => call.kind == Kind::Confirm,
                    Kind::Response => call.kind == Kind::Request,
                    kind => kind == Kind::Nack,
                }
        };
        let Some(call) = self.calls.remove_if(header.correlation, fits) else {
            return false;
        };
        let (outcome, end) = match header.kind {
            Kind::Nack => {
                let text = String::from_utf8_lossy(message.payload()).into_owned();
                (Outcome::Nacked(header.reason, text), Entry::Nacked)
            }
            Kind::Ack => (Outcome::Answered(Codec::Raw, Bytes::new()), Entry::Handled),
            _ => {
                let payload = match call.completion {
                    Completion::Local(_) => self.keep_reply(message),
                    Completion::Remote(_) => message.take_bytes(),
                };
                (Outcome::Answered(header.codec, payload), Entry::Handled)
            }
        };
        let round_trip = now.saturating_duration_since(call.submitted_at);
        self.round_trips.push((call.handler, round_trip));
        self.end_call(call, outcome, end);
        true
    }

    /// A small reply goes into a buffer that it shares with others: nothing is allocated as long as
    /// replies are dropped before the buffer is used up.
    fn keep_reply(&mut self, message: &mut Received<'_>) -> Bytes {
        let bytes = message.payload_bytes();
        if bytes == 0 {
            return Bytes::new();
        }
        if bytes >= ATTACHED_BYTES_MIN {
            return message.take_bytes();
        }
        if self.replies.capacity() < bytes {
            self.replies.reserve(REPLIES_BYTES.max(bytes));
        }
        self.replies.extend_from_slice(message.payload());
        self.replies.split().freeze()
    }

    /// Ends every call whose deadline has passed.
    pub fn expire(&mut self, now: Instant) {
        while let Some((correlation, call)) = self.calls.next_expired(now) {
            let (outcome, end) = if call.is_staged {
                let why = Indeterminate::Deadline;
                (Outcome::Indeterminate(why), Entry::Indeterminate)
            } else {
                let queue = self.queues.get_mut(&call.peer);
                let payload = queue.and_then(|queue| queue.withdraw(correlation));
                let payload = payload.unwrap_or_default();
                let outcome = Outcome::NotSent(NotSent::Deadline, payload);
                (outcome, Entry::NotSent)
            };
            self.end_call(call, outcome, end);
        }
    }

    /// When `expire` must be called next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.calls.next_deadline()
    }

    /// Takes nothing new from now on.
    pub fn refuse_new(&mut self) {
        self.is_closed = true;
    }

    /// The peers that it keeps queues for.
    pub fn peers(&self) -> Vec<PeerId> {
        self.queues.keys().copied().collect()
    }
}

/// Whom a call's outcome is told.
#[derive(Debug)]
pub(super) enum Completion {
    /// Somebody on any thread.
    Remote(oneshot::Sender<Outcome>),
    /// A task of this shard, by its slot.
    Local(usize),
}

/// What remains of a deadline as the wire tells it: at least 1, since 0 means none.
#[inline]
fn remaining_us(now: Instant, deadline: Instant) -> u32 {
    let remaining = deadline.saturating_duration_since(now).as_micros();
    remaining.clamp(1, u128::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests;
