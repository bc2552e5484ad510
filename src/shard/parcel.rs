//! What crosses from shard to shard.

use std::hint::black_box;

use quanta::Instant;
use uuid::Uuid;

use super::tasks::TaskEnd;
use crate::{
    client::Origin,
    engine::ConnectionId,
    handler::Spawning,
    peers::PeerId,
    wire::{ATTACHED_BYTES_MIN, Header, Outbox, Promise, Received},
};

/// Kept with a parcel that is used again; a larger buffer is given back to the system.
const KEPT_BYTES_MAX: usize = 2 * ATTACHED_BYTES_MIN;
/// Instead of a handler's index.
const NONE: u32 = u32::MAX;
/// Of who sent a message: the instance, and the id if it was dialed.
const ORIGIN_BYTES: usize = 24;

/// A new buffer has room for so much.
const SMALL_BYTES: usize = 128;

/// Where in the buffer it stands who sent the message.
#[derive(Clone, Copy, Debug)]
enum OriginPlace {
    None,
    Before,
    After,
}

/// A message on its way to another shard and back.
///
/// Two lines of the cache, for each line that one CPU has written and another reads costs both of
/// them; and the answer comes back in the buffer that the message went in.
#[derive(Debug)]
#[repr(align(64))]
pub struct Parcel {
    pub(super) header: Header,
    /// Where it came in, at home.
    pub(super) connection: ConnectionId,
    /// The place that its answer has; none is due to a one-way message.
    pub(super) promise: Option<Promise>,
    /// When it was read, at home.
    pub(super) read: Instant,
    pub(super) deadline: Option<Instant>,
    /// The message; later the answer, framed.
    buffer: Vec<u8>,
    payload_at: u32,
    payload_bytes: u32,
    /// The index of the one that ran.
    handler: u32,
    is_answered: bool,
    origin: OriginPlace,
    /// An answer whose payload leaves from where it is.
    large: Option<Box<Outbox>>,
}

impl Parcel {
    pub(super) fn new(header: Header, connection: ConnectionId, read: Instant) -> Self {
        Self {
            header,
            connection,
            promise: None,
            read,
            deadline: None,
            buffer: Vec::new(),
            payload_at: 0,
            payload_bytes: 0,
            handler: NONE,
            is_answered: false,
            origin: OriginPlace::None,
            large: None,
        }
    }

    /// Takes in the payload: a large one with the buffer that it stands in; and who sent it.
    pub(super) fn fill(&mut self, message: &mut Received<'_>, origin: Option<Origin>) {
        let bytes = message.payload_bytes();
        let at = if bytes >= ATTACHED_BYTES_MIN {
            let (buffer, place) = message.take_buffer();
            self.buffer = buffer;
            place.start
        } else {
            self.buffer.clear();
            // At once what a small message and its answer take.
            self.buffer.reserve((ORIGIN_BYTES + bytes).max(SMALL_BYTES));
            if origin.is_some() {
                self.buffer.extend_from_slice(&[0; ORIGIN_BYTES]);
            }
            let at = self.buffer.len();
            self.buffer.extend_from_slice(message.payload());
            at
        };
        // `limits.message_bytes_max` is below.
        self.payload_at = at as u32;
        self.payload_bytes = bytes as u32;
        self.origin = match origin {
            None => OriginPlace::None,
            Some(origin) => self.write_origin(&origin),
        };
    }

    /// Before the payload, where its header was; an engine that reads it into a buffer of its own
    /// has no place there.
    fn write_origin(&mut self, origin: &Origin) -> OriginPlace {
        let dialed = origin.dialed.map_or(0, PeerId::to_u64);
        let mut bytes = [0; ORIGIN_BYTES];
        bytes[..16].copy_from_slice(origin.instance.as_bytes());
        bytes[16..].copy_from_slice(&dialed.to_ne_bytes());
        let at = self.payload_at as usize;
        if let Some(before) = at.checked_sub(ORIGIN_BYTES) {
            self.buffer[before..at].copy_from_slice(&bytes);
            return OriginPlace::Before;
        }
        self.buffer.truncate(at + self.payload_bytes());
        self.buffer.extend_from_slice(&bytes);
        OriginPlace::After
    }

    /// Who sent the message, to its home; to be asked before it is answered.
    pub(super) fn origin(&self, home: usize) -> Option<Origin> {
        let at = self.payload_at as usize;
        let from = match self.origin {
            OriginPlace::None => return None,
            OriginPlace::Before => at - ORIGIN_BYTES,
            OriginPlace::After => at + self.payload_bytes(),
        };
        let (instance, dialed) = self.buffer[from..from + ORIGIN_BYTES].split_at(16);
        let dialed = u64::from_ne_bytes(dialed.try_into().ok()?);
        Some(Origin {
            instance: Uuid::from_slice(instance).ok()?,
            shard: home,
            // Ids begin at 1.
            dialed: (dialed > 0).then(|| PeerId::from_u64(dialed)),
        })
    }

    /// Bytes of the payload that it was filled with.
    pub(super) fn payload_bytes(&self) -> usize {
        self.payload_bytes as usize
    }

