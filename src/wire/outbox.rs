use std::{collections::VecDeque, io::IoSlice, ops::Range};

use bytes::Bytes;

mod append;
mod draft;
mod promise;
mod withdraw;

pub use self::{
    draft::{Draft, PayloadWriter},
    promise::Promise,
};
use super::{HEADER_BYTES, Header, Kind};

/// ZMTP frame flags: more frames of this message follow; the length takes eight bytes.
const MORE: u8 = 1;
const LONG: u8 = 2;

/// The header's frame: flags and a one-byte length before it.
const HEADER_FRAME_BYTES: usize = 2 + HEADER_BYTES;
/// Where the kind stands in a message.
const KIND_AT: usize = 2 + 3;
/// Flags and length of the payload's frame, short and long form.
const SHORT_BYTES: usize = 2;
const LONG_BYTES: usize = 9;
const SHORT_MAX: usize = 255;
/// A message up to its payload, the frame's length in the short form.
const SHORT_HEAD_BYTES: usize = HEADER_FRAME_BYTES + SHORT_BYTES;

/// Payloads of at least so many bytes are not copied into the write buffer if they can be kept:
/// they leave by a vectored write. `docs/performance.md` tells how the line was measured.
pub const ATTACHED_BYTES_MIN: usize = 16 << 10;

/// An emptied buffer larger than this is given back, so that one burst does not hold memory for
/// ever.
const KEPT_BYTES_MAX: usize = 1 << 20;
/// The same for a buffer that nobody uses: a service has thousands of quiet peers, and each had its
/// burst once.
const RESTING_BYTES_MAX: usize = 4 << 10;
/// Sent bytes at the front are moved out of the way once they are at least this many and half of
/// the buffer.
const COMPACT_BYTES_MIN: usize = 64 << 10;

/// What waits to leave on one connection: whole messages, framed as ZMTP wants them, small ones in
/// one buffer, the payloads of large ones beside it.
///
/// Handlers and clients write here, and only the engine takes from it. Bounded in messages and
/// bytes: a push that finds it full is refused and changes nothing. Nothing blocks. It allocates
/// only while its buffer grows.
#[derive(Debug)]
pub struct Outbox {
    buffer: Vec<u8>,
    /// Where the oldest message that is not wholly taken begins.
    front: usize,
    /// What of the buffer has left: within the oldest message, or at its beginning.
    left: usize,
    /// Payloads that are not in the buffer, in the order of their messages.
    attached: VecDeque<Attached>,
    attached_bytes: usize,
    waiting: Tally,
    pushed: Tally,
    messages_max: usize,
    bytes_max: usize,
    /// Buffers of payloads that have left, for whoever gave them.
    spent: Vec<Vec<u8>>,
    /// The number of the next message when the outbox was last found at rest or not.
    pushed_before: u64,
    /// Answers that are to come from elsewhere.
    promised: usize,
    /// How often it was cleared: a promise is good for one life of a connection.
    epoch: u32,
    is_held: bool,
    brings_answers: bool,
}

/// A payload that leaves from where it is.
#[derive(Debug)]
struct Attached {
    /// It follows the byte before this one of the buffer.
    at: usize,
    payload: Payload,
    /// How much of it has left.
    left: usize,
}

#[derive(Debug)]
enum Payload {
    Shared(Bytes),
    /// A read buffer on its way back out.
    Buffer(Vec<u8>, Range<usize>),
}

