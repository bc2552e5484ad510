//! How messages end that are not answered, and how every end is entered.

use bytes::Bytes;

use super::{Caller, Completion};
use crate::{
    client::{Standing, Submitted, call::Outcome, calls::Outstanding},
    error::{Indeterminate, NotSent},
    peers::{Entry, PeerId},
    wire::{Header, Kind, Outbox},
};

/// How many messages have come to each end since the shard last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Calls that were given to the shard.
    pub calls: u64,
    /// By [`Entry`].
    pub(super) counts: [u64; Entry::COUNT],
}

impl Ends {
    /// Messages that ended so.
    pub fn of(&self, entry: Entry) -> u64 {
        self.counts[entry as usize]
    }
}

impl Caller {
    /// Ends whatever goes to this peer, and forgets it: what has not left, in its outbox too, as
    /// never sent, the rest as indeterminate.
    pub fn close(&mut self, peer: PeerId, outbox: Option<&mut Outbox>) {
        if let (Some(queue), Some(outbox)) = (self.queues.get_mut(&peer), outbox.as_deref()) {
            let sent = queue.settle(outbox);
            self.add_ends(Entry::OneWaySent, sent);
        }
        self.end_unsent_of(peer, outbox, NotSent::Closed);
        if let Some(queue) = self.queues.get_mut(&peer) {
            for waiting in queue.take_waiting() {
                self.end_unsent(peer, &waiting.header, waiting.payload, NotSent::Closed);
            }
        }
        self.end_sent(peer, Indeterminate::Stopped);
        if let Some(mut queue) = self.queues.remove(&peer) {
            queue.give_credit_back();
            // None of its other connections is begun any more.
            let links = queue.shards.iter().flat_map(|shards| shards.open_links());
            let links: Vec<PeerId> = links.collect();
            self.wanted.retain(|it| !links.contains(&it.peer));
        }
        // Nor is this one.
        self.wanted.retain(|it| it.peer != peer);
        self.busy.retain(|&busy| busy != peer);
    }

    /// The connection is lost. What has left its outbox may have reached the peer; what has not
    /// never left, and is taken out of it. Returns how many answers to the peer stood there, too.
    pub fn lost(&mut self, peer: PeerId, outbox: &mut Outbox) -> usize {
        let Some(queue) = self.queues.get_mut(&peer) else {
            return 0;
        };
        queue.standing = Standing::Down;
        let sent = queue.settle(outbox);
        self.add_ends(Entry::OneWaySent, sent);
        let answers = self.end_unsent_of(peer, Some(&mut *outbox), NotSent::ConnectionLost);
        if let Some(queue) = self.queues.get_mut(&peer) {
            queue.begin_anew(outbox);
        }
        // What waits was on no connection: it stays for the next one.
        self.end_sent(peer, Indeterminate::ConnectionLost);
        answers
    }

    /// Ends a message at once that goes nowhere. The credit and the account of a peer that is
    /// closed went with it.
    pub(super) fn refuse(&mut self, message: Submitted, why: NotSent) {
        let Submitted {
            peer,
            order,
            completion,
            ..
        } = message;
        let payload = order.payload.into_bytes();
        let end = match completion {
            Some(_) => Entry::NotSent,
            None => Entry::Lost,
        };
        if let Some(queue) = self.queues.get(&peer) {
            queue.shared.credit.give_back(payload.len());
            // The caller was told that it is accepted, as it took credit.
            queue.shared.account.add(Entry::Accepted);
            queue.shared.account.add(end);
        }
        self.add_ends(end, 1);
        if let Some(completion) = completion {
            let _ = completion.send(Outcome::NotSent(why, payload));
        }
    }

    /// Ends what stands in this peer's outbox, and what is staged for it. Returns how many answers
    /// stood there.
    fn end_unsent_of(&mut self, peer: PeerId, outbox: Option<&mut Outbox>, why: NotSent) -> usize {
        let Some(queue) = self.queues.get_mut(&peer) else {
            return 0;
        };
        let mut staged = queue.take_stage();
        let (mut others, mut answers) = (queue.others(), 0);
        for unsent in outbox.into_iter().chain([&mut staged]) {
            while let Some(frames) = unsent.front() {
                if let Ok(header) = Header::decode(frames.header) {
                    let payload = Bytes::copy_from_slice(frames.payload);
                    let is_answer = matches!(header.kind, Kind::Ack | Kind::Response | Kind::Nack);
                    answers += usize::from(is_answer);
                    if header.kind == Kind::OneWay && others > 0 {
                        others -= 1;
                    } else {
                        self.end_unsent(peer, &header, payload, why);
                    }
                }
                unsent.pop_front();
            }
        }
        answers
    }

    /// A message has never left. Answers of this process may stand in the same outbox: they are no
    /// messages of the caller's.
    pub(super) fn end_unsent(
        &mut self,
        peer: PeerId,
        header: &Header,
        payload: Bytes,
        why: NotSent,
    ) {
        match header.kind {
            Kind::OneWay => self.count(peer, Entry::Lost),
            Kind::Confirm | Kind::Request => {
                // Else the call has ended before: its deadline passed while it stood in the outbox.
                if let Some(call) = self.calls.remove(header.correlation) {
                    self.end_call(call, Outcome::NotSent(why, payload), Entry::NotSent);
                }
            }
            _ => {}
        }
    }

    fn end_sent(&mut self, peer: PeerId, why: Indeterminate) {
        for call in self.calls.take_sent(peer) {
            self.end_call(call, Outcome::Indeterminate(why), Entry::Indeterminate);
        }
    }

    pub(super) fn end_call(&mut self, call: Outstanding, outcome: Outcome, end: Entry) {
        self.count(call.peer, end);
        match call.completion {
            Completion::Local(slot) => self.answers.give(slot, outcome),
            // Whoever waited may have stopped waiting.
            Completion::Remote(sender) => drop(sender.send(outcome)),
        }
    }

    #[inline]
    pub(super) fn add_ends(&mut self, end: Entry, many: u64) {
        self.ends.counts[end as usize] += many;
        self.has_news |= many > 0;
    }

    fn count(&mut self, peer: PeerId, end: Entry) {
        self.add_ends(end, 1);
        if let Some(queue) = self.queues.get(&peer) {
            queue.shared.account.add(end);
        }
    }
}
