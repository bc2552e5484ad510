//! Spawned handlers that take the messages of one peer one after the other, in the order in which
//! they arrived.
//!
//! Each message has a task of its own from the beginning, so that it is bounded, cancelled, expired
//! and drained as any task. What is lazy is the call: the task waits in its peer's line until all
//! before it have ended, and decodes the payload and calls the handler then.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    ops::Range,
    rc::Rc,
    task::{Poll, Waker},
};

use rustc_hash::FxHashMap;

use super::{TaskContext, dispatch::TaskFuture, failure::Failure, spawned::Spawned};
use crate::{
    codec::Decoder,
    wire::{ATTACHED_BYTES_MIN, Codec, Reason, Received},
};

/// Whose messages keep their order: a connection, and the shard that reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sender {
    /// The shard that reads it.
    pub shard: usize,
    /// Never another one's, while that shard lives.
    pub connection: u64,
}

/// One shard's instance of such a handler.
pub(super) struct Ordered {
    handler: Rc<RefCell<(Box<dyn Spawned>, Decoder)>>,
    /// The handler's index.
    index: usize,
    waiting_max: usize,
    lines: Rc<Lines>,
}

/// Whether a task's handler was called.
pub type Begun = Rc<Cell<bool>>;

impl Ordered {
    pub(super) fn new(
        handler: Box<dyn Spawned>,
        index: usize,
        waiting_max: usize,
        lines: &Rc<Lines>,
    ) -> Self {
        Self {
            handler: Rc::new(RefCell::new((handler, Decoder::new()))),
            index,
            waiting_max,
            lines: lines.clone(),
        }
    }

    /// What speaks against one more message of so many bytes.
    pub(super) fn crowding(&self, name: &str, sender: Sender, bytes: usize) -> Option<Failure> {
        let (lines, most) = (self.lines.0.borrow(), self.waiting_max);
        let line = lines.by_peer.get(&(self.index, sender));
        let text = match line {
            Some(line) if line.len() > most => {
                format!("{most} messages of this peer wait for {name:?} already")
            }
            _ if lines.bytes > 0 && lines.bytes + bytes > lines.bytes_max => {
                "limits.buffered_bytes_max is reached by messages that wait for their turn".into()
            }
            _ => return None,
        };
        let reason = Reason::Overloaded;
        Some(Failure { reason, text })
    }

    /// Takes the last place in the peer's line, and makes the task that calls the handler at its
    /// turn.
    pub(super) fn make_task(
        &self,
        sender: Sender,
        codec: Codec,
        message: &mut Received<'_>,
        cx: TaskContext,
    ) -> (TaskFuture, Begun) {
        let begun = Begun::default();
        let (mut buffer, place) = keep(message);
        let turn = Lines::join(
            &self.lines,
            (self.index, sender),
            place.len(),
            begun.clone(),
        );
        let handler = self.handler.clone();
        let future = Box::pin(async move {
            // Leaves the line when the handler's future is gone, however it ends.
            let turn = turn;
            poll_fn(|cx| turn.poll(cx.waker())).await;
            let now = cx.client.now();
            if cx.deadline.is_some_and(|deadline| deadline <= now) {
                return Err(Failure::too_late());
            }
            turn.begin();
            let task = {
                let (handler, decoder) = &mut *handler.borrow_mut();
                handler.call(codec, &mut buffer[place], decoder, cx)?
            };
            drop(buffer);
            task.await
        });
        (future, begun)
    }
}

/// Takes a payload out of the read buffer: a large one with the buffer.
fn keep(message: &mut Received<'_>) -> (Vec<u8>, Range<usize>) {
    match message.payload_bytes() {
        bytes if bytes >= ATTACHED_BYTES_MIN => message.take_buffer(),
        bytes => (message.payload().to_vec(), 0..bytes),
    }
}

/// The lines of all peers before all of a shard's ordered handlers. There is none but for messages
/// under way, of which `limits.spawned_max` is the bound.
#[derive(Default)]
pub struct Lines(RefCell<Inner>);

