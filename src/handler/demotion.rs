//! Inline handlers that outran their budget too often: from then on they run as tasks.

use std::{cell::RefCell, rc::Rc};

use super::{
    Context, Registry, TaskContext,
    dispatch::TaskFuture,
    failure::Failure,
    inline::{Inline, InlineCall, Reply},
    registry::Runner,
    spawned::Spawned,
};
use crate::{
    codec::Decoder,
    wire::{Codec, PayloadWriter},
};

/// What was an inline handler. Its function is called in a task, between two turns.
struct Demoted(Rc<RefCell<(Box<dyn Inline>, Decoder)>>);

impl Spawned for Demoted {
    fn call(
        &mut self,
        codec: Codec,
        payload: &mut [u8],
        _: &mut Decoder,
        cx: TaskContext,
    ) -> Result<TaskFuture, Failure> {
        let (handler, mut payload) = (self.0.clone(), payload.to_vec());
        Ok(Box::pin(async move {
            let now = cx.client.now();
            if cx.deadline.is_some_and(|deadline| deadline <= now) {
                return Err(Failure::too_late());
            }
            let (handler, decoder) = &mut *handler.borrow_mut();
            let mut written = Vec::new();
            let call = InlineCall {
                codec,
                payload: &mut payload,
                decoder,
                reply: PayloadWriter::new(&mut written),
            };
            let mut cx = Context {
                shard: &cx.shard,
                client: &cx.client,
                asker: &cx.origin,
                now,
                deadline: cx.deadline,
                route_key: cx.route_key,
                wants_reply: cx.wants_reply,
            };
            match handler.call(call, &mut cx)? {
                Reply::Written => Ok(written.into()),
                Reply::InPlace(bytes) => {
                    payload.truncate(bytes);
                    Ok(payload.into())
                }
            }
        }))
    }
}

/// Stands where a handler was, while it is moved.
struct Moved;

impl Inline for Moved {
    fn call(&mut self, _: InlineCall<'_>, _: &mut Context<'_>) -> Result<Reply, Failure> {
        unreachable!("another has taken its place")
    }
}

impl Registry {
    /// A handler has outrun its budget once more. True if that demotes it: its next message runs as
    /// a task.
    #[cold]
    pub fn note_overrun(&mut self, handler: usize) -> bool {
        let entry = self.entry_mut(handler);
        let Runner::Inline(inline) = &mut entry.runner else {
            return false;
        };
        entry.overruns += 1;
        if entry.overruns < entry.overruns_max {
            return false;
        }
        let inline = std::mem::replace(inline, Box::new(Moved));
        let demoted = Demoted(Rc::new(RefCell::new((inline, Decoder::new()))));
        entry.runner = Runner::Spawned(Box::new(demoted));
        true
    }
}