    /// The message, as it was received.
    pub(super) fn message<'a>(&'a mut self, is_taken: &'a mut bool) -> Received<'a> {
        let at = self.payload_at as usize;
        let payload = at..at + self.payload_bytes();
        Received::within(&mut self.buffer, 0..0, payload, is_taken)
    }

    /// This handler has run.
    pub(super) fn set_handler(&mut self, handler: Option<usize>) {
        self.handler = handler.map_or(NONE, |index| index as u32);
    }

    pub(super) fn handler(&self) -> Option<usize> {
        (self.handler != NONE).then_some(self.handler as usize)
    }

    /// Takes the answer that was written, if any; the outbox is empty afterwards.
    pub(super) fn take_answer(&mut self, answer: &mut Outbox) {
        if answer.is_empty() {
            return;
        }
        self.is_answered = true;
        if !answer.move_frames(&mut self.buffer) {
            let emptied = Outbox::new(1, usize::MAX);
            self.large = Some(Box::new(std::mem::replace(answer, emptied)));
        }
    }

    /// Whether it has its answer.
    pub(super) fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// Takes the answer of the task that was made for it, unless it has that already. One that was
    /// stopped gives none.
    pub(super) fn answer_task(&mut self, end: &TaskEnd, scratch: &mut Outbox) {
        let Some(result) = &end.result else {
            return;
        };
        // One that did not run has no time of its own.
        self.set_handler(end.ran.is_somewhere().then_some(end.handler));
        if !self.is_answered {
            let answered = Spawning::answer(&end.header, result, scratch);
            debug_assert!(answered.is_ok(), "there is room for one answer");
            self.take_answer(scratch);
        }
    }

    /// Moves the answer to where its place was kept. False if that is gone, or there is no answer.
    pub(super) fn deliver(&mut self, promise: Promise, outbox: &mut Outbox) -> bool {
        match &mut self.large {
            Some(large) => outbox.keep(promise, large),
            None if self.is_answered => outbox.keep_framed(promise, &self.buffer),
            None => {
                outbox.forgo(promise);
                false
            }
        }
    }

    /// Empties it, to be used again, if it is worth that.
    pub(super) fn empty(&mut self) -> bool {
        self.payload_bytes = 0;
        self.origin = OriginPlace::None;
        self.handler = NONE;
        self.is_answered = false;
        self.large = None;
        self.buffer.capacity() <= KEPT_BYTES_MAX
    }
}

/// Has the cache fetch what comes next while this is being dealt with: those that wait were written
/// by another CPU.
#[inline]
pub(super) fn fetch_ahead(waiting: &[Box<Parcel>]) {
    if let Some(later) = waiting.get(2) {
        black_box(later.header.kind);
        black_box(later.is_answered);
    }
    if let Some(next) = waiting.get(1) {
        black_box(next.buffer.first());
        black_box(next.buffer.get(64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or the refusal of the next message would be recorded as this one's handler's reply.
    #[test]
    fn an_emptied_parcel_knows_nothing_of_what_it_carried() {
        let header = Header::new(crate::wire::Kind::Request, 1);
        let connection = ConnectionId::new(0, std::num::NonZeroU32::MIN);
        let mut parcel = Parcel::new(header, connection, Instant::now());
        parcel.fill(&mut Received::apart(&[], &mut [7; 10]), None);
        parcel.set_handler(Some(3));
        let mut answer = Outbox::new(1, usize::MAX);
        answer
            .push(&Header::new(crate::wire::Kind::Ack, 1), &[])
            .unwrap();
        parcel.take_answer(&mut answer);
        assert!(parcel.is_answered() && answer.is_empty());
        assert_eq!((parcel.handler(), parcel.payload_bytes()), (Some(3), 10));
        assert!(parcel.empty());
        assert_eq!((parcel.handler(), parcel.payload_bytes()), (None, 0));
        assert!(!parcel.is_answered());
    }

    #[test]
    fn a_parcel_tells_who_sent_it_and_keeps_its_payload() {
        let connection = ConnectionId::new(0, std::num::NonZeroU32::MIN);
        let origin = Origin {
            instance: Uuid::from_u128(5),
            shard: 2,
            dialed: Some(PeerId::unique()),
        };
        let accepted = Origin {
            dialed: None,
            ..origin
        };
        let header = Header::new(crate::wire::Kind::Request, 1);
        let mut parcel = Parcel::new(header, connection, Instant::now());
        for bytes in [0, 10, ATTACHED_BYTES_MIN] {
            for origin in [Some(origin), None, Some(accepted)] {
                let (mut within, mut apart) = (vec![7; 64 + bytes + 3], vec![7; bytes]);
                let place = 64..64 + bytes;
                let mut is_taken = false;
                let within = Received::within(&mut within, 0..40, place, &mut is_taken);
                for mut message in [within, Received::apart(&[], &mut apart)] {
                    parcel.fill(&mut message, origin);
                    assert_eq!(parcel.origin(2), origin);
                    assert_eq!(parcel.message(&mut false).payload(), vec![7; bytes]);
                }
            }
        }
    }

    #[test]
    fn a_parcel_takes_two_lines() {
        assert_eq!((size_of::<Parcel>(), align_of::<Parcel>()), (128, 64));
    }
}
