//! From a decoded header to the handler and, inline, to its answer in the outbox.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    task::Poll,
};

use bytes::Bytes;
use quanta::Instant;

use super::{
    Asker, BlockingCall, Context, Registry, ShardInfo, TaskContext, Timers,
    failure::{Failure, Objection, check_reply},
    inline::{InlineCall, Reply},
    ordered::{Begun, Sender},
    registry::{Entry, Home, Runner},
};
use crate::{
    client::LocalClient,
    wire::{
        ATTACHED_BYTES_MIN, Codec, Draft, Flags, Header, Kind, Outbox, PayloadWriter, Reason,
        Received,
    },
};

/// A message that names a handler, as it stands in the engine's buffers.
#[derive(Debug)]
pub struct Arrival<'a, 'm> {
    /// Its header: of kind one-way, confirm or request.
    pub header: Header,
    /// Where it was read to.
    pub message: &'a mut Received<'m>,
    /// Where its answer goes.
    pub outbox: &'a mut Outbox,
    /// By when it must have started.
    pub deadline: Option<Instant>,
    /// The reactor's time.
    pub now: Instant,
}

/// What a shard lends to its handlers.
#[derive(Debug)]
pub struct Lent<'a> {
    /// Where they run.
    pub shard: &'a Rc<ShardInfo>,
    /// How they send.
    pub client: &'a LocalClient,
    /// Who has sent the message.
    pub asker: &'a dyn Asker,
    /// How their tasks sleep.
    pub timers: &'a Rc<Timers>,
    /// Whether another task may be spawned.
    pub may_spawn: bool,
    /// Bytes of the largest reply.
    pub reply_bytes_max: usize,
}

/// What became of a message.
#[derive(Debug)]
pub enum Dispatch {
    /// The handler with this index ran to its end; an answer that was due stands in the outbox.
    Handled(usize),
    /// It was refused, or failed (then with the index of the handler that ran); a nack that was due
    /// stands in the outbox.
    Nacked(Option<usize>, Reason),
    /// It is to run as a task.
    Spawn(Spawning),
    /// It is to take its place in its peer's line, before the handler with this index
    /// ([`Registry::order`]). Its payload is where it was.
    Order(usize),
    /// It is to run on a thread of the pool. Its payload is where it was.
    Block(Box<BlockingCall>),
    /// It waits with the batch of the handler with this index, which may have to run now.
    Collect(usize),
    /// It was answerable, but there is no room for an answer: it did not run.
    NoRoom,
}

/// A task to be spawned, and how its end is to be answered.
pub struct Spawning {
    /// The index of its handler.
    pub handler: usize,
    /// The header of its message.
    pub header: Header,
    /// By when its caller wants the answer: then it is to be stopped.
    pub deadline: Option<Instant>,
    /// Whether its handler was called, if that is not as soon as the task begins.
    pub begun: Option<Begun>,
    /// Ends with the answer; a panic inside is one too.
    pub future: Pin<Box<dyn Future<Output = Result<Bytes, Failure>>>>,
}

/// The future of a spawned handler: its encoded reply.
pub(super) type TaskFuture = Pin<Box<dyn Future<Output = Result<Bytes, Failure>>>>;

impl Registry {
    /// Runs the handler that a message names, or makes its task, and writes the answer that is due
    /// by now.
    #[inline]
    pub fn dispatch(&mut self, arrival: Arrival<'_, '_>, lent: &Lent<'_>) -> Dispatch {
        let header = &arrival.header;
        if header.kind != Kind::OneWay && arrival.outbox.is_full() {
            return Dispatch::NoRoom;
        }
        let index = match self.admit(header, arrival.deadline, arrival.now) {
            Ok(index) => index,
            Err(objection) => return refuse(header, arrival.outbox, None, &objection.into()),
        };
        match &self.entry(index).runner {
            Runner::Inline(_) => self.run_inline(index, arrival, lent),
            _ => self.dispatch_beside(index, arrival, lent),
        }
    }

    /// As [`dispatch`](Self::dispatch), for what does not run inline.
    #[inline(never)]
    fn dispatch_beside(
        &mut self,
        index: usize,
        arrival: Arrival<'_, '_>,
        lent: &Lent<'_>,
    ) -> Dispatch {
        let header = &arrival.header;
        match &self.entry(index).runner {
            Runner::Inline(_) => unreachable!("runs inline"),
            Runner::Gone => {
                let objection = Objection::UnknownHandler(header.handler);
                refuse(header, arrival.outbox, None, &objection.into())
            }
            Runner::Spawned(_) => self.make_task(index, arrival, lent),
            Runner::Ordered(_) => Dispatch::Order(index),
            Runner::Batched(_) => self.collect(index, arrival),
            Runner::Blocking(run) => {
                if let Some(crowding) = self.entry(index).crowding() {
                    return refuse(header, arrival.outbox, None, &crowding);
                }
                let place = (index, self.lane_of(index));
                let call = BlockingCall::new(place, run.clone(), &arrival, lent);
                Dispatch::Block(Box::new(call))
            }
        }
    }

