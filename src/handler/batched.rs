//! Handlers that are called once for many messages.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use quanta::Instant;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Handler, ShardInfo,
    failure::{Failure, check_reply},
    registry::Runner,
};
use crate::{
    client::LocalClient,
    codec::{self, Decoder},
    error::HandlerError,
    wire::{Codec, Header, Kind, PayloadWriter},
};

/// Replies and raw payloads share buffers of this size, until they are dropped.
const ARENA_BYTES: usize = 16 << 10;

/// When a batch runs: as soon as one of these is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// So many messages are collected; at least 1.
    pub count_max: usize,
    /// So many bytes of payloads are, with the last message's.
    pub bytes_max: usize,
    /// The first of them was read so long ago. With zero, a batch is what one turn has read, as far
    /// as the other two allow.
    pub age_max: Duration,
}

/// One message of a batch, and the place of its answer: so none can be given to another, nor two to
/// one.
#[derive(Debug)]
pub struct Item<Req, Rep> {
    request: Req,
    header: Header,
    deadline: Option<Instant>,
    answer: Option<Result<Rep, HandlerError>>,
}

impl<Req, Rep> Item<Req, Rep> {
    /// What was sent.
    pub fn request(&self) -> &Req {
        &self.request
    }

    /// The same, to be changed or taken.
    pub fn request_mut(&mut self) -> &mut Req {
        &mut self.request
    }

    /// Answers this message; a second answer takes the place of the first. An `Err` becomes a nack
    /// `HandlerFailed` with its text, and so does a message that is left without an answer.
    pub fn answer(&mut self, answer: Result<Rep, HandlerError>) {
        self.answer = Some(answer);
    }

    /// The route key of the message; 0 for none.
    pub fn route_key(&self) -> u64 {
        self.header.route_key
    }

    /// By when its caller wants the answer. It had not passed when the batch began.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the caller waits for a reply: a one-way or confirmed message's is thrown away.
    pub fn wants_reply(&self) -> bool {
        self.header.kind == Kind::Request
    }
}

/// What a batch has to live on.
#[derive(Debug)]
pub struct BatchContext<'a> {
    shard: &'a ShardInfo,
    client: &'a LocalClient,
    now: Instant,
}

impl BatchContext<'_> {
    /// Where it runs.
    pub fn shard(&self) -> &ShardInfo {
        self.shard
    }

    /// When the reactor began with this batch.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Sends from this shard: one-way messages, since a batch cannot wait for an answer.
    pub fn client(&self) -> &LocalClient {
        self.client
    }
}

/// One shard's instance of a batched handler, with what it has collected.
pub(super) trait Batched {
    /// When it is to run.
    fn limits(&self) -> Batch;

    /// Decodes a message and keeps it, behind those that it has.
    fn collect(
        &mut self,
        header: &Header,
        deadline: Option<Instant>,
        payload: &mut [u8],
        decoder: &mut Decoder,
    ) -> Result<(), Failure>;

    /// Calls the handler for the messages of which `is_live` is true by number, and tells the
    /// encoded answer of each. The others are forgotten.
    fn run(
        &mut self,
        cx: &mut BatchContext<'_>,
        reply_bytes_max: usize,
        is_live: &mut dyn FnMut(usize) -> bool,
        tell: &mut dyn FnMut(usize, Result<Bytes, Failure>),
    );
}

struct Collector<Req, Rep, F> {
    batch: Batch,
    handler: F,
    items: Vec<Item<Req, Rep>>,
    /// The numbers of the messages that run.
    live: Vec<usize>,
    arena: Arena,
    decode: fn(Codec, &mut [u8], &mut Decoder, &mut Arena) -> Result<Req, Failure>,
    encode: fn(Codec, Rep, &mut Arena) -> Result<Bytes, HandlerError>,
}

/// What small payloads share: one allocation for many of them.
#[derive(Default)]
struct Arena {
    buffer: BytesMut,
    scratch: Vec<u8>,
}

impl Arena {
    fn keep(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        if bytes.len() >= ARENA_BYTES {
            return Bytes::copy_from_slice(bytes);
        }
        if self.buffer.capacity() < bytes.len() {
            self.buffer.reserve(ARENA_BYTES);
        }
        self.buffer.extend_from_slice(bytes);
        self.buffer.split().freeze()
    }
}

