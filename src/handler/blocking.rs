//! Handlers that block: they run on the threads of a bounded pool, and no shard waits for them.

use std::{
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use quanta::Instant;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Arrival, BlockingContext, Handler, Lent,
    changing::Quietly,
    failure::{Failure, check_reply},
};
use crate::{
    codec::{self, Decoder},
    error::HandlerError,
    wire::{Codec, Header, Received},
};

/// A blocking handler: one for all shards, called by several threads at once.
pub(super) trait Blocking: Send + Sync {
    /// Decodes the message, runs the handler, and encodes its reply.
    fn call(
        &self,
        codec: Codec,
        payload: Bytes,
        decoder: &mut Decoder,
        cx: &BlockingContext,
    ) -> Result<Bytes, Failure>;
}

/// A typed handler for long or blocking work: it runs on a thread of the process's pool, kept off
/// the shards' CPUs where there are others, and its shard goes on meanwhile. `blocking.threads` of
/// them run at once; `blocking.queue_capacity` messages wait, and one more is nacked `Overloaded`.
///
/// There is one closure in the process, which several threads call at once: its state is shared,
/// and needs a lock or atomics. The thread that calls it decodes the payload and encodes the reply,
/// as the header's codec says. It costs the shard a push into a channel, and a system call if the
/// thread that takes it slept. Allocates per message.
///
/// `Err` becomes a nack `HandlerFailed` with its text, a panic one with `HandlerPanicked`; the
/// thread lives. A message whose deadline passes while it waits is nacked `DeadlineExceeded` and
/// does not run. With one thread, messages begin in the order in which they were read; with more,
/// two that follow each other may begin at the same time. Those of other handlers may overtake
/// them all.
///
/// One that its caller cancels while it waits does not run either; nothing stops a thread, so one
/// that has begun goes on, and its answer is dropped at the other end.
///
/// A drain waits for what runs and what waits; [`Runtime::drain`](crate::Runtime::drain) says what
/// becomes of a handler that does not return in time. One that waits for another blocking handler
/// of the same process holds a thread meanwhile: when all threads do so, none of them goes on
/// before its deadline.
pub fn blocking<Req, Rep, F>(name: &str, handler: F) -> Handler
where
    Req: DeserializeOwned + 'static,
    Rep: Serialize + 'static,
    F: Fn(Req, &BlockingContext) -> Result<Rep, HandlerError> + Send + Sync + 'static,
{
    struct Typed<Req, F>(Quietly<F>, PhantomData<fn(Req)>);

    impl<Req, Rep, F> Blocking for Typed<Req, F>
    where
        Req: DeserializeOwned,
        Rep: Serialize,
        F: Fn(Req, &BlockingContext) -> Result<Rep, HandlerError> + Send + Sync,
    {
        fn call(
            &self,
            codec: Codec,
            payload: Bytes,
            decoder: &mut Decoder,
            cx: &BlockingContext,
        ) -> Result<Bytes, Failure> {
            let request = decoder.decode_shared(codec, payload)?;
            let reply = self.0.get()(request, cx)?;
            let mut payload = Vec::new();
            codec::encode(codec, &reply, &mut payload)
                .map_err(|error| HandlerError::new(error.to_string()))?;
            Ok(payload.into())
        }
    }

    Handler::blocking(name, Arc::new(Typed(Quietly::new(handler), PhantomData)))
}

/// A raw blocking handler: bytes in, bytes out. A large payload is not copied on the native engine:
/// it takes the buffer along that it was read into. Else as [`blocking`].
pub fn blocking_raw<F>(name: &str, handler: F) -> Handler
where
    F: Fn(Bytes, &BlockingContext) -> Result<Bytes, HandlerError> + Send + Sync + 'static,
{
    struct Raw<F>(Quietly<F>);

    impl<F> Blocking for Raw<F>
    where
        F: Fn(Bytes, &BlockingContext) -> Result<Bytes, HandlerError> + Send + Sync,
    {
        fn call(
            &self,
            _: Codec,
            payload: Bytes,
            _: &mut Decoder,
            cx: &BlockingContext,
        ) -> Result<Bytes, Failure> {
            Ok(self.0.get()(payload, cx)?)
        }
    }

    Handler::blocking(name, Arc::new(Raw(Quietly::new(handler))))
}

/// Which threads run a blocking handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The pool: a user's handler.
    Pool,
    /// The operator's thread: a built-in one. It has a queue of its own, so that a pool that is
    /// busy can be looked at.
    Operator,
}

/// A message to a blocking handler, on its way to a thread that runs it.
pub struct BlockingCall {
    /// On which threads it runs.
    pub lane: Lane,
    /// The index of its handler.
    pub handler: usize,
    /// The header of its message.
    pub header: Header,
    run: Arc<dyn Blocking>,
    cx: BlockingContext,
    reply_bytes_max: usize,
    /// Empty until it is taken: a call that nobody will run leaves it where it was read.
    payload: Bytes,
}

impl BlockingCall {
    pub(super) fn new(
        (handler, lane): (usize, Lane),
        run: Arc<dyn Blocking>,
        arrival: &Arrival<'_, '_>,
        lent: &Lent<'_>,
    ) -> Self {
        Self {
            lane,
            handler,
            header: arrival.header,
            run,
            cx: BlockingContext {
                shard: **lent.shard,
                client: lent.client.remote().until(arrival.deadline),
                deadline: arrival.deadline,
                route_key: arrival.header.route_key,
                origin: lent.asker.origin(),
            },
            reply_bytes_max: lent.reply_bytes_max,
            payload: Bytes::new(),
        }
    }

    /// Takes the payload along. A large one is not copied where its buffer can be had.
    pub fn take_payload(&mut self, message: &mut Received<'_>) {
        self.payload = message.take_bytes();
    }

    /// The failure of a call whose deadline has passed by now; `None` if there is time.
    pub fn lateness(&self, now: Instant) -> Option<Failure> {
        let is_late = self.cx.deadline.is_some_and(|deadline| deadline <= now);
        is_late.then(Failure::too_late)
    }

    /// Runs the handler on the calling thread. A panic inside is its failure, and so is a reply
    /// over the limit.
    pub fn run(self, decoder: &mut Decoder) -> Result<Bytes, Failure> {
        let Self {
            header,
            run,
            cx,
            reply_bytes_max,
            payload,
            ..
        } = self;
        // The decoder keeps only memory from call to call; the handler's own state is its own.
        let call = AssertUnwindSafe(|| run.call(header.codec, payload, decoder, &cx));
        let reply = catch_unwind(call).unwrap_or_else(|panic| Err(Failure::panicked(&*panic)))?;
        check_reply(reply.len(), reply_bytes_max)?;
        Ok(reply)
    }
}

impl std::fmt::Debug for BlockingCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockingCall")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}
