//! Sending from a shard: no atomic, no lock, no channel, and no allocation.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use quanta::Instant;

use super::{
    Call, Caller, CallerLimits, Client, ClientOptions, Connect, ConnectError, Message, Peer,
    RemoteAnswer, Submit,
    answers::{Answers, LocalAnswer},
    call::Outcome,
    order::{Order, PAYLOAD_BYTES, Payload},
};
use crate::{
    error::{NotSent, SendError},
    route::Inbox,
    wire::HandlerKey,
};

/// Buffers for payloads that are kept for later ones.
const BUFFERS_MAX: usize = 64;
/// A larger one is given back to the system.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// Sends from a shard, for what lives on it: over connections of that shard into their next write,
/// over others' as a [`Client`] does. Cheap to clone; `!Send`.
#[derive(Clone)]
pub struct LocalClient {
    shard: usize,
    side: Rc<CallingSide>,
    remote: Client,
}

/// What a shard's reactor and its tasks share of the calling side.
pub struct CallingSide {
    /// Borrowed for the length of a call on it, by whoever is at it; no code of a user's runs
    /// meanwhile.
    pub caller: RefCell<Caller>,
    /// Connections that other threads have asked for.
    asked: Inbox<Connect>,
    /// Connections that the reactor is to begin, and whose peers have a queue already.
    connects: RefCell<VecDeque<Connect>>,
    connects_max: usize,
    answers: Rc<Answers>,
    buffers: RefCell<Vec<Vec<u8>>>,
}

impl CallingSide {
    /// A side that holds at most so much, and on which so many connects of tasks may wait beside
    /// those that other threads ask for.
    pub fn new(limits: CallerLimits, connects_max: usize, asked: Inbox<Connect>) -> Self {
        let answers = Rc::<Answers>::default();
        Self {
            caller: RefCell::new(Caller::with_answers(limits, answers.clone())),
            asked,
            connects: RefCell::default(),
            connects_max,
            answers,
            buffers: RefCell::default(),
        }
    }

    /// Whether any connection is to begin.
    pub fn has_connects(&self) -> bool {
        self.has_own_connects() || !self.asked.is_empty()
    }

    /// Whether a task has asked for a connection that has not begun.
    #[inline]
    pub fn has_own_connects(&self) -> bool {
        !self.connects.borrow().is_empty() || self.caller.borrow().wants_links()
    }

    /// The next connection to begin.
    pub fn pop_connect(&self) -> Option<Connect> {
        let first = self.connects.borrow_mut().pop_front();
        let next = first.or_else(|| self.asked.pop());
        next.or_else(|| self.caller.borrow_mut().pop_wanted())
    }

    /// Whether no connection is asked for and nothing is staged.
    pub fn is_quiet(&self) -> bool {
        !self.has_connects() && !self.caller.borrow().wants_load()
    }

    /// Whom to wake at the next submission.
    pub fn register(&self, reactor: &Waker) {
        self.answers.register(reactor);
    }

    #[inline]
    fn wake_reactor(&self) {
        self.answers.wake_reactor();
    }

    fn push_connect(&self, connect: Connect) -> Result<(), NotSent> {
        let mut connects = self.connects.borrow_mut();
        if connects.len() >= self.connects_max {
            return Err(NotSent::Full);
        }
        // What is sent to the peer from now on waits for the connection.
        let mut caller = self.caller.borrow_mut();
        caller.open(&connect);
        connects.push_back(connect);
        drop((connects, caller));
        self.wake_reactor();
        Ok(())
    }

    /// A task may know of a peer before the reactor has looked where other threads ask. True if
    /// there was any news.
    #[cold]
    fn take_asked(&self) -> bool {
        let before = self.connects.borrow().len();
        while let Some(connect) = self.asked.pop() {
            self.caller.borrow_mut().open(&connect);
            self.connects.borrow_mut().push_back(connect);
        }
        self.connects.borrow().len() > before
    }

    /// A payload was copied to where it leaves from: its buffer serves the next one.
    #[inline]
    fn keep_buffer(&self, order: Order) {
        if let Payload::Own(mut buffer) = order.payload
            && (1..=BUFFER_BYTES_MAX).contains(&buffer.capacity())
        {
            let mut buffers = self.buffers.borrow_mut();
            if buffers.len() < BUFFERS_MAX {
                buffer.clear();
                buffers.push(buffer);
            }
        }
    }
}

