//! Answers that come from another shard, and the connections that wait for room there.

use super::{Kind, Outbox};

/// That an answer will come for a message that was read, from elsewhere: its place in the outbox is
/// kept. Good for as long as the connection lives that the message came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    epoch: u32,
}

impl Outbox {
    /// Keeps a place for an answer.
    pub fn promise(&mut self) -> Promise {
        self.promised += 1;
        Promise { epoch: self.epoch }
    }

    /// Moves an answer here that was promised, whatever the bounds: its place was kept. False, and
    /// the answer stays where it is, if the promise was to a connection that is gone.
    pub fn keep(&mut self, promise: Promise, answer: &mut Outbox) -> bool {
        if promise.epoch != self.epoch {
            return false;
        }
        self.promised -= 1;
        // Copied even if nothing waits here: the two buffers stay where they have grown.
        let moved = answer.waiting;
        self.copy_from(answer);
        self.take_count_of(answer, moved);
        true
    }

    /// As [`keep`](Self::keep), for an answer that was framed by
    /// [`move_frames`](Self::move_frames).
    #[inline]
    pub fn keep_framed(&mut self, promise: Promise, frames: &[u8]) -> bool {
        if promise.epoch != self.epoch {
            return false;
        }
        self.promised -= 1;
        self.compact();
        self.buffer.extend_from_slice(frames);
        self.count(Kind::Response);
        true
    }

    /// No answer will come: its place is free.
    pub fn forgo(&mut self, promise: Promise) {
        if promise.epoch == self.epoch {
            self.promised -= 1;
        }
    }

    /// Moves the one answer that waits here, as it will leave, into a buffer, whatever stood there.
    /// False, and nothing is moved, if its payload is not in one piece with it.
    #[inline]
    pub fn move_frames(&mut self, into: &mut Vec<u8>) -> bool {
        debug_assert!(self.messages() == 1 && self.waiting.one_way == 0);
        let Some(frames) = self.contiguous() else {
            return false;
        };
        into.clear();
        into.extend_from_slice(frames);
        self.empty();
        true
    }

    /// Nothing more is to be read from the connection, until [`release`](Self::release): where its
    /// last message was to go there is no room.
    pub fn hold(&mut self) {
        self.is_held = true;
    }

    /// There is room again.
    pub fn release(&mut self) {
        self.is_held = false;
    }

    /// Whether nothing more is to be read from the connection for want of room elsewhere.
    #[inline]
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// Its connection brings answers to this process's own calls, too, as long as it lives: it is
    /// read whatever waits here, or answers would wait behind requests, and these for them.
    pub fn bring_answers(&mut self) {
        self.brings_answers = true;
    }

    /// Whether its connection does.
    #[inline]
    pub fn brings_answers(&self) -> bool {
        self.brings_answers
    }

    /// Whether a message that is read now would find no room: for its answer here, with those that
    /// are promised, or where it goes.
    #[inline]
    pub fn is_blocked(&self) -> bool {
        let is_promised_away = self.promised > 0
            && self.waiting.messages as usize + self.promised >= self.messages_max;
        self.is_held || is_promised_away || self.is_full()
    }

    pub(super) fn forget_promises(&mut self) {
        self.promised = 0;
        self.epoch = self.epoch.wrapping_add(1);
        self.is_held = false;
        self.brings_answers = false;
    }
}