#[derive(Default)]
struct Inner {
    by_peer: FxHashMap<Key, VecDeque<Member>>,
    next_ticket: u64,
    /// Messages whose handlers were not called, and their bytes.
    waiting: usize,
    bytes: usize,
    bytes_max: usize,
}

/// A handler's index, and who sent.
type Key = (usize, Sender);

struct Member {
    /// Ascending in a line.
    ticket: u64,
    waker: Option<Waker>,
}

/// A message's place in a line. Whoever is behind it waits until it is dropped.
struct Turn {
    lines: Rc<Lines>,
    key: Key,
    ticket: u64,
    bytes: usize,
    begun: Begun,
}

impl Lines {
    /// No more bytes of payloads wait than this, unless one alone is larger.
    pub(super) fn set_bytes_max(&self, bytes_max: usize) {
        self.0.borrow_mut().bytes_max = bytes_max;
    }

    /// Messages that have tasks and whose handlers were not called.
    pub fn waiting(&self) -> usize {
        self.0.borrow().waiting
    }

    /// How many wakers it holds of which this is true.
    pub fn count_wakers(&self, is_counted: impl Fn(&Waker) -> bool) -> usize {
        let lines = self.0.borrow();
        let members = lines.by_peer.values().flatten();
        members
            .filter(|it| it.waker.as_ref().is_some_and(&is_counted))
            .count()
    }

    fn join(lines: &Rc<Self>, key: Key, bytes: usize, begun: Begun) -> Turn {
        let mut inner = lines.0.borrow_mut();
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        inner.waiting += 1;
        inner.bytes += bytes;
        let line = inner.by_peer.entry(key).or_default();
        line.push_back(Member {
            ticket,
            waker: None,
        });
        Turn {
            lines: lines.clone(),
            key,
            ticket,
            bytes,
            begun,
        }
    }
}

impl Inner {
    fn end_waiting(&mut self, bytes: usize) {
        self.waiting -= 1;
        self.bytes -= bytes;
    }
}

impl Turn {
    fn poll(&self, waker: &Waker) -> Poll<()> {
        let mut lines = self.lines.0.borrow_mut();
        let Some(line) = lines.by_peer.get_mut(&self.key) else {
            return Poll::Ready(());
        };
        if line.front().is_none_or(|first| first.ticket == self.ticket) {
            return Poll::Ready(());
        }
        if let Ok(at) = line.binary_search_by_key(&self.ticket, |it| it.ticket) {
            line[at].waker = Some(waker.clone());
        }
        Poll::Pending
    }

    fn begin(&self) {
        self.begun.set(true);
        self.lines.0.borrow_mut().end_waiting(self.bytes);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lines = self.lines.0.borrow_mut();
        if !self.begun.get() {
            lines.end_waiting(self.bytes);
        }
        let Some(line) = lines.by_peer.get_mut(&self.key) else {
            return;
        };
        let Ok(at) = line.binary_search_by_key(&self.ticket, |it| it.ticket) else {
            return;
        };
        line.remove(at);
        let next = match line.front_mut() {
            Some(next) if at == 0 => next.waker.take(),
            Some(_) => None,
            None => {
                lines.by_peer.remove(&self.key);
                None
            }
        };
        drop(lines);
        if let Some(next) = next {
            next.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or every connection that has come and gone would leave one.
    #[test]
    fn an_empty_line_is_forgotten() {
        let lines = Rc::new(Lines::default());
        let sender = |connection| Sender {
            shard: 0,
            connection,
        };
        let join = |connection| Lines::join(&lines, (0, sender(connection)), 5, Begun::default());
        let turns = [join(1), join(1), join(2)];
        turns[0].begin();
        assert_eq!((lines.waiting(), lines.0.borrow().bytes), (2, 10));
        drop(turns);
        let left = lines.0.borrow();
        assert_eq!((left.by_peer.len(), left.waiting, left.bytes), (0, 0, 0));
    }
}
