//! The task on the client's shard.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use corelane::{
    client::{Expect, LocalCall, Peer, RawReply, TypedReply},
    error::{NotSent, SendError},
    handler::TaskContext,
};
use futures_lite::future::{poll_once, yield_now};

use super::{QUOTE, Quote};
use crate::{
    axes::{SMALL, Work},
    meter::{Measured, Meter, Schedule, Span},
};

pub(super) struct Sender {
    pub(super) cx: TaskContext,
    pub(super) peer: Peer,
    pub(super) payload: Bytes,
}

/// A request, and what must come back.
pub(super) trait Request {
    type Answer: Expect;
    fn send(&self, from: &Sender) -> Result<LocalCall<Self::Answer>, SendError>;
    fn is_echo(&self, from: &Sender, reply: &<Self::Answer as Expect>::Reply) -> bool;
}

pub(super) struct Typed;

impl Request for Typed {
    type Answer = TypedReply<Quote>;

    fn send(&self, from: &Sender) -> Result<LocalCall<Self::Answer>, SendError> {
        let message = from.cx.client().message("quote").postcard(&QUOTE);
        let message = message.expect("numbers can be encoded");
        message.to(&from.peer).request().send()
    }

    fn is_echo(&self, _: &Sender, reply: &Quote) -> bool {
        *reply == QUOTE
    }
}

pub(super) struct InBytes;

impl Request for InBytes {
    type Answer = RawReply;

    fn send(&self, from: &Sender) -> Result<LocalCall<Self::Answer>, SendError> {
        let client = from.cx.client();
        let message = match from.payload.len() > SMALL {
            true => client.message("large").raw(from.payload.clone()),
            false => client.message("echo").raw_copy(&from.payload),
        };
        message.to(&from.peer).request().send()
    }

    fn is_echo(&self, from: &Sender, reply: &Bytes) -> bool {
        reply.len() == from.payload.len()
    }
}

impl Sender {
    pub(super) async fn work<R: Request>(
        &self,
        request: &R,
        work: Work,
        span: Span,
        handled: &AtomicU64,
    ) -> Result<Measured, String> {
        match work {
            Work::Ping { pause, .. } => self.ping(request, pause, span).await,
            Work::Window { outstanding } => self.window(request, outstanding, span).await,
            Work::Stream => self.stream(handled, span).await,
            Work::OpenLoop { per_second } => self.open_loop(request, per_second, span).await,
        }
    }

    async fn land<R: Request>(
        &self,
        request: &R,
        call: LocalCall<R::Answer>,
    ) -> Result<(), String> {
        let reply = call.await.map_err(text)?;
        match request.is_echo(self, &reply) {
            true => Ok(()),
            false => Err("something else came back".into()),
        }
    }

    async fn ping<R: Request>(
        &self,
        request: &R,
        pause: Duration,
        span: Span,
    ) -> Result<Measured, String> {
        let mut meter = Meter::start(span);
        while meter.goes_on() {
            if !pause.is_zero() {
                self.cx.sleep(pause).await;
            }
            let sent_at = Instant::now();
            let call = request.send(self).map_err(text)?;
            self.land(request, call).await?;
            meter.record(sent_at);
        }
        meter.finish()
    }

    /// Answers of one connection come in the order of its inline requests, so that it is enough to
    /// wait for the oldest: a future and a waker for each would only cost.
    async fn window<R: Request>(
        &self,
        request: &R,
        outstanding: usize,
        span: Span,
    ) -> Result<Measured, String> {
        let mut flights = VecDeque::with_capacity(outstanding);
        let mut meter = Meter::start(span);
        // In two halves, as the floor.
        for number in 0..outstanding {
            flights.push_back(request.send(self).map_err(text)?);
            if number == outstanding / 2 {
                yield_now().await;
            }
        }
        let mut uncounted = 0;
        while let Some(call) = flights.pop_front() {
            self.land(request, call).await?;
            // The clock costs as much as some parts of what is measured.
            uncounted += 1;
            if uncounted == outstanding as u64 {
                meter.add(uncounted);
                uncounted = 0;
            }
            if meter.goes_on() {
                flights.push_back(request.send(self).map_err(text)?);
            }
        }
        meter.finish()
    }

    /// Counts from a confirmed message to a confirmed message.
    async fn stream(&self, handled: &AtomicU64, span: Span) -> Result<Measured, String> {
        let warm = self.stream_for(span.warm_up).await?;
        let start = Instant::now();
        let sent = self.stream_for(span.measured).await?;
        let elapsed = start.elapsed();
        match handled.load(Relaxed) {
            all if all == warm + sent => Ok(Measured::rate(sent, elapsed)),
            some => Err(format!("{some} of {} messages were handled", warm + sent)),
        }
    }

    async fn stream_for(&self, duration: Duration) -> Result<u64, String> {
        let until = Instant::now() + duration;
        let mut sent = 0;
        while Instant::now() < until {
            for _ in 0..64 {
                self.one_way().await?;
            }
            sent += 64;
        }
        let last = self.cx.client().message("count").raw_copy(&self.payload);
        last.to(&self.peer).confirm().await.map_err(text)?;
        Ok(sent + 1)
    }

    async fn one_way(&self) -> Result<(), String> {
        loop {
            let message = self.cx.client().message("count").raw_copy(&self.payload);
            match message.to(&self.peer).one_way() {
                Ok(()) => return Ok(()),
                Err(error) if error.why == NotSent::Full => yield_now().await,
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    async fn open_loop<R: Request>(
        &self,
        request: &R,
        per_second: u64,
        span: Span,
    ) -> Result<Measured, String> {
        let mut flights = VecDeque::new();
        let mut meter = Meter::start(span);
        let mut schedule = Schedule::new(per_second, span);
        let (mut answered, mut has_ended) = (0, false);
        while !schedule.is_over() || answered < schedule.next {
            let now = Instant::now();
            for _ in 0..schedule.due(now) {
                match request.send(self) {
                    Ok(call) => flights.push_back(call),
                    // Still due: it leaves later, and its latency counts from when it was due.
                    Err(error) if error.why == NotSent::Full => break,
                    Err(error) => return Err(error.to_string()),
                }
                schedule.next += 1;
            }
            while let Some(call) = flights.front_mut() {
                let Some(reply) = poll_once(call).await else {
                    break;
                };
                reply.map_err(text)?;
                flights.pop_front();
                meter.record(schedule.due_at(answered));
                answered += 1;
            }
            if !has_ended && now >= meter.end() {
                has_ended = true;
                schedule.check_kept_up(answered)?;
            }
            yield_now().await;
        }
        meter.finish()
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