impl<Req, Rep, F> Batched for Collector<Req, Rep, F>
where
    F: FnMut(&mut [Item<Req, Rep>], &mut BatchContext<'_>),
{
    fn limits(&self) -> Batch {
        self.batch
    }

    fn collect(
        &mut self,
        header: &Header,
        deadline: Option<Instant>,
        payload: &mut [u8],
        decoder: &mut Decoder,
    ) -> Result<(), Failure> {
        let (decode, arena) = (self.decode, &mut self.arena);
        let decoded = AssertUnwindSafe(|| decode(header.codec, payload, decoder, arena));
        let request =
            catch_unwind(decoded).unwrap_or_else(|panic| Err(Failure::panicked(&*panic)))?;
        self.items.push(Item {
            request,
            header: *header,
            deadline,
            answer: None,
        });
        Ok(())
    }

    fn run(
        &mut self,
        cx: &mut BatchContext<'_>,
        reply_bytes_max: usize,
        is_live: &mut dyn FnMut(usize) -> bool,
        tell: &mut dyn FnMut(usize, Result<Bytes, Failure>),
    ) {
        let Self { items, live, .. } = self;
        let mut number = 0;
        live.clear();
        items.retain(|_| {
            let is_live = is_live(number);
            live.extend(is_live.then_some(number));
            number += 1;
            is_live
        });
        if items.is_empty() {
            return;
        }
        let ran = catch_unwind(AssertUnwindSafe(|| (self.handler)(items, cx)));
        let panicked = ran.err().map(|panic| Failure::panicked(&*panic));
        for (&number, item) in live.iter().zip(items.drain(..)) {
            let (encode, arena, header) = (self.encode, &mut self.arena, &item.header);
            let wants_reply = header.kind == Kind::Request;
            let answer = match (&panicked, item.answer) {
                (Some(panicked), _) => Err(panicked.clone()),
                (None, None) => Err(HandlerError::new("the batch gave it no answer").into()),
                (None, Some(Err(error))) => Err(error.into()),
                (None, Some(Ok(_))) if !wants_reply => Ok(Bytes::new()),
                (None, Some(Ok(reply))) => {
                    let encoded = AssertUnwindSafe(|| encode(header.codec, reply, arena));
                    match catch_unwind(encoded) {
                        Ok(encoded) => encoded.map_err(Failure::from),
                        Err(panic) => Err(Failure::panicked(&*panic)),
                    }
                }
            };
            let answer =
                answer.and_then(|reply| check_reply(reply.len(), reply_bytes_max).map(|()| reply));
            tell(number, answer);
        }
    }
}

/// A typed handler that is called once for many messages: they are decoded as they arrive, and
/// collected on the shard until one of the [`Batch`]'s limits is reached. Then the function is
/// called in the reactor's turn, with the messages in the order in which they arrived, and gives
/// each its own answer. Each shard runs a clone.
///
/// Like an inline handler it must not block; its budget is that of an inline one, for the whole
/// batch. A message whose deadline has passed as the batch runs is nacked `DeadlineExceeded`, and
/// one that was cancelled is left out. A panic is a nack `HandlerPanicked` of every message of the
/// batch. A draining shard runs what it has at once.
///
/// What is collected is bounded by `count_max` and `bytes_max`: the message that reaches one of
/// them runs the batch. Each keeps the place of its answer in its connection's outgoing queue. Per
/// message nothing is allocated, once buffers have grown to their size, but what the types do.
/// In the histograms `in_handler` has the time of the whole batch, once for each message.
pub fn batched<Req, Rep, F>(name: &str, batch: Batch, handler: F) -> Handler
where
    Req: DeserializeOwned + 'static,
    Rep: Serialize + 'static,
    F: FnMut(&mut [Item<Req, Rep>], &mut BatchContext<'_>) + Clone + Send + Sync + 'static,
{
    batched_with(name, batch, move |_| handler.clone())
}

/// As [`batched`], made by a factory that runs once on each shard: for state that is the shard's
/// own.
pub fn batched_with<Req, Rep, F, M>(name: &str, batch: Batch, make: M) -> Handler
where
    Req: DeserializeOwned + 'static,
    Rep: Serialize + 'static,
    F: FnMut(&mut [Item<Req, Rep>], &mut BatchContext<'_>) + 'static,
    M: Fn(&ShardInfo) -> F + Send + Sync + 'static,
{
    Handler::new(name, move |shard| {
        Runner::Batched(Box::new(Collector {
            batch,
            handler: make(shard),
            items: Vec::new(),
            live: Vec::new(),
            arena: Arena::default(),
            decode: |codec, payload, decoder, _| Ok(decoder.decode(codec, payload)?),
            encode: |codec, reply, arena| {
                let mut scratch = std::mem::take(&mut arena.scratch);
                scratch.clear();
                let encoded = codec::encode(codec, &reply, PayloadWriter::new(&mut scratch));
                let kept = arena.keep(&scratch);
                arena.scratch = scratch;
                match encoded {
                    Ok(()) => Ok(kept),
                    Err(error) => Err(HandlerError::new(error.to_string())),
                }
            },
        }))
    })
}

/// A raw batched handler: bytes in, bytes out. Small payloads are copied into a buffer that they
/// share. Else as [`batched`].
pub fn batched_raw<F>(name: &str, batch: Batch, handler: F) -> Handler
where
    F: FnMut(&mut [Item<Bytes, Bytes>], &mut BatchContext<'_>) + Clone + Send + Sync + 'static,
{
    batched_raw_with(name, batch, move |_| handler.clone())
}

/// As [`batched_raw`], made by a factory that runs once on each shard.
pub fn batched_raw_with<F, M>(name: &str, batch: Batch, make: M) -> Handler
where
    F: FnMut(&mut [Item<Bytes, Bytes>], &mut BatchContext<'_>) + 'static,
    M: Fn(&ShardInfo) -> F + Send + Sync + 'static,
{
    Handler::new(name, move |shard| {
        Runner::Batched(Box::new(Collector {
            batch,
            handler: make(shard),
            items: Vec::new(),
            live: Vec::new(),
            arena: Arena::default(),
            decode: |_, payload, _, arena| Ok(arena.keep(payload)),
            encode: |_, reply, _| Ok(reply),
        }))
    })
}

impl super::Registry {
    /// When the batch of this handler is to run.
    pub fn batch_limits(&self, handler: usize) -> Option<Batch> {
        match &self.entry(handler).runner {
            Runner::Batched(collected) => Some(collected.limits()),
            _ => None,
        }
    }

    /// Calls a batched handler for what it has collected and is live, by number, and tells the
    /// encoded answer of each.
    pub fn run_batch(
        &mut self,
        handler: usize,
        lent: &super::Lent<'_>,
        now: Instant,
        is_live: &mut dyn FnMut(usize) -> bool,
        tell: &mut dyn FnMut(usize, Result<Bytes, Failure>),
    ) {
        let mut cx = BatchContext {
            shard: lent.shard,
            client: lent.client,
            now,
        };
        if let Runner::Batched(collected) = &mut self.entry_mut(handler).runner {
            collected.run(&mut cx, lent.reply_bytes_max, is_live, tell);
        }
    }
}
