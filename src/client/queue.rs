//! What goes to one peer and has not left yet.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use quanta::Instant;
use uuid::Uuid;

use super::{Connect, Target, order::Payload, shards::Shards};
use crate::{
    config::Endpoint,
    error::NotSent,
    peers::{Entry, PeerId, PeerShared},
    wire::{ATTACHED_BYTES_MIN, Header, Outbox, Tally},
};

/// How things stand with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is no connection, or it is not greeted: what is submitted waits.
    Down,
    /// Connected and greeted.
    Up,
    /// It has said goodbye: nothing new is sent until it is back.
    Draining,
    /// The connection cannot be made at all.
    Unconnectable,
    /// It is a peer that connects to this process, and has no connection.
    Away,
}

impl Standing {
    /// Why nothing is taken for a peer with which it stands so.
    pub(super) fn refuses(self) -> Option<NotSent> {
        match self {
            Standing::Down | Standing::Up => None,
            Standing::Draining => Some(NotSent::Draining),
            Standing::Unconnectable => Some(NotSent::Unconnectable),
            Standing::Away => Some(NotSent::NotConnected),
        }
    }
}

/// How a message goes on that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Framed, to leave at the end of the turn.
    Stage,
    /// Kept, until there is a connection or room.
    Wait,
}

/// The messages to one peer, in their order: in the connection's outbox, staged, waiting.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) shared: Arc<PeerShared>,
    /// Where it is dialed; `None` if the peer has connected to this process.
    pub(super) endpoint: Option<Endpoint>,
    /// By which way it is reached instead, on this host.
    pub(super) moved_to: Option<Endpoint>,
    /// Since when, or until that was lost.
    pub(super) moved_at: Option<Instant>,
    /// How often that way was lost, each time soon after it was found.
    pub(super) losses: u32,
    /// If it may be: not the process of this instance, where that was lost.
    pub(super) may_move: bool,
    pub(super) stays: Option<Uuid>,
    /// The process that is spoken of, if it is one that connects to this.
    pub(super) instance: Option<Uuid>,
    /// Its connections that are used, the latest last.
    pub(super) callers: Vec<PeerId>,
    pub(super) standing: Standing,
    /// Its shards are no concern: all goes by this connection.
    pub(super) is_routed: bool,
    /// What is known of the process's shards, at its main connection.
    pub(super) shards: Option<Box<Shards>>,
    /// The main connection, at one to another shard of the same process.
    pub(super) main: Option<PeerId>,
    /// Whether the caller has noted that something is on its way.
    is_noted: bool,
    /// Framed, and to go into the outbox at the end of the turn.
    staged: Outbox,
    /// No connection, or no room.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Messages of other threads that have not left, with their credit, in their order.
    owed: VecDeque<Owed>,
    /// How many of those, the last ones, are staged: their numbers count from the stage's first.
    owed_staged: usize,
    /// What stood in the outbox when it was last looked at.
    left: (usize, usize),
    /// What had left it by then.
    taken: Tally,
    /// One-way messages that still stand in the outbox and were counted by whoever sent by it
    /// before.
    others: u64,
    messages_max: usize,
    bytes_max: usize,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) header: Header,
    pub(super) payload: Bytes,
    pub(super) deadline: Option<Instant>,
    /// What credit it holds, if it holds any.
    pub(super) credit: Option<usize>,
}

