//! From one outbox to another.

use super::{Attached, Outbox, Tally};

impl Outbox {
    /// Moves all messages of `other` behind those that wait here, whatever the bounds. Copies
    /// nothing if nothing waits here.
    pub fn append(&mut self, other: &mut Outbox) {
        let moved = other.waiting;
        if self.is_empty() {
            std::mem::swap(&mut self.buffer, &mut other.buffer);
            std::mem::swap(&mut self.attached, &mut other.attached);
            self.attached_bytes = other.attached_bytes;
            (self.front, self.left) = (other.front, other.left);
        } else {
            self.copy_from(other);
        }
        self.take_count_of(other, moved);
    }

    pub(super) fn copy_from(&mut self, other: &mut Outbox) {
        self.compact();
        let shift = self.buffer.len();
        self.buffer.extend_from_slice(&other.buffer[other.front..]);
        let moved = other.attached.drain(..).map(|it| Attached {
            at: it.at - other.front + shift,
            ..it
        });
        self.attached.extend(moved);
        self.attached_bytes += other.attached_bytes;
    }

    /// The messages of `other` stand here now.
    pub(super) fn take_count_of(&mut self, other: &mut Outbox, moved: Tally) {
        other.attached_bytes = 0;
        other.waiting = Tally::default();
        other.reset();
        self.waiting.messages += moved.messages;
        self.waiting.one_way += moved.one_way;
        self.pushed.messages += moved.messages;
        self.pushed.one_way += moved.one_way;
    }
}
