//! The calling side of a shard, without I/O: what waits for a connection, what waits for an answer,
//! and how each message ends.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use quanta::Instant;
use rustc_hash::FxHashMap;

use super::{
    Submitted,
    call::Outcome,
    calls::{Calls, Outstanding},
};
use crate::{
    error::{Indeterminate, NotSent},
    peers::{Entry, PeerId, PeerShared},
    wire::{Codec, HandlerKey, Header, Kind, Outbox},
};

/// Every message that this shard was given to send, until its end.
///
/// Each ends once: it is answered, nacked, told as never sent, or indeterminate; a one-way message
/// is sent or lost. Its end is told to whoever waits, entered in its peer's account, and handed to
/// the caller of the method as [`Settled`].
#[derive(Debug)]
pub struct Caller {
    calls: Calls,
    queues: FxHashMap<PeerId, Queue>,
    /// Ends since the shard last asked.
    settled: Vec<Settled>,
}

/// How a message ended, for the shard's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Whom it called.
    pub handler: HandlerKey,
    /// Its end.
    pub end: Entry,
    /// From submission to the answer; `None` without one.
    pub round_trip: Option<Duration>,
}

/// What goes to one peer and has not left yet. Its messages hold credit.
#[derive(Debug)]
struct Queue {
    shared: Arc<PeerShared>,
    /// No connection, or no room in its outbox.
    waiting: VecDeque<Waiting>,
    /// In the outbox, not yet taken by the engine.
    boxed: VecDeque<Boxed>,
}

#[derive(Debug)]
struct Waiting {
    header: Header,
    payload: Bytes,
    deadline: Option<Instant>,
}

#[derive(Debug)]
struct Boxed {
    /// Its number in the outbox.
    number: u64,
    kind: Kind,
    handler: HandlerKey,
    correlation: u64,
    payload: Bytes,
}

impl Caller {
    /// A side with at most so many calls outstanding.
    pub fn new(outstanding_max: usize) -> Self {
        Self {
            calls: Calls::new(outstanding_max),
            queues: FxHashMap::default(),
            settled: Vec::new(),
        }
    }

    /// Calls whose answers are outstanding.
    pub fn outstanding(&self) -> usize {
        self.calls.len()
    }

    /// Whether nothing waits and nothing is outstanding.
    pub fn is_idle(&self) -> bool {
        let is_quiet = |queue: &Queue| queue.waiting.is_empty() && queue.boxed.is_empty();
        self.calls.len() == 0 && self.queues.values().all(is_quiet)
    }

    /// What has ended since the last time.
    pub fn drain_settled(&mut self) -> impl Iterator<Item = Settled> {
        self.settled.drain(..)
    }

    /// Whether messages to this peer stand in its outbox, not yet taken by the engine.
    pub fn has_boxed(&self, peer: PeerId) -> bool {
        self.queues
            .get(&peer)
            .is_some_and(|queue| !queue.boxed.is_empty())
    }

    /// Whether messages to this peer wait for a connection or for room.
    pub fn has_waiting(&self, peer: PeerId) -> bool {
        self.queues
            .get(&peer)
            .is_some_and(|queue| !queue.waiting.is_empty())
    }

    /// Begins to keep a queue for this peer.
    pub fn open(&mut self, peer: PeerId, shared: Arc<PeerShared>) {
        let queue = Queue {
            shared,
            waiting: VecDeque::new(),
            boxed: VecDeque::new(),
        };
        self.queues.insert(peer, queue);
    }

    /// Ends whatever goes to this peer, and forgets it.
    pub fn close(&mut self, peer: PeerId) {
        self.stop(Some(peer));
        self.queues.remove(&peer);
    }

    /// Takes a message, and writes it into `outbox` if the peer has one with room and nothing waits
    /// before it.
    pub fn submit(&mut self, now: Instant, message: Submitted, outbox: Option<&mut Outbox>) {
        let peer = message.peer;
        if !self.queues.contains_key(&peer) {
            return self.refuse(message, NotSent::Closed);
        }
        if message.wants_answer() && self.calls.is_full() {
            return self.refuse(message, NotSent::Outstanding);
        }
        let waiting = self.enter(message);
        let queue = self.queues.get_mut(&peer).expect("was just found");
        queue.shared.account.add(Entry::Accepted);
        queue.waiting.push_back(waiting);
        if let Some(outbox) = outbox {
            self.pump(now, peer, outbox);
        }
    }