/// The credit of a message that has not left.
#[derive(Clone, Copy, Debug)]
struct Owed {
    number: u64,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(connect: &Connect, messages_max: usize, bytes_max: usize) -> Self {
        let (endpoint, instance) = match &connect.to {
            Target::Endpoint(endpoint) => (Some(endpoint.clone()), None),
            Target::Caller(instance) => (None, Some(*instance)),
        };
        Self {
            shared: connect.shared.clone(),
            endpoint,
            moved_to: None,
            moved_at: None,
            losses: 0,
            may_move: connect.prefers_ipc && !connect.is_routed,
            stays: None,
            instance,
            callers: Vec::new(),
            standing: Standing::Down,
            is_routed: connect.is_routed,
            shards: None,
            main: None,
            is_noted: false,
            staged: Outbox::new(messages_max, bytes_max),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            owed: VecDeque::new(),
            owed_staged: 0,
            left: (0, 0),
            taken: Tally::default(),
            others: 0,
            messages_max,
            bytes_max,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.left.0 > 0 || self.has_staged() || self.has_waiting()
    }

    /// Messages that have not left.
    pub(super) fn messages(&self) -> usize {
        self.left.0 + self.staged.messages() + self.waiting.len()
    }

    fn has_staged(&self) -> bool {
        !self.staged.is_empty()
    }

    #[inline]
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether a message of this shard's own tasks is taken, and how it goes on.
    #[inline]
    pub(super) fn admit(&self, bytes: usize) -> Result<Way, NotSent> {
        if self.standing == Standing::Up && !self.has_waiting() {
            return match self.has_room(bytes) {
                true => Ok(Way::Stage),
                false => Err(NotSent::Full),
            };
        }
        if let Some(why) = self.standing.refuses() {
            return Err(why);
        }
        let fits = self.waiting.len() < self.messages_max
            && (self.waiting.is_empty() || self.waiting_bytes + bytes <= self.bytes_max);
        match fits {
            true => Ok(Way::Wait),
            false => Err(NotSent::Full),
        }
    }

    /// How a message goes on that holds credit: in its order, with or without room in the outbox.
    pub(super) fn way(&self, bytes: usize) -> Way {
        match self.has_waiting() || !self.has_room(bytes) {
            true => Way::Wait,
            false => Way::Stage,
        }
    }

    /// Whether the connection stands, and with what is staged its outbox is within the bounds.
    #[inline]
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let messages = self.left.0 + self.staged.messages();
        self.standing == Standing::Up
            && messages < self.messages_max
            && (messages == 0 || self.left.1 + self.staged.bytes() + bytes <= self.bytes_max)
    }

    /// Takes a message that was admitted so.
    #[inline]
    pub(super) fn take(
        &mut self,
        way: Way,
        header: Header,
        payload: &mut Payload,
        deadline: Option<Instant>,
    ) {
        self.shared.account.add(Entry::Accepted);
        match way {
            Way::Stage => self.stage(&header, payload),
            Way::Wait => self.wait(Waiting {
                header,
                payload: payload.take_bytes(),
                deadline,
                credit: None,
            }),
        }
    }

    /// As [`take`](Self::take), with so many bytes of credit that it holds until it has left.
    pub(super) fn take_credited(
        &mut self,
        way: Way,
        header: Header,
        mut payload: Payload,
        deadline: Option<Instant>,
        bytes: usize,
    ) {
        self.take(way, header, &mut payload, deadline);
        match way {
            Way::Stage => {
                let number = self.staged.messages() as u64 - 1;
                self.owed.push_back(Owed { number, bytes });
                self.owed_staged += 1;
            }
            Way::Wait => {
                if let Some(waiting) = self.waiting.back_mut() {
                    waiting.credit = Some(bytes);
                }
            }
        }
    }

    /// Notes that something is on its way. True if that is new.
    #[inline]
    pub(super) fn note(&mut self) -> bool {
        !std::mem::replace(&mut self.is_noted, true)
    }

    /// Nothing is on its way any more.
    pub(super) fn forget_note(&mut self) {
        self.is_noted = false;
    }

    pub(super) fn wait(&mut self, waiting: Waiting) {
        self.waiting_bytes += waiting.payload.len();
        self.waiting.push_back(waiting);
    }

    /// Takes a message back that still waits. Returns its payload.
    pub(super) fn withdraw(&mut self, correlation: u64) -> Option<Bytes> {
        let mut waiting = self.waiting.iter();
        let at = waiting.position(|it| it.header.correlation == correlation)?;
        let waiting = self.waiting.remove(at)?;
        self.waiting_bytes -= waiting.payload.len();
        if let Some(bytes) = waiting.credit {
            self.shared.credit.give_back(bytes);
        }
        Some(waiting.payload)
    }

    /// Takes a message back that is staged. False if it is not.
    pub(super) fn withdraw_staged(&mut self, correlation: u64) -> bool {
        let Some(number) = self.staged.withdraw(correlation) else {
            return false;
        };
        let staged = self.owed.len() - self.owed_staged;
        let mut credited = self.owed.range(staged..);
        if let Some(at) = credited.position(|owed| owed.number == number)
            && let Some(owed) = self.owed.remove(staged + at)
        {
            self.owed_staged -= 1;
            self.shared.credit.give_back(owed.bytes);
        }
        for owed in self.owed.range_mut(staged..) {
            owed.number -= u64::from(owed.number > number);
        }
        true
    }

