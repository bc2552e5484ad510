use std::io;

use super::{HEADER_BYTES, Header, Kind};

/// ZMTP frame flags: more frames of this message follow; the length takes eight bytes.
const MORE: u8 = 1;
const LONG: u8 = 2;

/// The header's frame: flags and a one-byte length before it.
const HEADER_FRAME_BYTES: usize = 2 + HEADER_BYTES;
/// Flags and length of the payload's frame, short and long form.
const SHORT_BYTES: usize = 2;
const LONG_BYTES: usize = 9;
const SHORT_MAX: usize = 255;

/// An emptied buffer larger than this is given back, so that one burst does not hold memory for
/// ever.
const KEPT_BYTES_MAX: usize = 1 << 20;
/// Sent bytes at the front are moved out of the way once they are at least this many and half of
/// the buffer.
const COMPACT_BYTES_MIN: usize = 64 << 10;

/// What waits to leave on one connection: whole messages, framed as ZMTP wants them, in one buffer.
///
/// Handlers and clients write here, and only the engine takes from it. Bounded in messages and
/// bytes: a push that finds it full is refused and changes nothing. Nothing blocks. It allocates
/// only while its buffer grows.
#[derive(Debug)]
pub struct Outbox {
    buffer: Vec<u8>,
    /// Where the first message that the engine has not taken begins.
    start: usize,
    messages: usize,
    messages_max: usize,
    bytes_max: usize,
    pushed: u64,
}

/// The outbox holds as many messages or bytes as it may; nothing was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection's outgoing queue is full")]
pub struct OutboxFull;

impl Outbox {
    /// An empty outbox that holds at most so many messages and, once it has one, no more than so
    /// many bytes: a message that alone is larger still fits into an empty outbox, since the
    /// message limit bounds it.
    pub fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            messages: 0,
            messages_max,
            bytes_max,
            pushed: 0,
        }
    }

    /// Adds a message with this payload, which is copied.
    pub fn push(&mut self, header: &Header, payload: &[u8]) -> Result<(), OutboxFull> {
        let mut draft = self.draft(header)?;
        draft.payload().extend_from_slice(payload);
        draft.commit();
        Ok(())
    }

    /// Begins a message whose payload is yet to be written. It counts only once it is committed; a
    /// draft that is dropped, by an error or a panic, leaves no trace.
    pub fn draft(&mut self, header: &Header) -> Result<Draft<'_>, OutboxFull> {
        if self.is_full() {
            return Err(OutboxFull);
        }
        Ok(self.draft_beyond_bounds(header))
    }

    /// A draft that is never to be committed, for a reply that nobody waits for: it needs no room.
    pub fn scratch(&mut self) -> Draft<'_> {
        self.draft_beyond_bounds(&Header::new(Kind::Response, 0))
    }

    fn draft_beyond_bounds(&mut self, header: &Header) -> Draft<'_> {
        self.compact();
        let begin = self.buffer.len();
        self.buffer.extend_from_slice(&[MORE, HEADER_BYTES as u8]);
        self.buffer.extend_from_slice(&header.encode());
        // Room for the long form; `commit` closes the gap if the payload turns out short.
        self.buffer.extend_from_slice(&[0; LONG_BYTES]);
        Draft {
            outbox: self,
            begin,
            committed: false,
        }
    }

    /// Whether the next push is refused.
    pub fn is_full(&self) -> bool {
        self.messages >= self.messages_max || (self.messages > 0 && self.bytes() >= self.bytes_max)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Messages that wait.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Bytes that wait, framing included.
    pub fn bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Messages pushed since the outbox was made: the number of the next one.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Messages the engine has taken since the outbox was made: those with a smaller number have
    /// left.
    pub fn taken(&self) -> u64 {
        self.pushed - self.messages as u64
    }

    /// The oldest message that waits.
    pub fn front(&self) -> Option<Frames<'_>> {
        if self.messages == 0 {
            return None;
        }
        let (header_begin, payload_begin, end) = self.front_bounds();
        Some(Frames {
            header: &self.buffer[header_begin..header_begin + HEADER_BYTES],
            payload: &self.buffer[payload_begin..end],
        })
    }

    /// Takes the oldest message away: the engine has it now.
    pub fn pop_front(&mut self) {
        if self.messages == 0 {
            return;
        }
        self.start = self.front_bounds().2;
        self.messages -= 1;
        if self.messages == 0 {
            self.start = 0;
            self.buffer.clear();
            if self.buffer.capacity() > KEPT_BYTES_MAX {
                self.buffer = Vec::new();
            }
        }
    }

    /// Forgets all that waits, and says how many messages that was.
    pub fn clear(&mut self) -> usize {
        let forgotten = self.messages;
        self.messages = 0;
        self.start = 0;
        self.buffer.clear();
        forgotten
    }

    /// Where the oldest message's header and payload begin, and where it ends.
    fn front_bounds(&self) -> (usize, usize, usize) {
        let frame = self.start + HEADER_FRAME_BYTES;
        let (payload_begin, payload_bytes) = if self.buffer[frame] & LONG == 0 {
            (frame + SHORT_BYTES, usize::from(self.buffer[frame + 1]))
        } else {
            let length = self.buffer[frame + 1..frame + LONG_BYTES].try_into();
            (
                frame + LONG_BYTES,
                u64::from_be_bytes(length.expect("eight bytes")) as usize,
            )
        };
        (self.start + 2, payload_begin, payload_begin + payload_bytes)
    }

    fn compact(&mut self) {
        if self.start >= COMPACT_BYTES_MIN && self.start >= self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
    }
}

