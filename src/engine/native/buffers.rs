//! Read buffers, used again: a connection has one only while something in it is not handled.

use std::mem;

/// What one read asks for at most, and the capacity of an ordinary buffer: several hundred small
/// messages in one system call, and well within a core's second-level cache.
pub(super) const READ_BYTES: usize = 128 << 10;

/// Ordinary buffers kept for later: more are in use only while as many connections are in the
/// middle of something.
const SPARE_MAX: usize = 16;
/// Bytes of large buffers kept for later. Giving them back to the system each time would cost a
/// page fault per 4 KiB of every large message.
const LARGE_SPARE_BYTES_MAX: usize = 16 << 20;

/// The buffers of one shard.
pub(super) struct Buffers {
    spare: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
    large_bytes: usize,
    /// Bytes that connections hold, in read buffers and outboxes.
    held_bytes: usize,
    held_bytes_max: usize,
}

impl Buffers {
    pub(super) fn new(held_bytes_max: usize) -> Self {
        Self {
            spare: Vec::with_capacity(SPARE_MAX),
            large: Vec::new(),
            large_bytes: 0,
            held_bytes: 0,
            held_bytes_max,
        }
    }

    /// An empty buffer with room for so many bytes, and for no fewer than a read asks for.
    pub(super) fn take(&mut self, bytes: usize) -> Vec<u8> {
        let buffer = if bytes <= READ_BYTES {
            let spare = self.spare.pop();
            spare.unwrap_or_else(|| Vec::with_capacity(READ_BYTES))
        } else {
            self.take_large(bytes)
        };
        self.held_bytes += buffer.capacity();
        buffer
    }

    fn take_large(&mut self, bytes: usize) -> Vec<u8> {
        let fits = self.large.iter().position(|it| it.capacity() >= bytes);
        match fits {
            Some(at) => {
                let buffer = self.large.swap_remove(at);
                self.large_bytes -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(bytes),
        }
    }

    /// A buffer that a connection has done with.
    pub(super) fn give_back(&mut self, buffer: Vec<u8>) {
        self.held_bytes -= buffer.capacity();
        self.keep(buffer);
    }

    /// A buffer that had left with a message, and is free again.
    pub(super) fn keep(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        let capacity = buffer.capacity();
        if capacity == READ_BYTES && self.spare.len() < SPARE_MAX {
            self.spare.push(buffer);
        } else if capacity > READ_BYTES && self.large_bytes + capacity <= LARGE_SPARE_BYTES_MAX {
            self.large_bytes += capacity;
            self.large.push(buffer);
        }
    }

    /// Puts what a buffer holds into a small one of its own, for a connection that may be slow to
    /// send the rest.
    pub(super) fn shrink(&mut self, buffer: &mut Vec<u8>) {
        let small = buffer.to_vec();
        self.held_bytes += small.capacity();
        let large = mem::replace(buffer, small);
        self.give_back(large);
    }

    /// What a connection holds has changed by other means: by a queue, or by a taken buffer.
    pub(super) fn account(&mut self, before: usize, after: usize) {
        self.held_bytes = self.held_bytes - before + after;
    }

    /// Whether so many more bytes are within the shard's bound.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.held_bytes + bytes <= self.held_bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again_and_adds_up() {
        let mut buffers = Buffers::new(10 * READ_BYTES);
        for bytes in [1, READ_BYTES, READ_BYTES + 1, 5 * READ_BYTES] {
            let mut buffer = buffers.take(bytes);
            assert!(buffer.capacity() >= bytes.max(READ_BYTES));
            buffer.push(7);
            let pointer = buffer.as_ptr();
            buffers.give_back(buffer);
            let again = buffers.take(bytes);
            assert_eq!((again.as_ptr(), again.len()), (pointer, 0));
            buffers.give_back(again);
        }
        assert_eq!(buffers.held_bytes, 0);
    }

    #[test]
    fn the_bound_counts_what_is_held() {
        let mut buffers = Buffers::new(2 * READ_BYTES);
        let mut buffer = buffers.take(1);
        assert!(buffers.has_room(READ_BYTES) && !buffers.has_room(READ_BYTES + 1));
        buffer.extend_from_slice(b"part");
        buffers.shrink(&mut buffer);
        assert_eq!((&buffer[..], buffers.held_bytes), (&b"part"[..], 4));
        assert!(buffers.has_room(READ_BYTES + 1));
        buffers.account(0, 2 * READ_BYTES);
        assert!(!buffers.has_room(0));
    }
}
