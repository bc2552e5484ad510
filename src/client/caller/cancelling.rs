//! Calls that nobody waits for any more.

use super::{Caller, Completion};
use crate::{
    client::{call::Outcome, calls::Outstanding},
    error::{Indeterminate, NotSent},
    peers::Entry,
    wire::{Header, Kind},
};

/// Calls of other threads that one turn looks at, and calls that it ends.
const LOOKS_MAX: usize = 256;

/// The search for calls of other threads whose futures were dropped. A thread knows no correlation,
/// and a drop must not wait, so it only has the shard look: at some calls each turn, until it has
/// been at all of them since it was last asked.
#[derive(Debug, Default)]
pub(super) struct Search {
    next: usize,
    left: usize,
}

impl Caller {
    /// Somewhere a future was dropped whose call may be outstanding.
    pub fn look_for_abandoned(&mut self) {
        self.search.left = self.calls.places();
    }

    /// Whether any call is to be cancelled, or looked at.
    #[inline]
    pub(super) fn has_abandoned(&self) -> bool {
        self.search.left > 0 || self.answers.has_abandoned()
    }

    /// Ends a bounded number of calls that nobody waits for. One that has not left is taken back;
    /// for the others a cancel is staged, if there is room for it.
    #[cold]
    pub(super) fn cancel_abandoned(&mut self) {
        for _ in 0..LOOKS_MAX {
            let Some(correlation) = self.answers.pop_abandoned() else {
                break;
            };
            self.cancel(correlation);
        }
        for _ in 0..self.search.left.min(LOOKS_MAX) {
            self.search.left -= 1;
            let place = self.search.next;
            self.search.next = (place + 1) % self.calls.places().max(1);
            if let Some(correlation) = self.calls.abandoned_at(place) {
                self.cancel(correlation);
            }
        }
    }

    fn cancel(&mut self, correlation: u64) {
        // Else it has ended meanwhile.
        let Some(call) = self.calls.remove(correlation) else {
            return;
        };
        let Some(queue) = self.queues.get_mut(&call.peer) else {
            return self.end_abandoned(call, false);
        };
        if !call.is_staged {
            drop(queue.withdraw(correlation));
            return self.end_abandoned(call, false);
        }
        if queue.withdraw_staged(correlation) {
            return self.end_abandoned(call, false);
        }
        let header = Header {
            handler: call.handler,
            route_key: call.route_key,
            ..Header::new(Kind::Cancel, correlation)
        };
        if queue.stage_cancel(&header) && queue.note() {
            self.busy.push(call.peer);
        }
        self.end_abandoned(call, true);
    }

    /// Enters the end of a call of which nobody hears.
    fn end_abandoned(&mut self, call: Outstanding, has_left: bool) {
        let (outcome, end) = match has_left {
            true => {
                let why = Indeterminate::Stopped;
                (Outcome::Indeterminate(why), Entry::Indeterminate)
            }
            false => {
                let payload = bytes::Bytes::new();
                let outcome = Outcome::NotSent(NotSent::Closed, payload);
                (outcome, Entry::NotSent)
            }
        };
        self.end_call(call, outcome, end);
    }
}

impl Completion {
    /// Whether it is another thread's, and nobody waits for it.
    pub(in crate::client) fn is_abandoned(&self) -> bool {
        match self {
            Completion::Remote(sender) => sender.is_closed(),
            Completion::Local(_) => false,
        }
    }
}