    /// Stages a cancel, if there is a connection and room.
    pub(super) fn stage_cancel(&mut self, header: &Header) -> bool {
        let is_there = matches!(self.standing, Standing::Up | Standing::Draining);
        let messages = self.left.0 + self.staged.messages();
        is_there && messages < self.messages_max && self.staged.push(header, &[]).is_ok()
    }

    #[inline]
    fn stage(&mut self, header: &Header, payload: &mut Payload) {
        let staged = match payload {
            // To share a small one would cost more than to copy it.
            Payload::Shared(bytes) if bytes.len() >= ATTACHED_BYTES_MIN => {
                self.staged.push_bytes(header, bytes.clone())
            }
            Payload::Shared(bytes) => self.staged.push(header, bytes),
            Payload::Own(bytes) => self.staged.push(header, bytes),
        };
        debug_assert!(staged.is_ok(), "room was asked for");
    }

    /// Moves the stage into the outbox, and what waits as far as there is room, each with the
    /// header that `leave` gives it, up to the first that it lets wait. True if anything was moved.
    pub(super) fn load(
        &mut self,
        outbox: &mut Outbox,
        mut leave: impl FnMut(&Waiting) -> Option<Header>,
    ) -> bool {
        let before = outbox.pushed();
        if self.has_staged() {
            let staged = self.owed.len() - self.owed_staged;
            for owed in self.owed.range_mut(staged..) {
                owed.number += before;
            }
            self.owed_staged = 0;
            outbox.append(&mut self.staged);
        }
        while !outbox.is_full()
            && let Some(header) = self.waiting.front().and_then(&mut leave)
            && let Some(waiting) = self.waiting.pop_front()
        {
            self.waiting_bytes -= waiting.payload.len();
            if let Some(bytes) = waiting.credit {
                let number = outbox.pushed();
                self.owed.push_back(Owed { number, bytes });
            }
            let pushed = outbox.push_bytes(&header, waiting.payload);
            debug_assert!(pushed.is_ok(), "room was asked for");
        }
        self.left = (outbox.messages(), outbox.bytes());
        outbox.pushed() > before
    }

    /// Gives back the credit of what has left, and counts the one-way messages among it. Returns
    /// how many these were.
    pub(super) fn settle(&mut self, outbox: &Outbox) -> u64 {
        let taken = outbox.taken();
        let one_way = taken.one_way - self.taken.one_way;
        let others = one_way.min(self.others);
        self.others -= others;
        let one_way = one_way - others;
        self.taken = taken;
        self.left = (outbox.messages(), outbox.bytes());
        if one_way > 0 {
            self.shared.account.add_many(Entry::OneWaySent, one_way);
        }
        let in_outbox = self.owed.len() - self.owed_staged;
        let left = self.owed.iter().take(in_outbox);
        let left = left.take_while(|owed| owed.number < taken.messages).count();
        for owed in self.owed.drain(..left) {
            self.shared.credit.give_back(owed.bytes);
        }
        one_way
    }

    /// The connection is lost and its outbox emptied, or it is another's now: what comes is
    /// numbered from here, and what stands there is not this queue's.
    pub(super) fn begin_anew(&mut self, outbox: &Outbox) {
        self.taken = outbox.taken();
        self.others = outbox.waiting().one_way;
        self.left = (0, 0);
        self.give_credit_back();
    }

    /// How many one-way messages at the front of the outbox were counted before.
    pub(super) fn others(&self) -> u64 {
        self.others
    }

    /// What was staged or in the outbox has ended.
    pub(super) fn give_credit_back(&mut self) {
        for owed in self.owed.drain(..) {
            self.shared.credit.give_back(owed.bytes);
        }
        self.owed_staged = 0;
    }

    /// What is staged, for somebody to end it.
    pub(super) fn take_stage(&mut self) -> Outbox {
        std::mem::replace(
            &mut self.staged,
            Outbox::new(self.messages_max, self.bytes_max),
        )
    }

    /// What waits, for another queue of the same process. It keeps its credit.
    pub(super) fn move_waiting(&mut self) -> VecDeque<Waiting> {
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting)
    }

    /// What waits, for somebody to end it. Its credit is given back.
    pub(super) fn take_waiting(&mut self) -> VecDeque<Waiting> {
        self.waiting_bytes = 0;
        let waiting = std::mem::take(&mut self.waiting);
        for bytes in waiting.iter().filter_map(|it| it.credit) {
            self.shared.credit.give_back(bytes);
        }
        waiting
    }
}