    /// Ends a message at once that goes nowhere. The credit and the account of a peer that is
    /// closed went with it.
    pub fn refuse(&mut self, message: Submitted, why: NotSent) {
        let Submitted {
            peer,
            payload,
            completion,
            handler,
            ..
        } = message;
        let queue = self.queues.get(&peer);
        if let Some(queue) = queue {
            queue.shared.credit.give_back(payload.len());
        }
        let end = match completion {
            Some(completion) => {
                let _ = completion.send(Outcome::NotSent(why, payload));
                Entry::NotSent
            }
            None => Entry::Lost,
        };
        if let Some(queue) = queue {
            // The caller was told that it is accepted, as it took credit.
            queue.shared.account.add(Entry::Accepted);
            queue.shared.account.add(end);
        }
        self.settled.push(Settled {
            handler,
            end,
            round_trip: None,
        });
    }

    /// Writes what waits for this peer into its outbox, as far as there is room. True if it wrote
    /// anything.
    pub fn pump(&mut self, now: Instant, peer: PeerId, outbox: &mut Outbox) -> bool {
        let Some(queue) = self.queues.get_mut(&peer) else {
            return false;
        };
        let pushed_before = outbox.pushed();
        while !outbox.is_full() {
            let Some(Waiting {
                mut header,
                payload,
                deadline,
            }) = queue.waiting.pop_front()
            else {
                break;
            };
            header.deadline_us = deadline.map_or(0, |deadline| remaining_us(now, deadline));
            let number = outbox.pushed();
            outbox.push(&header, &payload).expect("is not full");
            if let Some(call) = self.calls.get_mut(header.correlation) {
                call.number = Some(number);
            }
            let Header {
                kind,
                handler,
                correlation,
                ..
            } = header;
            queue.boxed.push_back(Boxed {
                number,
                kind,
                handler,
                correlation,
                payload,
            });
        }
        outbox.pushed() > pushed_before
    }

    /// The engine has taken all messages of the peer's outbox with a number below `taken`.
    pub fn taken(&mut self, peer: PeerId, taken: u64) {
        let Some(queue) = self.queues.get_mut(&peer) else {
            return;
        };
        while let Some(boxed) = queue.boxed.pop_front_if(|boxed| boxed.number < taken) {
            queue.shared.credit.give_back(boxed.payload.len());
            if boxed.kind == Kind::OneWay {
                queue.shared.account.add(Entry::OneWaySent);
                let (handler, end) = (boxed.handler, Entry::OneWaySent);
                self.settled.push(Settled {
                    handler,
                    end,
                    round_trip: None,
                });
            }
        }
    }

    /// The connection is lost. What the engine had taken may have reached the peer; what it had not
    /// never left.
    pub fn lost(&mut self, peer: PeerId, taken: u64) {
        self.taken(peer, taken);
        let boxed = match self.queues.get_mut(&peer) {
            Some(queue) => std::mem::take(&mut queue.boxed),
            None => return,
        };
        for Boxed {
            kind,
            handler,
            correlation,
            payload,
            ..
        } in boxed
        {
            let call = self.calls.remove(correlation);
            self.end_unsent(peer, kind, handler, payload, call, NotSent::ConnectionLost);
        }
        // What waits was on no connection: it stays for the next one.
        self.end_sent(peer, Indeterminate::ConnectionLost);
    }

    /// An answer has come from this peer. False if it is late, a duplicate, or not this peer's to
    /// give.
    pub fn answer(&mut self, now: Instant, peer: PeerId, header: &Header, payload: &[u8]) -> bool {
        let fits = |call: &Outstanding| {
            call.peer == peer
                && call.number.is_some()
                && match header.kind {
                    Kind::Ack => call.kind == Kind::Confirm,
                    Kind::Response => call.kind == Kind::Request,
                    kind => kind == Kind::Nack,
                }
        };
        if !self
            .calls
            .get_mut(header.correlation)
            .is_some_and(|call| fits(call))
        {
            return false;
        }
        let call = self
            .calls
            .remove(header.correlation)
            .expect("was just found");
        let (outcome, end) = match header.kind {
            Kind::Nack => {
                let text = String::from_utf8_lossy(payload).into_owned();
                (Outcome::Nacked(header.reason, text), Entry::Nacked)
            }
            Kind::Ack => (Outcome::Answered(Codec::Raw, Bytes::new()), Entry::Handled),
            _ => {
                let payload = Bytes::copy_from_slice(payload);
                (Outcome::Answered(header.codec, payload), Entry::Handled)
            }
        };
        let round_trip = Some(now.saturating_duration_since(call.submitted_at));
        self.end_call(call, outcome, end, round_trip);
        true
    }

