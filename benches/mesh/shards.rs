//! One runtime that calls itself: on each shard a task sends to its own shard's endpoint, and the
//! route key says whether the message stays or crosses. So n shards take n CPUs, both ends
//! together, and everything but the crossing is shared with nobody.

use std::{
    collections::VecDeque,
    error::Error,
    time::{Duration, Instant},
};

use corelane::{
    Config, Runtime,
    client::Peer,
    config::{Cpus, IdleStrategy},
    handler::{Handler, TaskContext, inline_raw},
    metrics::Counters,
    wire::shard_of_key,
};

/// Calls under way of each busy shard.
pub(crate) const DEPTH: usize = 256;
const PATIENCE: Duration = Duration::from_secs(10);

/// A variant.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) shards: usize,
    /// Of a hundred messages, how many run on another shard.
    crossing: usize,
    depth: usize,
    /// Shards that send; the others only serve.
    senders: usize,
    pub(crate) is_parking: bool,
}

/// What it came to.
#[derive(Debug)]
pub(crate) struct Measured {
    messages: u64,
    took: Duration,
    counters: Counters,
}

impl Run {
    /// All shards send as much as they can.
    pub(crate) fn busy(shards: usize, crossing: usize) -> Self {
        Self {
            shards,
            crossing,
            depth: DEPTH,
            senders: shards,
            is_parking: false,
        }
    }

    /// One of two sends one message at a time.
    pub(crate) fn alone(crossing: usize) -> Self {
        Self {
            depth: 1,
            senders: 1,
            ..Self::busy(2, crossing)
        }
    }

    /// As `alone`, all crossing, and the shards park between messages.
    pub(crate) fn parking() -> Self {
        Self {
            is_parking: true,
            ..Self::alone(100)
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.depth > 1
    }

    pub(crate) fn name(&self) -> String {
        let Self {
            shards, crossing, ..
        } = self;
        match (self.is_busy(), self.is_parking) {
            (true, _) => format!("{shards} shards, {crossing}% crossing, million/s"),
            (false, false) => format!("one message at a time, {crossing}% crossing, µs each"),
            (false, true) => format!("the same, {crossing}% crossing, parking, µs each"),
        }
    }

    pub(crate) fn measure(
        &self,
        cpus: &[usize],
        span: Duration,
    ) -> Result<Measured, Box<dyn Error>> {
        let runtime = self.start(cpus)?;
        let endpoints: Vec<String> = runtime.shards().map(|(_, it)| it[0].clone()).collect();
        let mut tasks = Vec::new();
        let ends_at = Instant::now() + span / 5 + span;
        for (shard, endpoint) in endpoints.iter().enumerate().take(self.senders) {
            let peer = runtime.client().connect_routed(shard, endpoint)?;
            let (depth, keys) = (self.depth, self.keys(shard));
            let began_at = ends_at - span;
            tasks.push(runtime.run_on(shard, move |cx| {
                send(cx, peer, keys, depth, (began_at, ends_at))
            }));
        }
        let sent = tasks
            .into_iter()
            .map(|task| task.wait().ok_or("a task panicked"));
        let messages = sent.sum::<Result<u64, _>>()?;
        let counters = runtime.metrics().total();
        let is_right = match (self.crossing, self.shards) {
            (0, _) | (_, 1) => counters.hopped_in == 0,
            _ => counters.hopped_in >= messages * self.crossing as u64 / 101,
        };
        if !is_right {
            return Err(format!("{self:?} hopped {} times", counters.hopped_in).into());
        }
        Ok(Measured {
            messages,
            took: span,
            counters,
        })
    }

    fn start(&self, cpus: &[usize]) -> Result<Runtime, Box<dyn Error>> {
        let idle = match (self.is_parking, self.shards <= cpus.len()) {
            (true, _) => IdleStrategy::Park,
            (false, true) => IdleStrategy::Spin,
            // Who shares a CPU and spins waits for the scheduler.
            (false, false) => IdleStrategy::Adaptive,
        };
        let shared: Vec<usize> = cpus.iter().copied().cycle().take(self.shards).collect();
        let config = Config::default()
            .with_shards(self.shards)
            .with_cpus(Cpus::List(shared))
            .with_oversubscribe(true)
            .with_idle(idle)
            .with_listen(["tcp://127.0.0.1:0"]);
        Ok(Runtime::builder(config).handler(echo()).start()?)
    }

    /// Keys to be used in turn.
    fn keys(&self, own: usize) -> [u64; 2] {
        let key_of = |shard: usize| {
            let mut keys = 1..;
            let key = keys.find(|&key| shard_of_key(key, self.shards) == shard);
            key.unwrap_or(0)
        };
        let (stays, crosses) = (key_of(own), key_of((own + 1) % self.shards));
        match self.crossing {
            0 => [stays, stays],
            100 => [crosses, crosses],
            _ => [stays, crosses],
        }
    }
}

fn echo() -> Handler {
    let echo = inline_raw("echo", |payload, reply, _| {
        reply.extend_from_slice(payload);
        Ok(())
    });
    echo.by_route_key()
}

/// Sends until the end, and returns how many were answered after the warm-up.
async fn send(
    cx: TaskContext,
    peer: Peer,
    keys: [u64; 2],
    depth: usize,
    (began_at, ends_at): (Instant, Instant),
) -> u64 {
    let client = cx.client();
    let call = |n: usize| {
        let message = client
            .message("echo")
            .route_key(keys[n % 2])
            .raw_copy(&[7; 64]);
        let request = message.to(&peer).request().within(PATIENCE);
        request.send().expect("there is room")
    };
    let mut under_way: VecDeque<_> = (0..depth).map(call).collect();
    let (mut counted, mut sent) = (0, depth);
    while let Some(oldest) = under_way.pop_front() {
        let reply = oldest.await.expect("is answered");
        assert_eq!(reply.len(), 64);
        let now = Instant::now();
        counted += u64::from(now >= began_at && now < ends_at);
        if now < ends_at {
            under_way.push_back(call(sent));
            sent += 1;
        }
    }
    counted
}

impl Measured {
    /// In the unit that the run's name says.
    pub(crate) fn figure(&self, run: &Run) -> f64 {
        let (messages, seconds) = (self.messages as f64, self.took.as_secs_f64());
        match run.is_busy() {
            true => messages / seconds / 1e6,
            false => seconds / messages * 1e6,
        }
    }

    pub(crate) fn woken_per_message(&self) -> f64 {
        self.counters.shards_woken as f64 / self.counters.handled as f64
    }
}