impl LocalClient {
    /// A client of the shard with this side.
    pub fn new(shard: usize, side: Rc<CallingSide>, remote: Client) -> Self {
        Self {
            shard,
            side,
            remote,
        }
    }

    /// As [`Client::connect`], from this shard.
    pub fn connect(&self, endpoint: &str) -> Result<Peer, ConnectError> {
        self.remote.connect_by(self.shard, endpoint, |connect| {
            self.side.push_connect(connect)
        })
    }

    /// Begins a message to the handler of this name, or of this key: `HandlerKey::of` is a
    /// `const fn`.
    pub fn message(&self, handler: impl Into<HandlerKey>) -> Message<'_, Self> {
        Message::new(self, handler.into())
    }

    pub(super) fn shard(&self) -> usize {
        self.shard
    }

    pub(super) fn ask_for(&self, shard: usize, connect: Connect) -> Result<(), NotSent> {
        match shard == self.shard {
            true => self.side.push_connect(connect),
            false => self.remote.ask_for(shard, connect),
        }
    }

    /// One for a handler that serves a call with this deadline.
    pub(crate) fn until(&self, deadline: Option<Instant>) -> Self {
        Self {
            shard: self.shard,
            side: self.side.clone(),
            remote: self.remote.until(deadline),
        }
    }

    /// The client that other threads may use.
    pub fn remote(&self) -> &Client {
        &self.remote
    }

    /// The time, by the shard's clock.
    pub fn now(&self) -> Instant {
        self.remote.now()
    }
}

impl fmt::Debug for LocalClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalClient")
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

/// Nothing is allocated for a message of a few KiB over a connection of this shard that stands,
/// once buffers have grown to their size; nor for its reply, if that is dropped before many others
/// have come.
impl Submit for LocalClient {
    type Answer = Answer;

    fn buffer(&self) -> Vec<u8> {
        let buffer = self.side.buffers.borrow_mut().pop();
        buffer.unwrap_or_else(|| Vec::with_capacity(PAYLOAD_BYTES))
    }

    #[inline]
    fn one_way(&self, peer: &Peer, mut order: Order) -> Result<(), SendError> {
        if peer.shard() != self.shard {
            return self.remote.one_way(peer, order);
        }
        let mut submit = || {
            let mut caller = self.side.caller.borrow_mut();
            caller.submit_one_way(peer.id(), &mut order)
        };
        let taken = match submit() {
            Err(NotSent::Closed) if self.side.take_asked() => submit(),
            taken => taken,
        };
        match taken {
            Ok(()) => {
                self.side.wake_reactor();
                self.side.keep_buffer(order);
                Ok(())
            }
            Err(why) => Err(order.refuse(why)),
        }
    }

    #[inline]
    fn call(&self, peer: &Peer, mut order: Order, within: Duration) -> Result<Answer, SendError> {
        if peer.shard() != self.shard {
            return Ok(Answer(Either::Remote(
                self.remote.call(peer, order, within)?,
            )));
        }
        let now = self.now();
        let mut submit = || {
            let mut caller = self.side.caller.borrow_mut();
            caller.submit_call(now, peer.id(), &mut order, within)
        };
        let answer = match submit() {
            Err(NotSent::Closed) if self.side.take_asked() => submit(),
            answer => answer,
        };
        match answer {
            Ok(answer) => {
                self.side.wake_reactor();
                self.side.keep_buffer(order);
                Ok(Answer(Either::Local(answer)))
            }
            Err(why) => Err(order.refuse(why)),
        }
    }

    fn options(&self) -> &ClientOptions {
        self.remote.options()
    }

    #[inline]
    fn within(&self) -> Duration {
        self.remote.within()
    }
}

/// A call that a [`LocalClient`] has sent.
pub type LocalCall<E> = Call<E, Answer>;

/// Waits for the outcome of a call that a [`LocalClient`] has sent.
#[derive(Debug)]
pub struct Answer(Either);

#[derive(Debug)]
enum Either {
    /// Over a connection of this shard.
    Local(LocalAnswer),
    /// Over another shard's.
    Remote(RemoteAnswer),
}

impl Future for Answer {
    type Output = Option<Outcome>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        match &mut self.0 {
            Either::Local(answer) => Pin::new(answer).poll(cx),
            Either::Remote(answer) => Pin::new(answer).poll(cx),
        }
    }
}
