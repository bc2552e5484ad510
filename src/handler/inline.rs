//! Handlers that the reactor calls in the turn that read their message.

use serde::{Serialize, de::DeserializeOwned};

use super::{Context, Handler, ShardInfo, failure::Failure, registry::Runner};
use crate::{
    codec::{self, Decoder},
    error::HandlerError,
    wire::{Codec, PayloadWriter},
};

/// One shard's instance of an inline handler.
pub(super) trait Inline {
    fn call(&mut self, call: InlineCall<'_>, cx: &mut Context<'_>) -> Result<Reply, Failure>;
}

/// Where a handler's reply is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    /// In the write buffer.
    Written,
    /// So many bytes from the beginning of the message's payload.
    InPlace(usize),
}

/// A message for an inline handler.
pub(super) struct InlineCall<'a> {
    pub(super) codec: Codec,
    pub(super) payload: &'a mut [u8],
    pub(super) decoder: &'a mut Decoder,
    pub(super) reply: PayloadWriter<'a>,
}

/// A typed inline handler: the payload is decoded as the header's codec says (JSON or postcard) and
/// the reply encoded likewise.
///
/// Each shard runs a clone. For a few microseconds and no await; it must not block, for nothing
/// else happens on the shard meanwhile. `Err` becomes a nack `HandlerFailed` with its text, a panic
/// one with `HandlerPanicked`.
pub fn inline<Req, Rep, F>(name: &str, handler: F) -> Handler
where
    Req: DeserializeOwned + 'static,
    Rep: Serialize + 'static,
    F: FnMut(Req, &mut Context<'_>) -> Result<Rep, HandlerError> + Clone + Send + Sync + 'static,
{
    inline_with(name, move |_| handler.clone())
}

/// As [`inline`], made by a factory that runs once on each shard: for state that is the shard's
/// own.
pub fn inline_with<Req, Rep, F, M>(name: &str, make: M) -> Handler
where
    Req: DeserializeOwned + 'static,
    Rep: Serialize + 'static,
    F: FnMut(Req, &mut Context<'_>) -> Result<Rep, HandlerError> + 'static,
    M: Fn(&ShardInfo) -> F + Send + Sync + 'static,
{
    struct Typed<Req, F>(F, std::marker::PhantomData<fn(Req)>);

    impl<Req, Rep, F> Inline for Typed<Req, F>
    where
        Req: DeserializeOwned,
        Rep: Serialize,
        F: FnMut(Req, &mut Context<'_>) -> Result<Rep, HandlerError>,
    {
        fn call(&mut self, call: InlineCall<'_>, cx: &mut Context<'_>) -> Result<Reply, Failure> {
            let request = call.decoder.decode(call.codec, call.payload)?;
            let reply = (self.0)(request, cx)?;
            if cx.wants_reply {
                codec::encode(call.codec, &reply, call.reply)
                    .map_err(|error| HandlerError::new(error.to_string()))?;
            }
            Ok(Reply::Written)
        }
    }

    handler(name, move |shard| {
        Typed(make(shard), std::marker::PhantomData)
    })
}

/// A raw inline handler: the payload's bytes, whatever their codec, and a writer that stands in the
/// connection's write buffer. Else as [`inline`].
pub fn inline_raw<F>(name: &str, handler: F) -> Handler
where
    F: FnMut(&[u8], &mut PayloadWriter<'_>, &mut Context<'_>) -> Result<(), HandlerError>
        + Clone
        + Send
        + Sync
        + 'static,
{
    inline_raw_with(name, move |_| handler.clone())
}

/// As [`inline_raw`], made by a factory that runs once on each shard.
pub fn inline_raw_with<F, M>(name: &str, make: M) -> Handler
where
    F: FnMut(&[u8], &mut PayloadWriter<'_>, &mut Context<'_>) -> Result<(), HandlerError> + 'static,
    M: Fn(&ShardInfo) -> F + Send + Sync + 'static,
{
    struct Raw<F>(F);

    impl<F> Inline for Raw<F>
    where
        F: FnMut(&[u8], &mut PayloadWriter<'_>, &mut Context<'_>) -> Result<(), HandlerError>,
    {
        fn call(
            &mut self,
            mut call: InlineCall<'_>,
            cx: &mut Context<'_>,
        ) -> Result<Reply, Failure> {
            (self.0)(call.payload, &mut call.reply, cx)?;
            Ok(Reply::Written)
        }
    }

    handler(name, move |shard| Raw(make(shard)))
}

/// An inline handler that works in the buffer that its message came in, and says how many bytes
/// from its beginning are the reply: a large one leaves from there, without being copied. Else as
/// [`inline`].
pub fn inline_in_place<F>(name: &str, handler: F) -> Handler
where
    F: FnMut(&mut [u8], &mut Context<'_>) -> Result<usize, HandlerError>
        + Clone
        + Send
        + Sync
        + 'static,
{
    inline_in_place_with(name, move |_| handler.clone())
}

/// As [`inline_in_place`], made by a factory that runs once on each shard.
pub fn inline_in_place_with<F, M>(name: &str, make: M) -> Handler
where
    F: FnMut(&mut [u8], &mut Context<'_>) -> Result<usize, HandlerError> + 'static,
    M: Fn(&ShardInfo) -> F + Send + Sync + 'static,
{
    struct InPlace<F>(F);

    impl<F> Inline for InPlace<F>
    where
        F: FnMut(&mut [u8], &mut Context<'_>) -> Result<usize, HandlerError>,
    {
        fn call(&mut self, call: InlineCall<'_>, cx: &mut Context<'_>) -> Result<Reply, Failure> {
            let bytes = (self.0)(call.payload, cx)?;
            let room = call.payload.len();
            match bytes <= room {
                true => Ok(Reply::InPlace(bytes)),
                false => Err(HandlerError::new(format!(
                    "a reply of {bytes} bytes in a buffer of {room}"
                ))
                .into()),
            }
        }
    }

    handler(name, move |shard| InPlace(make(shard)))
}

fn handler<H: Inline + 'static>(
    name: &str,
    make: impl Fn(&ShardInfo) -> H + Send + Sync + 'static,
) -> Handler {
    Handler::new(name, move |shard| Runner::Inline(Box::new(make(shard))))
}
