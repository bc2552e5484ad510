//! A message under construction.

use std::{io, ops::Range};

use super::{
    Attached, HEADER_FRAME_BYTES, Header, Kind, LONG, LONG_BYTES, Outbox, Payload, SHORT_BYTES,
    SHORT_MAX,
};

/// A message under construction at the end of an [`Outbox`].
#[derive(Debug)]
pub struct Draft<'a> {
    outbox: &'a mut Outbox,
    kind: Kind,
    begin: usize,
    committed: bool,
}

impl<'a> Draft<'a> {
    /// Its head stands at `begin` of the outbox's buffer, with room for the long form.
    pub(super) fn new(outbox: &'a mut Outbox, kind: Kind, begin: usize) -> Self {
        Self {
            outbox,
            kind,
            begin,
            committed: false,
        }
    }

    /// Where the payload is written to.
    pub fn payload(&mut self) -> PayloadWriter<'_> {
        let begin = self.payload_begin();
        PayloadWriter {
            begin,
            buffer: &mut self.outbox.buffer,
        }
    }

    /// Forgets what was written and begins anew with another header: the reply that failed becomes
    /// its nack.
    pub fn restart(&mut self, header: &Header) {
        let payload_begin = self.payload_begin();
        self.kind = header.kind;
        self.outbox.buffer.truncate(payload_begin);
        self.outbox.buffer[self.begin + 2..self.begin + HEADER_FRAME_BYTES]
            .copy_from_slice(&header.encode());
    }

    /// The message is whole: patches the payload's length, and from now on it waits to leave.
    #[inline]
    pub fn commit(mut self) {
        self.committed = true;
        let frame = self.begin + HEADER_FRAME_BYTES;
        let payload_begin = self.payload_begin();
        let buffer = &mut self.outbox.buffer;
        let payload_bytes = buffer.len() - payload_begin;
        if payload_bytes <= SHORT_MAX {
            buffer[frame] = 0;
            buffer[frame + 1] = payload_bytes as u8;
            buffer.copy_within(payload_begin.., frame + SHORT_BYTES);
            buffer.truncate(frame + SHORT_BYTES + payload_bytes);
        } else {
            self.write_long_head(payload_bytes);
        }
        self.outbox.count(self.kind);
    }

    /// The message is whole with a part of this buffer as its payload, which leaves without being
    /// copied; then the buffer comes back by [`Outbox::take_spent`].
    pub fn commit_with_buffer(self, buffer: Vec<u8>, payload: Range<usize>) {
        self.commit_attached(Payload::Buffer(buffer, payload));
    }

    pub(super) fn commit_attached(mut self, payload: Payload) {
        self.committed = true;
        let payload_begin = self.payload_begin();
        let bytes = payload.bytes().len();
        self.outbox.buffer.truncate(payload_begin);
        self.write_long_head(bytes);
        self.outbox.attached.push_back(Attached {
            at: payload_begin,
            payload,
            left: 0,
        });
        self.outbox.attached_bytes += bytes;
        self.outbox.count(self.kind);
    }

    fn write_long_head(&mut self, payload_bytes: usize) {
        let frame = self.begin + HEADER_FRAME_BYTES;
        let head = &mut self.outbox.buffer[frame..frame + LONG_BYTES];
        head[0] = LONG;
        head[1..].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
    }

    fn payload_begin(&self) -> usize {
        self.begin + HEADER_FRAME_BYTES + LONG_BYTES
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.committed {
            self.outbox.buffer.truncate(self.begin);
        }
    }
}

/// Writes a payload straight into the connection's write buffer.
#[derive(Debug)]
pub struct PayloadWriter<'a> {
    buffer: &'a mut Vec<u8>,
    begin: usize,
}

impl<'a> PayloadWriter<'a> {
    /// One that writes at the end of any buffer.
    pub fn new(buffer: &'a mut Vec<u8>) -> Self {
        let begin = buffer.len();
        Self { buffer, begin }
    }

    /// Appends bytes.
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.buffer.len() - self.begin
    }

    /// Whether nothing is written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Never fails.
impl io::Write for PayloadWriter<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
