//! Handlers that await: a local task on the shard that read their message.

use std::{future::Future, marker::PhantomData};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{Handler, TaskContext, dispatch::TaskFuture, failure::Failure};
use crate::{
    codec::{self, Decoder},
    error::HandlerError,
    wire::Codec,
};

/// One shard's instance of a spawned handler.
pub(super) trait Spawned {
    /// Decodes the message and makes the task's future, which ends with the encoded reply.
    fn call(
        &mut self,
        codec: Codec,
        payload: &mut [u8],
        decoder: &mut Decoder,
        cx: TaskContext,
    ) -> Result<TaskFuture, Failure>;
}

/// A typed handler that may await, and need not be `Send`: each message runs as a local task on its
/// shard, at most `limits.spawned_max` at once. Its payload is decoded before it is spawned.
/// Allocates per message.
///
/// It may await whatever it likes. Calls, [`TaskContext::sleep`] and what another thread completes
/// are heard of in the shard's next turn; glommio's own timers and files within some 200 µs, or
/// 1 ms while the shard is busy, unless it parks.
///
/// `Err` becomes a nack `HandlerFailed` with its text, a panic one with `HandlerPanicked`.
///
/// Its future is dropped, wherever it awaits, when the caller cancels or the deadline passes:
/// nobody waits for an answer by then, and none is sent. It had begun, so the message is counted
/// as indeterminate. A caller that is lost stops nothing before the deadline.
pub fn spawned<Req, Rep, F, Fut>(name: &str, handler: F) -> Handler
where
    Req: DeserializeOwned + 'static,
    Rep: Serialize + 'static,
    F: FnMut(Req, TaskContext) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Rep, HandlerError>> + 'static,
{
    struct Typed<Req, F>(F, PhantomData<fn(Req)>);

    impl<Req, Rep, F, Fut> Spawned for Typed<Req, F>
    where
        Req: DeserializeOwned,
        Rep: Serialize,
        F: FnMut(Req, TaskContext) -> Fut,
        Fut: Future<Output = Result<Rep, HandlerError>> + 'static,
    {
        fn call(
            &mut self,
            codec: Codec,
            payload: &mut [u8],
            decoder: &mut Decoder,
            cx: TaskContext,
        ) -> Result<TaskFuture, Failure> {
            let request = decoder.decode(codec, payload)?;
            let reply = (self.0)(request, cx);
            Ok(Box::pin(async move {
                let mut payload = Vec::new();
                codec::encode(codec, &reply.await?, &mut payload)
                    .map_err(|error| HandlerError::new(error.to_string()))?;
                Ok(payload.into())
            }))
        }
    }

    Handler::spawned(name, move || Box::new(Typed(handler.clone(), PhantomData)))
}

/// A raw handler that may await: bytes in, bytes out. The payload is copied once, out of the read
/// buffer. Else as [`spawned`].
pub fn spawned_raw<F, Fut>(name: &str, handler: F) -> Handler
where
    F: FnMut(Bytes, TaskContext) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Bytes, HandlerError>> + 'static,
{
    struct Raw<F>(F);

    impl<F, Fut> Spawned for Raw<F>
    where
        F: FnMut(Bytes, TaskContext) -> Fut,
        Fut: Future<Output = Result<Bytes, HandlerError>> + 'static,
    {
        fn call(
            &mut self,
            _: Codec,
            payload: &mut [u8],
            _: &mut Decoder,
            cx: TaskContext,
        ) -> Result<TaskFuture, Failure> {
            let reply = (self.0)(Bytes::copy_from_slice(payload), cx);
            Ok(Box::pin(async move { Ok(reply.await?) }))
        }
    }

    Handler::spawned(name, move || Box::new(Raw(handler.clone())))
}
