//! Handlers that every runtime serves: their names begin with `_`, and they speak JSON.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::{
    BlockingContext, Context, Handler,
    blocking::Blocking,
    failure::Failure,
    inline::{Inline, InlineCall, Reply},
    registry::{Origin, Runner},
};
use crate::{
    codec::Decoder,
    error::HandlerError,
    wire::{Codec, Reason},
};

/// What they are asked is short: more would only keep a shard busy.
const QUESTION_BYTES_MAX: usize = 4096;

/// One that only reads what is at hand: it runs inline, on the shard that reads its message. What
/// it writes is its reply.
pub(crate) fn built_in<F>(name: &str, while_draining: bool, handler: F) -> Handler
where
    F: Fn(&Context<'_>, &mut dyn Write) -> std::io::Result<()> + Clone + Send + Sync + 'static,
{
    struct BuiltIn<F>(F);

    impl<F> Inline for BuiltIn<F>
    where
        F: Fn(&Context<'_>, &mut dyn Write) -> std::io::Result<()>,
    {
        fn call(&mut self, call: InlineCall<'_>, cx: &mut Context<'_>) -> Result<Reply, Failure> {
            check_question(call.codec, call.payload)?;
            let mut reply = call.reply;
            (self.0)(cx, &mut reply).map_err(HandlerError::from)?;
            Ok(Reply::Written)
        }
    }

    let make = move |_: &super::ShardInfo| Runner::Inline(Box::new(BuiltIn(handler.clone())));
    Handler::new(name, make).built_in(while_draining)
}

/// One that waits for shards or the file system: it runs on the operator's thread, one message at
/// a time.
pub(crate) fn built_in_job<F>(name: &str, while_draining: bool, handler: F) -> Handler
where
    F: Fn(&BlockingContext) -> Result<Bytes, Failure> + Send + Sync + 'static,
{
    struct BuiltIn<F>(F);

    impl<F> Blocking for BuiltIn<F>
    where
        F: Fn(&BlockingContext) -> Result<Bytes, Failure> + Send + Sync,
    {
        fn call(
            &self,
            codec: Codec,
            payload: Bytes,
            _: &mut Decoder,
            cx: &BlockingContext,
        ) -> Result<Bytes, Failure> {
            check_question(codec, &payload)?;
            (self.0)(cx)
        }
    }

    Handler::blocking(name, Arc::new(BuiltIn(handler))).built_in(while_draining)
}

/// Most are asked nothing that would take more than their name. So that members can be added, what
/// is there must be what it will be then: nothing, or JSON, an object or null. Raw bytes that are
/// such JSON will do, for tools that do not set the codec.
pub(super) fn check_question(codec: Codec, payload: &[u8]) -> Result<(), Failure> {
    let refuse = |reason, text: String| Err(Failure { reason, text });
    if !matches!(codec, Codec::Json | Codec::Raw) {
        let text = "built-in handlers speak JSON".to_owned();
        return refuse(Reason::Unsupported, text);
    }
    if payload.len() > QUESTION_BYTES_MAX {
        let text = format!("a built-in handler takes {QUESTION_BYTES_MAX} bytes at most");
        return refuse(Reason::TooLarge, text);
    }
    if payload.is_empty() {
        return Ok(());
    }
    match serde_json::from_slice::<Option<BTreeMap<String, IgnoredAny>>>(payload) {
        Ok(_) => Ok(()),
        Err(_) => {
            let text = "a built-in handler takes a JSON object, or nothing".to_owned();
            refuse(Reason::Malformed, text)
        }
    }
}

/// Where a handler comes from.
impl Origin {
    /// Whether it is corelane's own.
    pub(super) fn is_built_in(self) -> bool {
        self != Origin::User
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_nothing_or_an_object() {
        let reason = |codec, payload: &[u8]| check_question(codec, payload).map_err(|it| it.reason);
        for payload in ["", "{}", "null", " {\"later\": [1, {}]} "] {
            for codec in [Codec::Json, Codec::Raw] {
                assert_eq!(reason(codec, payload.as_bytes()), Ok(()), "{payload}");
            }
        }
        for payload in ["{", "[]", "7", "\"_health\"", "{} {}", "\u{0}"] {
            let refused = reason(Codec::Json, payload.as_bytes());
            assert_eq!(refused, Err(Reason::Malformed), "{payload}");
        }
        assert_eq!(reason(Codec::Postcard, b""), Err(Reason::Unsupported));
        assert_eq!(reason(Codec::Json, &[b' '; 4097]), Err(Reason::TooLarge));
        let deep = "[".repeat(QUESTION_BYTES_MAX);
        assert_eq!(reason(Codec::Json, deep.as_bytes()), Err(Reason::Malformed));
    }
}