    /// Ends every call whose deadline has passed.
    pub fn expire(&mut self, now: Instant) {
        while let Some((correlation, call)) = self.calls.next_expired(now) {
            let outcome = match call.number {
                Some(_) => Outcome::Indeterminate(Indeterminate::Deadline),
                None => {
                    let payload = self.withdraw(call.peer, correlation);
                    Outcome::NotSent(NotSent::Deadline, payload)
                }
            };
            let end = match outcome {
                Outcome::NotSent(..) => Entry::NotSent,
                _ => Entry::Indeterminate,
            };
            self.end_call(call, outcome, end, None);
        }
    }

    /// When `expire` must be called next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.calls.next_deadline()
    }

    /// Ends whatever goes to this peer, or to all: what has not left as never sent, the rest as
    /// indeterminate.
    pub fn stop(&mut self, peer: Option<PeerId>) {
        let peers: Vec<PeerId> = match peer {
            Some(peer) => vec![peer],
            None => self.queues.keys().copied().collect(),
        };
        for peer in peers {
            let Some(queue) = self.queues.get_mut(&peer) else {
                continue;
            };
            let boxed = std::mem::take(&mut queue.boxed).into_iter();
            let boxed = boxed.map(|it| (it.kind, it.handler, it.correlation, it.payload));
            let waiting = std::mem::take(&mut queue.waiting).into_iter();
            let waiting = waiting.map(|it| {
                (
                    it.header.kind,
                    it.header.handler,
                    it.header.correlation,
                    it.payload,
                )
            });
            for (kind, handler, correlation, payload) in boxed.chain(waiting) {
                let call = self.calls.remove(correlation);
                self.end_unsent(peer, kind, handler, payload, call, NotSent::Closed);
            }
            self.end_sent(peer, Indeterminate::Stopped);
        }
    }

    /// Gives a message its header, and a call its place in the correlation table.
    fn enter(&mut self, message: Submitted) -> Waiting {
        let Submitted {
            peer,
            kind,
            codec,
            handler,
            route_key,
            payload,
            deadline,
            ..
        } = message;
        let correlation = match (message.completion, deadline) {
            (Some(completion), Some(deadline)) => self.calls.insert(Outstanding {
                peer,
                kind,
                handler,
                submitted_at: message.submitted_at,
                deadline,
                number: None,
                completion,
            }),
            _ => self.calls.unanswered(),
        };
        let header = Header {
            codec,
            handler,
            route_key,
            ..Header::new(kind, correlation)
        };
        Waiting {
            header,
            payload,
            deadline,
        }
    }

    /// Takes a message back that still waits. Returns its payload.
    fn withdraw(&mut self, peer: PeerId, correlation: u64) -> Bytes {
        let Some(queue) = self.queues.get_mut(&peer) else {
            return Bytes::new();
        };
        let mut at = queue.waiting.iter();
        let Some(at) = at.position(|waiting| waiting.header.correlation == correlation) else {
            return Bytes::new();
        };
        let payload = queue
            .waiting
            .remove(at)
            .map(|waiting| waiting.payload)
            .unwrap_or_default();
        queue.shared.credit.give_back(payload.len());
        payload
    }

    fn end_unsent(
        &mut self,
        peer: PeerId,
        kind: Kind,
        handler: HandlerKey,
        payload: Bytes,
        call: Option<Outstanding>,
        why: NotSent,
    ) {
        let Some(queue) = self.queues.get(&peer) else {
            return;
        };
        queue.shared.credit.give_back(payload.len());
        match call {
            Some(call) => {
                self.end_call(call, Outcome::NotSent(why, payload), Entry::NotSent, None);
            }
            None if kind == Kind::OneWay => {
                queue.shared.account.add(Entry::Lost);
                self.settled.push(Settled {
                    handler,
                    end: Entry::Lost,
                    round_trip: None,
                });
            }
            // The call has ended before: its deadline passed while it stood in the outbox.
            None => {}
        }
    }

    fn end_sent(&mut self, peer: PeerId, why: Indeterminate) {
        for call in self.calls.take_sent(peer) {
            self.end_call(
                call,
                Outcome::Indeterminate(why),
                Entry::Indeterminate,
                None,
            );
        }
    }

    fn end_call(
        &mut self,
        call: Outstanding,
        outcome: Outcome,
        end: Entry,
        round_trip: Option<Duration>,
    ) {
        if let Some(queue) = self.queues.get(&call.peer) {
            queue.shared.account.add(end);
        }
        self.settled.push(Settled {
            handler: call.handler,
            end,
            round_trip,
        });
        // Whoever waited may have stopped waiting.
        let _ = call.completion.send(outcome);
    }
}

/// What remains of a deadline as the wire tells it: at least 1, since 0 means none.
fn remaining_us(now: Instant, deadline: Instant) -> u32 {
    let remaining = deadline.saturating_duration_since(now).as_micros();
    remaining.clamp(1, u128::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests;
