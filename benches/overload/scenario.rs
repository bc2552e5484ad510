//! One kind of work, and what becomes of it near the peak, far above it, and right after.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use corelane::{
    Config, Runtime,
    config::{Cpus, IdleStrategy},
    handler::{Handler, blocking_raw, inline_raw, spawned_raw},
};
use serde::Serialize;

use crate::flood::{Phase, Span, closed_loop, open_loop};

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// What a message costs.
    pub(crate) work: Duration,
    /// `limits.shed_target_us`.
    pub(crate) target: Duration,
    pub(crate) has_bars: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Inline,
    Spawned,
    Blocking,
}

#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) peak_per_s: f64,
    pub(crate) half: Phase,
    pub(crate) near: Phase,
    pub(crate) over: Phase,
    /// Of `peak_per_s`.
    pub(crate) goodput: f64,
    /// Of the p99 near the peak.
    pub(crate) p99_ratio: f64,
    /// What a message costs that is not handled, if all that is missing to the peak goes there.
    pub(crate) cost_per_refusal_ns: f64,
    /// From the flood's end until requests are answered as at half of the peak.
    pub(crate) back_after_ms: Option<f64>,
    pub(crate) resident_before_mib: f64,
    pub(crate) resident_most_mib: f64,
    /// `limits.buffered_bytes_max` of both ends.
    pub(crate) budget_mib: f64,
    /// Messages that were refused because they had waited.
    pub(crate) shed: u64,
}

const MIB: u64 = 1 << 20;
const BUFFERED_BYTES_MAX: u64 = 16 * MIB;
/// A turn's answers leave at its end: with 100 µs a message, 32 of them would wait for 3 ms.
const TURN_MESSAGES_MAX: u64 = 8;
/// Those of the peak, and of what follows a flood, that are enough to see it.
const WINDOW: usize = 8;
const BACK_FOR: Duration = Duration::from_secs(1);
/// So many requests in a row are answered in time once all is as before.
const BACK_IN_A_ROW: usize = 50;

impl Scenario {
    pub(crate) fn measure(
        &self,
        (server_cpu, client_cpu): (usize, usize),
        flood: Duration,
        times: f64,
    ) -> Result<Measured, String> {
        let server = self.config(server_cpu).with_listen(["tcp://127.0.0.1:0"]);
        let server = Runtime::builder(server).handlers([self.handler()]).start();
        let server = server.map_err(|error| error.to_string())?;
        let client = Runtime::builder(self.config(client_cpu)).start();
        let client = client.map_err(|error| error.to_string())?;
        let peer = client.client().connect(&server.endpoints()[0]);
        let peer = peer.map_err(|error| error.to_string())?;

        let calm = Duration::from_secs_f64((flood.as_secs_f64() / 4.0).clamp(1.0, 5.0));
        let to = peer.clone();
        let peak = client.run_on(0, move |cx| async move {
            closed_loop(&cx, &to, WINDOW, calm / 4).await?;
            closed_loop(&cx, &to, WINDOW, calm).await
        });
        let peak_per_s = peak.wait().ok_or("the client's task has panicked")??;

        let span = |share: f64, lasts, keeps_each| Span {
            per_s: share * peak_per_s,
            lasts,
            keeps_each,
        };
        let calm_spans = [span(0.5, calm, false), span(0.9, calm, false)];
        let to = peer.clone();
        let calm = client.run_on(0, move |cx| async move {
            // Apart, so that what is left of one does not wait in the other.
            let half = open_loop(&cx, &to, &calm_spans[..1]).await;
            let near = open_loop(&cx, &to, &calm_spans[1..]).await;
            (half, near)
        });
        let (half, near) = calm.wait().ok_or("the client's task has panicked")?;
        let (half, near) = (half[0].phase(), near[0].phase());

        let spans = [span(times, flood, false), span(0.5, BACK_FOR, true)];
        let resident_before = resident_bytes();
        let is_over = Arc::new(AtomicBool::new(false));
        let told = is_over.clone();
        let flooding = client.run_on(0, move |cx| async move {
            let ends = open_loop(&cx, &peer, &spans).await;
            told.store(true, Relaxed);
            ends
        });
        let mut resident_most = resident_before;
        let patience = Instant::now() + flood + Duration::from_secs(60);
        while !is_over.load(Relaxed) && Instant::now() < patience {
            resident_most = resident_most.max(resident_bytes());
            thread::sleep(Duration::from_millis(20));
        }
        let ends = flooding.wait().ok_or("the client's task has panicked")?;
        let over = ends[0].phase();
        let in_time = Duration::from_secs_f64(near.p99_us / 1e6);
        let missing_ns = (1.0 - over.answered_per_s / peak_per_s) * 1e9;
        let shed = server.metrics().total().shed;
        drop(client);
        Ok(Measured {
            peak_per_s,
            half,
            near,
            over,
            goodput: over.answered_per_s / peak_per_s,
            p99_ratio: over.p99_us / near.p99_us,
            cost_per_refusal_ns: missing_ns / over.nacked_per_s,
            back_after_ms: back_after(&ends[1].each, in_time).map(|it| it.as_secs_f64() * 1e3),
            resident_before_mib: resident_before as f64 / MIB as f64,
            resident_most_mib: resident_most as f64 / MIB as f64,
            budget_mib: (2 * BUFFERED_BYTES_MAX / MIB) as f64,
            shed,
        })
    }

    fn config(&self, cpu: usize) -> Config {
        let target_us = self.target.as_micros() as u64;
        Config::default()
            .with_shards(1)
            .with_cpus(Cpus::List(vec![cpu]))
            .with_idle(IdleStrategy::Spin)
            .with_blocking(|blocking| blocking.threads = 1)
            .with_limits(|limits| {
                limits.buffered_bytes_max = BUFFERED_BYTES_MAX;
                limits.turn_messages_max = TURN_MESSAGES_MAX;
                limits.inline_budget_us = 1_000_000;
                limits.shed_target_us = target_us;
            })
    }

    fn handler(&self) -> Handler {
        let work = self.work;
        match self.kind {
            Kind::Inline => inline_raw("work", move |payload, reply, _cx| {
                spin(work);
                reply.extend_from_slice(payload);
                Ok(())
            }),
            Kind::Spawned => spawned_raw("work", move |payload: Bytes, _cx| async move {
                spin(work);
                Ok(payload)
            }),
            Kind::Blocking => blocking_raw("work", move |payload, _cx| {
                thread::sleep(work);
                Ok(payload)
            }),
        }
    }
}

fn spin(work: Duration) {
    let began = Instant::now();
    while began.elapsed() < work {
        std::hint::spin_loop();
    }
}

/// When the first of some requests in a row was due that were all answered in time.
fn back_after(each: &[(Duration, Option<Duration>)], in_time: Duration) -> Option<Duration> {
    let is_in_time =
        |&(_, took): &(Duration, Option<Duration>)| took.is_some_and(|took| took <= in_time);
    let mut rows = each.windows(BACK_IN_A_ROW);
    let row = rows.find(|row| row.iter().all(is_in_time))?;
    Some(row[0].0)
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|it| it.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