    /// The index of the handler that may run, or what speaks against it.
    #[inline]
    fn admit(
        &mut self,
        header: &Header,
        deadline: Option<Instant>,
        now: Instant,
    ) -> Result<usize, Objection> {
        if let Codec::Unknown(number) = header.codec {
            return Err(Objection::Codec(number));
        }
        if header.flags.contains(Flags::COMPRESSED) {
            return Err(Objection::Compressed);
        }
        if header.kind != Kind::OneWay && deadline.is_none() {
            return Err(Objection::NoDeadline);
        }
        let Some(index) = self.index_of(header.handler) else {
            return Err(Objection::UnknownHandler(header.handler));
        };
        if header.route_key == 0 && self.entry(index).home == Home::RouteKey {
            return Err(Objection::NoRouteKey);
        }
        match deadline {
            Some(deadline) if deadline <= now => Err(Objection::TooLate),
            _ => Ok(index),
        }
    }

    #[inline]
    fn run_inline(&mut self, index: usize, arrival: Arrival<'_, '_>, lent: &Lent<'_>) -> Dispatch {
        let Arrival {
            header,
            message,
            outbox,
            deadline,
            now,
        } = arrival;
        let position = self.position(index);
        let Runner::Inline(handler) = &mut self.entries[position].runner else {
            unreachable!("was just matched")
        };
        let mut cx = Context {
            shard: lent.shard,
            client: lent.client,
            asker: lent.asker,
            now,
            deadline,
            route_key: header.route_key,
            wants_reply: header.kind == Kind::Request,
        };
        let Some(answer) = answer_header(&header) else {
            // Nobody waits for what it writes.
            self.scratch.clear();
            let call = InlineCall {
                codec: header.codec,
                payload: message.payload(),
                decoder: &mut self.decoder,
                reply: PayloadWriter::new(&mut self.scratch),
            };
            let result = catch_unwind(AssertUnwindSafe(|| handler.call(call, &mut cx)))
                .unwrap_or_else(|panic| Err(Failure::panicked(&*panic)))
                .and_then(|reply| reply.check(self.scratch.len(), lent.reply_bytes_max));
            return match result {
                Ok(_) => Dispatch::Handled(index),
                Err(failure) => Dispatch::Nacked(Some(index), failure.reason),
            };
        };
        let mut draft = outbox
            .draft(&answer)
            .expect("has room, as dispatch has seen");
        let call = InlineCall {
            codec: header.codec,
            payload: message.payload(),
            decoder: &mut self.decoder,
            reply: draft.payload(),
        };
        // A handler that panicked keeps its own state as it left it; ours is whole.
        let result = catch_unwind(AssertUnwindSafe(|| handler.call(call, &mut cx)))
            .unwrap_or_else(|panic| Err(Failure::panicked(&*panic)))
            .and_then(|reply| reply.check(draft.payload().len(), lent.reply_bytes_max));
        let reply = match result {
            Ok(reply) => reply,
            Err(failure) => {
                draft.restart(&nack_header(&header, failure.reason));
                draft.payload().extend_from_slice(failure.words());
                draft.commit();
                return Dispatch::Nacked(Some(index), failure.reason);
            }
        };
        if header.kind == Kind::Request {
            commit_reply(draft, reply, message);
        } else {
            draft.restart(&answer);
            draft.commit();
        }
        Dispatch::Handled(index)
    }

    fn collect(&mut self, index: usize, arrival: Arrival<'_, '_>) -> Dispatch {
        let Arrival {
            header,
            message,
            outbox,
            deadline,
            ..
        } = arrival;
        let position = self.position(index);
        let Runner::Batched(handler) = &mut self.entries[position].runner else {
            unreachable!("was just matched")
        };
        let decoder = &mut self.decoder;
        match handler.collect(&header, deadline, message.payload(), decoder) {
            Ok(()) => Dispatch::Collect(index),
            Err(failure) => refuse(&header, outbox, None, &failure),
        }
    }

    #[inline(never)]
    fn make_task(&mut self, index: usize, arrival: Arrival<'_, '_>, lent: &Lent<'_>) -> Dispatch {
        let Arrival {
            header,
            message,
            outbox,
            deadline,
            ..
        } = arrival;
        if let Some(crowding) = self.task_crowding(index, lent) {
            return refuse(&header, outbox, None, &crowding);
        }
        let position = self.position(index);
        let Runner::Spawned(handler) = &mut self.entries[position].runner else {
            unreachable!("was just matched")
        };
        let cx = lent.task_context(&header, deadline);
        let decoder = &mut self.decoder;
        let made = catch_unwind(AssertUnwindSafe(|| {
            handler.call(header.codec, message.payload(), decoder, cx)
        }))
        .unwrap_or_else(|panic| Err(Failure::panicked(&*panic)));
        match made {
            Ok(task) => Dispatch::Spawn(Spawning {
                handler: index,
                header,
                deadline,
                begun: None,
                future: Box::pin(guard(task, lent.reply_bytes_max)),
            }),
            Err(failure) => refuse(&header, outbox, Some(index), &failure),
        }
    }

