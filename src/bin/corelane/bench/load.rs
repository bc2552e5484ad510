//! The load of one shard: it is made on the main thread, runs as a task of its shard, and comes
//! back with what it recorded.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use corelane::{
    client::{Addressed, LocalClient, Peer, Raw},
    error::{CallError, NotSent, SendError},
    handler::TaskContext,
    metrics::{Blank, Interval, Recorder},
    wire::{HandlerKey, Reason},
};
use futures_lite::future::{or, yield_now};
use quanta::Instant;

use super::{
    departures::{Departures, Extent, Next, SharedPace},
    flights::Flights,
    watch::Progress,
};
use crate::args::Mode;

/// Messages that leave between two turns of the reactor.
const BURST_MAX: u64 = 64;
/// A send later than this after its time is told.
const LATE: Duration = Duration::from_millis(1);
/// Turns of the reactor that a full queue is given before the load waits for time to pass.
const FULL_TURNS_MAX: u32 = 64;
const FULL_PAUSE: Duration = Duration::from_micros(100);

/// What is sent, again and again.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) handler: Arc<str>,
    /// 0: none.
    pub(super) route_key: u64,
    pub(super) payload: Bytes,
    pub(super) mode: Mode,
    pub(super) within: Duration,
}

/// The load of one shard.
pub(super) struct Load {
    message: Message,
    peer: Peer,
    recorder: Recorder,
}

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Messages that left: each of them is in one of the next three, unless it was one-way.
    pub(super) sent: u64,
    pub(super) answered: u64,
    pub(super) nacked: u64,
    pub(super) indeterminate: u64,
    /// Messages that a full queue refused.
    pub(super) refused: u64,
    /// Messages that were accepted, and did not leave.
    pub(super) unsent: u64,
    /// Messages that left more than [`LATE`] after their time.
    pub(super) late: u64,
    /// How much later the latest of them left.
    pub(super) latest: Duration,
    /// From the first message to the last answer.
    pub(super) span: Option<(Instant, Instant)>,
    /// Why the load ended before its time.
    pub(super) ended_early: Option<String>,
}

impl Tally {
    /// Adds another shard's.
    pub(super) fn add(&mut self, other: Tally) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.nacked += other.nacked;
        self.indeterminate += other.indeterminate;
        self.refused += other.refused;
        self.unsent += other.unsent;
        self.late += other.late;
        self.latest = self.latest.max(other.latest);
        self.span = match (self.span, other.span) {
            (Some((began, ended)), Some((other_began, other_ended))) => {
                Some((began.min(other_began), ended.max(other_ended)))
            }
            (span, other) => span.or(other),
        };
        self.ended_early = self.ended_early.take().or(other.ended_early);
    }

    /// From the first message of any shard to the last answer of any.
    pub(super) fn took(&self) -> Duration {
        let took = |(began, ended): (Instant, Instant)| ended.saturating_duration_since(began);
        self.span.map(took).unwrap_or_default()
    }

    fn note_departure(&mut self, due: Instant, now: Instant) {
        let lag = now.saturating_duration_since(due);
        if lag > LATE {
            self.late += 1;
            self.latest = self.latest.max(lag);
        }
    }
}

impl Load {
    pub(super) fn new(message: Message, peer: Peer) -> Self {
        let recorder = Recorder::new(Arc::from([]));
        Self {
            message,
            peer,
            recorder,
        }
    }

    /// Forgets what was recorded, and keeps the memory that it took.
    pub(super) fn forget(&mut self) {
        let used = self.recorder.take(Blank::new(0));
        self.recorder.take(used.clear());
    }

    /// What was recorded since then.
    pub(super) fn into_interval(mut self) -> Interval {
        self.recorder.take(Blank::new(0))
    }

    /// Runs on the shard of its peer, until its extent is reached and everything is answered.
    pub(super) async fn run(
        mut self,
        cx: TaskContext,
        pace: SharedPace,
        extent: Extent,
        progress: Arc<Progress>,
    ) -> (Self, Tally) {
        let began = cx.client().now();
        let departures = Departures::new(pace, extent, began);
        let mut pilot = Pilot {
            cx: &cx,
            departures,
            tally: Tally::default(),
            progress: &progress,
        };
        let (message, peer) = (&self.message, &self.peer);
        let within = message.within;
        match message.mode {
            Mode::Request => {
                let send = |client| message.to(client, peer).request().within(within).send();
                pilot.fly(&mut self.recorder, message.key(), send).await;
            }
            Mode::Confirm => {
                let send = |client| message.to(client, peer).confirm().within(within).send();
                pilot.fly(&mut self.recorder, message.key(), send).await;
            }
            Mode::OneWay => pilot.pour(message, peer).await,
        }
        let mut tally = pilot.tally;
        tally.span = Some((began, cx.client().now()));
        (self, tally)
    }
}

impl Message {
    fn to<'c>(&self, client: &'c LocalClient, peer: &'c Peer) -> Addressed<'c, LocalClient, Raw> {
        client
            .message(&*self.handler)
            .route_key(self.route_key)
            .raw(self.payload.clone())
            .to(peer)
    }

    fn key(&self) -> u64 {
        HandlerKey::of(&self.handler).get()
    }
}

/// Sends what is due, and takes what lands.
struct Pilot<'a> {
    cx: &'a TaskContext,
    departures: Departures,
    tally: Tally,
    progress: &'a Progress,
}

