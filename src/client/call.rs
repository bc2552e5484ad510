//! A call that was sent: a future that needs no particular executor, with a blocking `wait` beside
//! it.

use std::{
    cell::RefCell,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::Peer;
use crate::{
    codec::Decoder,
    error::{CallError, Indeterminate, NotSent, SendError},
    wire::{Codec, Reason},
};

thread_local! {
    /// The scratch memory of whoever decodes replies on this thread.
    static DECODER: RefCell<Decoder> = RefCell::default();
}

/// How a call ended, before its reply is decoded by whoever waits for it.
#[derive(Debug)]
pub enum Outcome {
    /// The handler returned; a confirmed message has no payload.
    Answered(Codec, Bytes),
    /// The peer refused it, or its handler failed.
    Nacked(Reason, String),
    /// It never left.
    NotSent(NotSent, Bytes),
    /// Nobody can say.
    Indeterminate(Indeterminate),
}

/// A call under way. Resolves exactly once, by its deadline.
///
/// Dropping it before it has resolved cancels it, as well as that can be done: a message that has
/// not left is taken back; behind one that has, a cancel is sent, and at the other end a spawned
/// handler's future is dropped, and what waits there does not run. A drop neither blocks nor waits:
/// with a full inbox or a full queue nothing is sent, and the call runs on until its deadline. To
/// let one run whose answer does not matter, send it one-way.
///
/// Needs no particular executor. One that a [`Client`](super::Client) has sent is `Send`; one of a
/// shard's own ([`LocalClient`](super::LocalClient)) stays on its shard, and costs no allocation.
#[must_use = "a call tells its outcome only to who waits for it"]
pub struct Call<E, A = RemoteAnswer> {
    state: State<A>,
    /// Keeps the connection open until the answer is there.
    _peer: Option<Peer>,
    expect: PhantomData<fn() -> E>,
}

enum State<A> {
    Waiting(A),
    Refused(SendError),
    Resolved,
}

/// Waits for an outcome on any thread. Ends with `None` if the shard is gone, with the call in it.
#[derive(Debug)]
pub struct RemoteAnswer {
    /// `None` once it has come.
    outcome: Option<oneshot::AsyncReceiver<Outcome>>,
    peer: Peer,
}

impl RemoteAnswer {
    pub(super) fn new(outcome: oneshot::AsyncReceiver<Outcome>, peer: Peer) -> Self {
        let outcome = Some(outcome);
        Self { outcome, peer }
    }
}

impl Future for RemoteAnswer {
    type Output = Option<Outcome>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        let Some(outcome) = &mut self.outcome else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(outcome).poll(cx).map(Result::ok);
        if polled.is_ready() {
            self.outcome = None;
        }
        polled
    }
}

impl Drop for RemoteAnswer {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            // First, so that the shard finds nobody there.
            drop(outcome);
            self.peer.abandon();
        }
    }
}

/// What a caller makes of an answer.
pub trait Expect {
    /// What it gets.
    type Reply;
    /// Makes it.
    fn take(codec: Codec, payload: Bytes) -> Result<Self::Reply, CallError>;
}

/// The reply's bytes as they came.
#[derive(Debug)]
pub struct RawReply;

impl Expect for RawReply {
    type Reply = Bytes;

    fn take(_: Codec, payload: Bytes) -> Result<Bytes, CallError> {
        Ok(payload)
    }
}

/// The reply as a value.
#[derive(Debug)]
pub struct TypedReply<T>(PhantomData<fn() -> T>);

impl<T: DeserializeOwned> Expect for TypedReply<T> {
    type Reply = T;

    fn take(codec: Codec, payload: Bytes) -> Result<T, CallError> {
        DECODER.with_borrow_mut(|decoder| Ok(decoder.decode_shared(codec, payload)?))
    }
}

/// That the handler has returned.
#[derive(Debug)]
pub struct Acked;

impl Expect for Acked {
    type Reply = ();

    fn take(_: Codec, _: Bytes) -> Result<(), CallError> {
        Ok(())
    }
}

impl<E: Expect, A: Future<Output = Option<Outcome>> + Unpin> Call<E, A> {
    pub(super) fn new(answer: A, peer: Peer) -> Self {
        Self {
            state: State::Waiting(answer),
            _peer: Some(peer),
            expect: PhantomData,
        }
    }

    pub(super) fn refused(error: SendError) -> Self {
        Self {
            state: State::Refused(error),
            _peer: None,
            expect: PhantomData,
        }
    }

    /// Blocks this thread until the call is resolved. Not for a shard, whose reactor would wait for
    /// itself.
    pub fn wait(self) -> Result<E::Reply, CallError> {
        futures_lite::future::block_on(self)
    }
}

impl<E: Expect, A: Future<Output = Option<Outcome>> + Unpin> Future for Call<E, A> {
    type Output = Result<E::Reply, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.state {
            State::Waiting(answer) => match Pin::new(answer).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(outcome) => {
                    outcome.unwrap_or(Outcome::Indeterminate(Indeterminate::Stopped))
                }
            },
            State::Refused(error) => {
                let error = error.clone();
                self.state = State::Resolved;
                return Poll::Ready(Err(error.into()));
            }
            State::Resolved => panic!("a call was polled after it had resolved"),
        };
        self.state = State::Resolved;
        Poll::Ready(match outcome {
            Outcome::Answered(codec, payload) => E::take(codec, payload),
            Outcome::Nacked(reason, text) => Err(CallError::Nack { reason, text }),
            Outcome::NotSent(why, payload) => Err(SendError { why, payload }.into()),
            Outcome::Indeterminate(why) => Err(CallError::Indeterminate(why)),
        })
    }
}

impl<E, A> fmt::Debug for Call<E, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting(_) => "waiting",
            State::Refused(_) => "refused",
            State::Resolved => "resolved",
        };
        f.debug_tuple("Call").field(&state).finish()
    }
}