    /// What speaks against one more task of this handler.
    fn task_crowding(&self, index: usize, lent: &Lent<'_>) -> Option<Failure> {
        match lent.may_spawn {
            true => self.entry(index).crowding(),
            false => Some(Objection::TooManyTasks.into()),
        }
    }

    /// Makes the task of a message that [`Dispatch::Order`] was said of: it waits until all before
    /// it have ended that this sender has sent for this handler. Errors: why it is refused.
    pub fn order(
        &mut self,
        (index, sender): (usize, Sender),
        header: Header,
        deadline: Option<Instant>,
        message: &mut Received<'_>,
        lent: &Lent<'_>,
    ) -> Result<Spawning, Failure> {
        if let Some(crowding) = self.task_crowding(index, lent) {
            return Err(crowding);
        }
        let Entry { name, runner, .. } = self.entry(index);
        let Runner::Ordered(ordered) = runner else {
            unreachable!("dispatch has seen that it is one")
        };
        if let Some(crowding) = ordered.crowding(name, sender, message.payload_bytes()) {
            return Err(crowding);
        }
        let cx = lent.task_context(&header, deadline);
        let (task, begun) = ordered.make_task(sender, header.codec, message, cx);
        Ok(Spawning {
            handler: index,
            header,
            deadline,
            begun: Some(begun),
            future: Box::pin(guard(task, lent.reply_bytes_max)),
        })
    }
}

impl Lent<'_> {
    fn task_context(&self, header: &Header, deadline: Option<Instant>) -> TaskContext {
        TaskContext {
            shard: self.shard.clone(),
            client: self.client.until(deadline),
            timers: self.timers.clone(),
            deadline,
            route_key: header.route_key,
            wants_reply: header.kind == Kind::Request,
            origin: self.asker.origin(),
        }
    }
}

impl Spawning {
    /// Writes what a task's end answers, if anything. `Err`: there is no room now.
    pub fn answer(
        header: &Header,
        result: &Result<Bytes, Failure>,
        outbox: &mut Outbox,
    ) -> Result<(), crate::wire::OutboxFull> {
        match (answer_header(header), result) {
            (None, _) => Ok(()),
            (Some(answer), Ok(payload))
                if answer.kind == Kind::Response && payload.len() >= ATTACHED_BYTES_MIN =>
            {
                outbox.push_bytes(&answer, payload.clone())
            }
            (Some(answer), Ok(payload)) => {
                let payload: &[u8] = if answer.kind == Kind::Response {
                    payload
                } else {
                    &[]
                };
                outbox.push(&answer, payload)
            }
            (Some(_), Err(failure)) => {
                outbox.push(&nack_header(header, failure.reason), failure.words())
            }
        }
    }
}

impl std::fmt::Debug for Spawning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spawning")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl Reply {
    /// A reply within the limit is one; `written` is how much stands in the write buffer.
    #[inline]
    fn check(self, written: usize, bytes_max: usize) -> Result<Self, Failure> {
        let bytes = match self {
            Reply::Written => written,
            Reply::InPlace(bytes) => bytes,
        };
        check_reply(bytes, bytes_max).map(|()| self)
    }
}

/// A large reply that stands in the buffer that its request came in leaves from there.
fn commit_reply(mut draft: Draft<'_>, reply: Reply, message: &mut Received<'_>) {
    match reply {
        Reply::InPlace(bytes) if bytes >= ATTACHED_BYTES_MIN => {
            let (buffer, place) = message.take_buffer();
            draft.commit_with_buffer(buffer, place.start..place.start + bytes);
        }
        Reply::InPlace(bytes) => {
            draft
                .payload()
                .extend_from_slice(&message.payload()[..bytes]);
            draft.commit();
        }
        Reply::Written => draft.commit(),
    }
}

/// The header of what answers a message that is handled.
fn answer_header(header: &Header) -> Option<Header> {
    match header.kind {
        Kind::Request => Some(Header {
            codec: header.codec,
            ..Header::new(Kind::Response, header.correlation)
        }),
        Kind::Confirm => Some(Header::new(Kind::Ack, header.correlation)),
        _ => None,
    }
}

fn nack_header(header: &Header, reason: Reason) -> Header {
    Header {
        reason,
        ..Header::new(Kind::Nack, header.correlation)
    }
}

#[cold]
fn refuse(header: &Header, outbox: &mut Outbox, ran: Option<usize>, failure: &Failure) -> Dispatch {
    if header.kind != Kind::OneWay {
        let nack = nack_header(header, failure.reason);
        if outbox.push(&nack, failure.words()).is_err() {
            return Dispatch::NoRoom;
        }
    }
    Dispatch::Nacked(ran, failure.reason)
}

/// A task whose panic is its answer, and whose reply is within the limit.
async fn guard(mut task: TaskFuture, reply_bytes_max: usize) -> Result<Bytes, Failure> {
    let reply = std::future::poll_fn(move |cx| {
        match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(result),
            Err(panic) => Poll::Ready(Err(Failure::panicked(&*panic))),
        }
    })
    .await?;
    check_reply(reply.len(), reply_bytes_max)?;
    Ok(reply)
}

#[cfg(test)]
mod tests;