/// The two frames of a message that waits.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'a> {
    /// The encoded header.
    pub header: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

/// A message under construction at the end of an [`Outbox`].
#[derive(Debug)]
pub struct Draft<'a> {
    outbox: &'a mut Outbox,
    begin: usize,
    committed: bool,
}

impl Draft<'_> {
    /// Where the payload is written to.
    pub fn payload(&mut self) -> PayloadWriter<'_> {
        let begin = self.begin + HEADER_FRAME_BYTES + LONG_BYTES;
        PayloadWriter {
            begin,
            buffer: &mut self.outbox.buffer,
        }
    }

    /// Forgets what was written and begins anew with another header: the reply that failed becomes
    /// its nack.
    pub fn restart(&mut self, header: &Header) {
        let payload_begin = self.begin + HEADER_FRAME_BYTES + LONG_BYTES;
        self.outbox.buffer.truncate(payload_begin);
        self.outbox.buffer[self.begin + 2..self.begin + HEADER_FRAME_BYTES]
            .copy_from_slice(&header.encode());
    }

    /// The message is whole: patches the payload's length, and from now on it waits to leave.
    pub fn commit(mut self) {
        self.committed = true;
        let outbox = &mut *self.outbox;
        let frame = self.begin + HEADER_FRAME_BYTES;
        let payload_begin = frame + LONG_BYTES;
        let payload_bytes = outbox.buffer.len() - payload_begin;
        if payload_bytes <= SHORT_MAX {
            outbox.buffer[frame] = 0;
            outbox.buffer[frame + 1] = payload_bytes as u8;
            outbox
                .buffer
                .copy_within(payload_begin.., frame + SHORT_BYTES);
            outbox.buffer.truncate(frame + SHORT_BYTES + payload_bytes);
        } else {
            outbox.buffer[frame] = LONG;
            outbox.buffer[frame + 1..payload_begin]
                .copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
        outbox.messages += 1;
        outbox.pushed += 1;
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

impl PayloadWriter<'_> {
    /// Appends bytes.
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
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(correlation: u64) -> Header {
        Header::new(Kind::Response, correlation)
    }

    #[test]
    fn a_small_message_takes_108_bytes() {
        let mut outbox = Outbox::new(10, 1 << 20);
        outbox.push(&header(1), &[7; 64]).unwrap();
        assert_eq!(outbox.bytes(), 108);
    }

    #[test]
    fn payloads_of_every_length_come_back_in_order() {
        let lengths = [0, 1, 254, 255, 256, 257, 65_535, 65_536];
        let mut outbox = Outbox::new(100, 1 << 30);
        for (number, &length) in lengths.iter().enumerate() {
            outbox
                .push(&header(number as u64), &vec![number as u8; length])
                .unwrap();
        }
        for (number, &length) in lengths.iter().enumerate() {
            let front = outbox.front().unwrap();
            assert_eq!(Header::decode(front.header), Ok(header(number as u64)));
            assert_eq!(front.payload, vec![number as u8; length]);
            outbox.pop_front();
            assert_eq!(outbox.taken(), number as u64 + 1);
        }
        assert!(outbox.is_empty() && outbox.front().is_none());
    }

    #[test]
    fn a_dropped_draft_leaves_no_trace() {
        let mut outbox = Outbox::new(10, 1 << 20);
        outbox.push(&header(1), b"stays").unwrap();
        let before = outbox.bytes();
        outbox
            .draft(&header(2))
            .unwrap()
            .payload()
            .extend_from_slice(&[0; 1000]);
        outbox.scratch().payload().extend_from_slice(b"for nobody");
        assert_eq!((outbox.bytes(), outbox.messages()), (before, 1));
        assert_eq!(outbox.front().unwrap().payload, b"stays");
    }

    #[test]
    fn a_restarted_draft_carries_only_what_came_after() {
        let mut outbox = Outbox::new(10, 1 << 20);
        let mut draft = outbox.draft(&header(1)).unwrap();
        draft.payload().extend_from_slice(&[0; 1000]);
        draft.restart(&Header::new(Kind::Nack, 9));
        draft.payload().extend_from_slice(b"no");
        draft.commit();
        let front = outbox.front().unwrap();
        assert_eq!(Header::decode(front.header), Ok(Header::new(Kind::Nack, 9)));
        assert_eq!(front.payload, b"no");
    }

    #[test]
    fn bounds_refuse_and_change_nothing() {
        let mut outbox = Outbox::new(2, 1 << 20);
        outbox.push(&header(1), b"").unwrap();
        outbox.push(&header(2), b"").unwrap();
        assert_eq!(outbox.push(&header(3), b""), Err(OutboxFull));
        outbox.pop_front();
        outbox.push(&header(3), b"").unwrap();

        let mut outbox = Outbox::new(100, 64);
        outbox.push(&header(1), &[0; 1000]).unwrap();
        assert_eq!(outbox.push(&header(2), b""), Err(OutboxFull));
        assert_eq!(outbox.messages(), 1);
    }

    #[test]
    fn a_queue_that_never_empties_does_not_grow_for_ever() {
        let mut outbox = Outbox::new(1000, 1 << 30);
        outbox.push(&header(0), &[0; 1000]).unwrap();
        for number in 1..100_000 {
            outbox.push(&header(number), &[0; 1000]).unwrap();
            outbox.pop_front();
        }
        assert!(
            outbox.buffer.capacity() < 1 << 20,
            "{}",
            outbox.buffer.capacity()
        );
    }
}