/// How many messages, and how many of them one-way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Of any kind.
    pub messages: u64,
    /// Of kind one-way.
    pub one_way: u64,
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
            front: 0,
            left: 0,
            attached: VecDeque::new(),
            attached_bytes: 0,
            waiting: Tally::default(),
            pushed: Tally::default(),
            messages_max,
            bytes_max,
            spent: Vec::new(),
            pushed_before: 0,
            promised: 0,
            epoch: 0,
            is_held: false,
            brings_answers: false,
        }
    }

    /// Adds a message with this payload, which is copied.
    #[inline]
    pub fn push(&mut self, header: &Header, payload: &[u8]) -> Result<(), OutboxFull> {
        if self.is_full() {
            return Err(OutboxFull);
        }
        if payload.len() <= SHORT_MAX {
            self.compact();
            let mut head = [0; SHORT_HEAD_BYTES];
            head[..2].copy_from_slice(&[MORE, HEADER_BYTES as u8]);
            head[2..HEADER_FRAME_BYTES].copy_from_slice(&header.encode());
            head[HEADER_FRAME_BYTES + 1] = payload.len() as u8;
            self.buffer.reserve(SHORT_HEAD_BYTES + payload.len());
            self.buffer.extend_from_slice(&head);
            self.buffer.extend_from_slice(payload);
            self.count(header.kind);
            return Ok(());
        }
        let mut draft = self.draft_beyond_bounds(header);
        draft.payload().extend_from_slice(payload);
        draft.commit();
        Ok(())
    }

    /// Adds a message with this payload, which is copied only if it is small.
    pub fn push_bytes(&mut self, header: &Header, payload: Bytes) -> Result<(), OutboxFull> {
        if payload.len() < ATTACHED_BYTES_MIN {
            return self.push(header, &payload);
        }
        let draft = self.draft(header)?;
        draft.commit_attached(Payload::Shared(payload));
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

    fn draft_beyond_bounds(&mut self, header: &Header) -> Draft<'_> {
        self.compact();
        let begin = self.buffer.len();
        // Room for the long form; `commit` closes the gap if the payload turns out short.
        let mut head = [0; HEADER_FRAME_BYTES + LONG_BYTES];
        head[..2].copy_from_slice(&[MORE, HEADER_BYTES as u8]);
        head[2..HEADER_FRAME_BYTES].copy_from_slice(&header.encode());
        self.buffer.extend_from_slice(&head);
        Draft::new(self, header.kind, begin)
    }

    /// Whether the next push is refused.
    #[inline]
    pub fn is_full(&self) -> bool {
        let messages = self.waiting.messages as usize;
        messages >= self.messages_max || (messages > 0 && self.bytes() >= self.bytes_max)
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.waiting.messages == 0
    }

    /// Messages that wait.
    pub fn messages(&self) -> usize {
        self.waiting.messages as usize
    }

    /// Bytes that wait, framing included.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.buffer.len() - self.left + self.attached_bytes
    }

    /// Bytes that its buffer takes up, whether or not something waits in it.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// To be called now and then: gives a buffer of more than 4 KiB back if nothing waits and
    /// nothing was pushed since the last call.
    pub fn rest(&mut self) {
        let is_unused = self.pushed_before == self.pushed() && self.is_empty();
        self.pushed_before = self.pushed();
        if is_unused && self.capacity() > RESTING_BYTES_MAX {
            self.buffer = Vec::new();
        }
    }

    /// How often it was cleared: what is answered later may see whether the connection is still the
    /// one that its message came in on.
    #[inline]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Messages pushed since the outbox was made: the number of the next one.
    pub fn pushed(&self) -> u64 {
        self.pushed.messages
    }

    /// Messages the engine has wholly taken since the outbox was made: those with a smaller number
    /// have left.
    pub fn taken(&self) -> Tally {
        Tally {
            messages: self.pushed.messages - self.waiting.messages,
            one_way: self.pushed.one_way - self.waiting.one_way,
        }
    }

    /// Messages that have not left, as far as the engine has told.
    pub fn waiting(&self) -> Tally {
        self.waiting
    }

    /// The oldest message that waits, whole, whatever of it has left.
    pub fn front(&self) -> Option<Frames<'_>> {
        if self.is_empty() {
            return None;
        }
        let front = self.front_message();
        let payload = match self.attached.front() {
            Some(first) if first.at == front.end => first.payload.bytes(),
            _ => &self.buffer[front.payload..front.end],
        };
        Some(Frames {
            header: &self.buffer[self.front + 2..self.front + HEADER_FRAME_BYTES],
            payload,
        })
    }

    /// Takes the oldest message away: the engine has it now.
    pub fn pop_front(&mut self) {
        if self.is_empty() {
            return;
        }
        let end = self.front_message().end;
        if self.attached.front().is_some_and(|first| first.at == end) {
            self.drop_attached();
        }
        self.left = end;
        self.finish_front(end);
        if self.is_empty() {
            self.reset();
        }
    }

    /// What waits, from the first byte that has not left, as far as it fits into `slices`. Returns
    /// how many of them it filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let (mut count, mut from) = (0, self.left);
        for attached in &self.attached {
            if attached.at > from {
                let Some(slot) = slices.get_mut(count) else {
                    return count;
                };
                *slot = IoSlice::new(&self.buffer[from..attached.at]);
                (count, from) = (count + 1, attached.at);
            }
            let Some(slot) = slices.get_mut(count) else {
                return count;
            };
            *slot = IoSlice::new(&attached.payload.bytes()[attached.left..]);
            count += 1;
        }
        if from < self.buffer.len()
            && let Some(slot) = slices.get_mut(count)
        {
            *slot = IoSlice::new(&self.buffer[from..]);
            count += 1;
        }
        count
    }

    /// What waits in one piece, if it is one: nothing is attached.
    #[inline]
    pub fn contiguous(&self) -> Option<&[u8]> {
        self.attached.is_empty().then(|| &self.buffer[self.left..])
    }

    /// So many more bytes have left. Returns how many messages have wholly left with them.
    #[inline]
    pub fn advance(&mut self, bytes: usize) -> usize {
        let before = self.messages();
        if bytes == self.bytes() {
            self.empty();
        } else {
            self.advance_within(bytes);
        }
        before - self.messages()
    }

    #[cold]
    fn advance_within(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let end = self.front_message().end;
            let step = (end - self.left).min(bytes);
            self.left += step;
            bytes -= step;
            if self.left < end {
                return;
            }
            if let Some(attached) = self.attached.front_mut().filter(|it| it.at == end) {
                let rest = attached.payload.bytes().len() - attached.left;
                let step = rest.min(bytes);
                attached.left += step;
                self.attached_bytes -= step;
                bytes -= step;
                if step < rest {
                    return;
                }
                self.drop_attached();
            }
            self.finish_front(end);
        }
    }

    /// Whether the next byte to leave is a message's first: then a command may leave before it.
    #[inline]
    pub fn is_between_messages(&self) -> bool {
        self.left == self.front
    }

    /// Forgets all that waits, and says how many messages that was: the connection is gone. They
    /// count as taken, and what was promised will not be kept.
    pub fn clear(&mut self) -> usize {
        let forgotten = self.messages();
        self.forget_promises();
        self.empty();
        forgotten
    }

    fn empty(&mut self) {
        while !self.attached.is_empty() {
            self.drop_attached();
        }
        self.attached_bytes = 0;
        self.waiting = Tally::default();
        self.reset();
    }

    /// A buffer that was attached and has left, to be used again.
    pub fn take_spent(&mut self) -> Option<Vec<u8>> {
        self.spent.pop()
    }

    fn count(&mut self, kind: Kind) {
        let one_way = u64::from(kind == Kind::OneWay);
        self.waiting.messages += 1;
        self.waiting.one_way += one_way;
        self.pushed.messages += 1;
        self.pushed.one_way += one_way;
    }

    /// The oldest message has wholly left.
    fn finish_front(&mut self, end: usize) {
        let kind = self.buffer[self.front + KIND_AT];
        self.waiting.messages -= 1;
        self.waiting.one_way -= u64::from(kind == Kind::OneWay as u8);
        self.front = end;
    }

    fn drop_attached(&mut self) {
        let Some(attached) = self.attached.pop_front() else {
            return;
        };
        self.attached_bytes -= attached.payload.bytes().len() - attached.left;
        if let Payload::Buffer(buffer, _) = attached.payload {
            self.spent.push(buffer);
        }
    }

    /// Nothing waits: the buffer begins anew.
    #[inline]
    fn reset(&mut self) {
        (self.front, self.left) = (0, 0);
        self.buffer.clear();
        if self.buffer.capacity() > KEPT_BYTES_MAX {
            self.buffer = Vec::new();
        }
    }

    /// Where the oldest message's payload begins in the buffer, and where the message ends in it:
    /// right where its payload would begin if that is attached.
    fn front_message(&self) -> FrontMessage {
        let frame = self.front + HEADER_FRAME_BYTES;
        if self.buffer[frame] & LONG == 0 {
            let payload = frame + SHORT_BYTES;
            let end = payload + usize::from(self.buffer[frame + 1]);
            return FrontMessage { payload, end };
        }
        let payload = frame + LONG_BYTES;
        if self
            .attached
            .front()
            .is_some_and(|first| first.at == payload)
        {
            return FrontMessage {
                payload,
                end: payload,
            };
        }
        let length = self.buffer[frame + 1..payload].try_into();
        let bytes = u64::from_be_bytes(length.expect("eight bytes")) as usize;
        let end = payload + bytes;
        FrontMessage { payload, end }
    }

    fn compact(&mut self) {
        if self.front >= COMPACT_BYTES_MIN && self.front >= self.buffer.len() / 2 {
            self.buffer.drain(..self.front);
            for attached in &mut self.attached {
                attached.at -= self.front;
            }
            self.left -= self.front;
            self.front = 0;
        }
    }
}

/// Where the oldest message lies in the buffer. An attached payload begins where it ends.
struct FrontMessage {
    payload: usize,
    end: usize,
}

impl Payload {
    fn bytes(&self) -> &[u8] {
        match self {
            Payload::Shared(bytes) => bytes,
            Payload::Buffer(buffer, range) => &buffer[range.clone()],
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

#[cfg(test)]
mod tests;
