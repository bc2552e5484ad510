//! The client: sends at its own pace, and takes down how each request ended.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use corelane::{
    client::{LocalCall, Peer, RawReply},
    error::CallError,
    handler::TaskContext,
};
use fastrand::Rng;
use futures_lite::future::{poll_once, yield_now};
use hdrhistogram::Histogram;
use serde::Serialize;

/// A request whose answer nobody would wait for any more. Whoever is admitted is answered long
/// before; without shedding, this is what ends the others.
const WITHIN: Duration = Duration::from_secs(1);
/// Sent in a row before answers are looked at.
const ROUND_MAX: usize = 64;
const PAYLOAD: [u8; 64] = [7; 64];

/// What came of the requests that were due in a span.
pub(crate) struct Ends {
    pub(crate) offered: u64,
    pub(crate) answered: u64,
    pub(crate) nacked: u64,
    /// No room in the client's own queue, or no time left there: they never left.
    pub(crate) not_sent: u64,
    pub(crate) indeterminate: u64,
    /// Of those that were answered, from when they were due, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// When each was due, from the span's beginning, and what its answer took, if it was answered.
    /// Only where the last span asks for it.
    pub(crate) each: Vec<(Duration, Option<Duration>)>,
    /// From the span's beginning until its last request was sent.
    pub(crate) lasted: Duration,
}

/// What of it is reported.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Phase {
    pub(crate) offered_per_s: f64,
    pub(crate) answered_per_s: f64,
    pub(crate) nacked_per_s: f64,
    pub(crate) not_sent_per_s: f64,
    pub(crate) indeterminate: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p99_9_us: f64,
    pub(crate) max_us: f64,
}

/// A rate and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) per_s: f64,
    pub(crate) lasts: Duration,
    pub(crate) keeps_each: bool,
}

struct Flight {
    due: Instant,
    span: usize,
    call: LocalCall<RawReply>,
}

impl Ends {
    fn new() -> Self {
        Self {
            offered: 0,
            answered: 0,
            nacked: 0,
            not_sent: 0,
            indeterminate: 0,
            latency: Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("is a range"),
            each: Vec::new(),
            lasted: Duration::ZERO,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        let per_s = |count: u64| count as f64 / self.lasted.as_secs_f64();
        let us = |quantile: f64| self.latency.value_at_quantile(quantile) as f64 / 1e3;
        Phase {
            offered_per_s: per_s(self.offered),
            answered_per_s: per_s(self.answered),
            nacked_per_s: per_s(self.nacked),
            not_sent_per_s: per_s(self.not_sent),
            indeterminate: self.indeterminate,
            p50_us: us(0.5),
            p99_us: us(0.99),
            p99_9_us: us(0.999),
            max_us: self.latency.max() as f64 / 1e3,
        }
    }
}

fn send(cx: &TaskContext, peer: &Peer) -> Option<LocalCall<RawReply>> {
    let message = cx.client().message("work").raw_copy(&PAYLOAD).to(peer);
    message.request().within(WITHIN).send().ok()
}

/// Answers a second with so many requests under way at any time.
pub(crate) async fn closed_loop(
    cx: &TaskContext,
    peer: &Peer,
    window: usize,
    lasts: Duration,
) -> Result<f64, String> {
    let mut flights = VecDeque::new();
    let (began, mut answered) = (Instant::now(), 0_u64);
    while began.elapsed() < lasts {
        while flights.len() < window {
            flights.push_back(send(cx, peer).ok_or("no room for a few requests")?);
        }
        if let Some(call) = flights.pop_front() {
            answered += u64::from(is_answered(call.await)?);
        }
    }
    let rate = answered as f64 / began.elapsed().as_secs_f64();
    for call in flights {
        is_answered(call.await)?;
    }
    Ok(rate)
}

/// A few are refused, too, if something else has had the server's CPU for longer than the target.
fn is_answered(reply: Result<Bytes, CallError>) -> Result<bool, String> {
    match reply {
        Ok(_) => Ok(true),
        Err(CallError::Nack { .. }) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

/// Sends span after span without a pause, at random moments of each one's rate, and waits for the
/// last answer.
pub(crate) async fn open_loop(cx: &TaskContext, peer: &Peer, spans: &[Span]) -> Vec<Ends> {
    let mut random = Rng::with_seed(7);
    let mut ends: Vec<Ends> = Vec::new();
    let mut began: Vec<Instant> = Vec::new();
    let mut flights: VecDeque<Flight> = VecDeque::new();
    for (number, span) in spans.iter().enumerate() {
        let start = Instant::now();
        ends.push(Ends::new());
        began.push(start);
        let (end, mut due) = (start + span.lasts, start);
        while due < end {
            let now = Instant::now();
            for _ in 0..ROUND_MAX {
                if due > now || due >= end {
                    break;
                }
                ends[number].offered += 1;
                match send(cx, peer) {
                    Some(call) => flights.push_back(Flight {
                        due,
                        span: number,
                        call,
                    }),
                    None => ends[number].not_sent += 1,
                }
                let gap_s = -random.f64().max(1e-9).ln() / span.per_s;
                due += Duration::from_secs_f64(gap_s);
            }
            land(&mut flights, &mut ends, &began, spans).await;
            yield_now().await;
        }
        ends[number].lasted = start.elapsed();
    }
    while !flights.is_empty() {
        land(&mut flights, &mut ends, &began, spans).await;
        yield_now().await;
    }
    ends
}

/// Those of one connection end in their order, but for what a client's own queue has no room for.
async fn land(
    flights: &mut VecDeque<Flight>,
    ends: &mut [Ends],
    began: &[Instant],
    spans: &[Span],
) {
    while let Some(flight) = flights.front_mut() {
        let Some(reply) = poll_once(&mut flight.call).await else {
            break;
        };
        let (due, span) = (flight.due, flight.span);
        flights.pop_front();
        let ends = &mut ends[span];
        let mut took = None;
        match reply {
            Ok(_) => {
                let latency = due.elapsed();
                took = Some(latency);
                ends.answered += 1;
                ends.latency.saturating_record(latency.as_nanos() as u64);
            }
            Err(CallError::Nack { .. }) => ends.nacked += 1,
            Err(CallError::NotSent(_)) => ends.not_sent += 1,
            Err(_) => ends.indeterminate += 1,
        }
        if spans[span].keeps_each {
            ends.each.push((due - began[span], took));
        }
    }
}