impl<'a> Pilot<'a> {
    /// Messages that are answered.
    async fn fly<F, T>(
        &mut self,
        recorder: &mut Recorder,
        key: u64,
        send: impl Fn(&'a LocalClient) -> Result<F, SendError>,
    ) where
        F: Future<Output = Result<T, CallError>> + Unpin,
    {
        let cx = self.cx;
        let mut flights = Flights::new();
        loop {
            let now = cx.client().now();
            let landed = match self.next(now, flights.under_way()) {
                Next::Now(due) => {
                    self.tally.note_departure(due, now);
                    match send(cx.client()) {
                        Ok(flight) => flights.launch(flight, due),
                        Err(error) => self.note_refusal(&error),
                    }
                    self.departed().await;
                    continue;
                }
                Next::At(due) => {
                    let wait = due.saturating_duration_since(now);
                    let due = async {
                        cx.sleep(wait).await;
                        None
                    };
                    or(async { Some(flights.land().await) }, due).await
                }
                Next::AfterLanding => Some(flights.land().await),
                Next::Never if flights.under_way() == 0 => return,
                Next::Never => Some(flights.land().await),
            };
            if let Some((since, result)) = landed {
                let took = cx.client().now().saturating_duration_since(since);
                if self.note_landing(result) {
                    let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                    recorder.record_round_trip(key, took_ns);
                }
            }
        }
    }

    /// Messages that nothing answers, and one that is, to see the others in.
    async fn pour(&mut self, message: &Message, peer: &Peer) {
        let cx = self.cx;
        let before = peer.account();
        let mut room = Room::default();
        loop {
            let now = cx.client().now();
            let due = match self.next(now, 0) {
                Next::Now(due) => due,
                Next::At(due) => {
                    cx.sleep(due.saturating_duration_since(now)).await;
                    continue;
                }
                Next::AfterLanding | Next::Never => break,
            };
            match message.to(cx.client(), peer).one_way() {
                // In a closed loop it is the queue's room that lets the next one go.
                Err(error) if error.why == NotSent::Full && self.is_closed_loop() => {
                    room.wait(cx).await;
                    continue;
                }
                Err(error) => self.note_refusal(&error),
                Ok(()) => room.is_there(),
            }
            self.tally.note_departure(due, now);
            self.departed().await;
            // Nobody is told of a one-way message that found no connection, or a draining peer.
            if peer.account().lost > before.lost {
                self.end_early("one-way messages were lost with their connection".to_owned());
            }
        }
        let is_seen_in = self.see_in(message, peer).await;
        let after = peer.account();
        let sent = after.one_way_sent - before.one_way_sent;
        self.tally.sent += sent;
        self.tally.unsent += after.lost - before.lost;
        if !is_seen_in {
            self.tally.indeterminate += sent;
        }
    }

    /// Whether the peer answers a confirmed message on the same connection: then it has read all
    /// that were sent before it.
    async fn see_in(&mut self, message: &Message, peer: &Peer) -> bool {
        let cx = self.cx;
        let until = cx.client().now() + message.within;
        let mut room = Room::default();
        loop {
            let confirm = message.to(cx.client(), peer).confirm();
            match confirm.within(message.within).await {
                Ok(()) | Err(CallError::Nack { .. }) => return true,
                Err(CallError::NotSent(error))
                    if error.why == NotSent::Full && cx.client().now() < until =>
                {
                    room.wait(cx).await;
                }
                Err(error) => {
                    self.end_early(error.to_string());
                    return false;
                }
            }
        }
    }

    fn next(&self, now: Instant, under_way: usize) -> Next {
        match self.tally.ended_early {
            None => self.departures.next(now, under_way),
            Some(_) => Next::Never,
        }
    }

    fn is_closed_loop(&self) -> bool {
        self.departures.is_closed_loop()
    }

    async fn departed(&mut self) {
        self.departures.depart();
        let departed = self.departures.departed();
        self.progress.set(self.cx.shard().shard, departed);
        if departed.is_multiple_of(BURST_MAX) {
            yield_now().await;
        }
    }

    fn note_refusal(&mut self, error: &SendError) {
        match error.why {
            NotSent::Full | NotSent::Outstanding => self.tally.refused += 1,
            _ => {
                self.tally.unsent += 1;
                self.end_early(error.to_string());
            }
        }
    }

    /// Counts how a call ended. True if it was answered: then its time is one.
    fn note_landing<T>(&mut self, result: Result<T, CallError>) -> bool {
        match result {
            Ok(_) => {
                self.tally.answered += 1;
                self.tally.sent += 1;
                return true;
            }
            Err(CallError::Nack { reason, text }) => {
                self.tally.nacked += 1;
                self.tally.sent += 1;
                if reason == Reason::Draining {
                    self.end_early(format!("nack: {reason}: {text}"));
                }
            }
            Err(CallError::Indeterminate(_)) => {
                self.tally.indeterminate += 1;
                self.tally.sent += 1;
            }
            // It comes back while the connection is made again.
            Err(CallError::NotSent(error)) if error.why == NotSent::ConnectionLost => {
                self.tally.unsent += 1;
            }
            Err(CallError::NotSent(error)) => self.note_refusal(&error),
            Err(error @ CallError::Reply(_)) => self.end_early(error.to_string()),
        }
        false
    }

    /// There is no use in going on.
    fn end_early(&mut self, why: String) {
        self.tally.ended_early.get_or_insert(why);
    }
}

/// How often the queue was full in a row.
#[derive(Default)]
struct Room {
    full_turns: u32,
}

impl Room {
    fn is_there(&mut self) {
        self.full_turns = 0;
    }

    /// Gives the reactor a turn, in which it may make room. If that has not helped for long, the
    /// peer is slow, and time must pass.
    async fn wait(&mut self, cx: &TaskContext) {
        self.full_turns += 1;
        match self.full_turns < FULL_TURNS_MAX {
            true => yield_now().await,
            false => cx.sleep(FULL_PAUSE).await,
        }
    }
}
