//! Waiting for the loads, with a bar that shows how far they are.

use std::{
    future::Future,
    io::{self, IsTerminal},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use corelane::runtime::Running;
use futures_lite::future::{block_on, poll_once};
use indicatif::{ProgressBar, ProgressStyle};

use super::departures::Extent;

/// How often the bar is drawn. Between two looks this thread sleeps, and disturbs no shard.
const DRAWN_EVERY: Duration = Duration::from_millis(100);

/// Messages that have left, by shard. Each shard writes its own.
pub(super) struct Progress(Box<[Departed]>);

/// Two lines of 64 bytes: processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Departed(AtomicU64);

impl Progress {
    pub(super) fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| Departed::default()).collect())
    }

    pub(super) fn set(&self, shard: usize, departed: u64) {
        if let Some(Departed(count)) = self.0.get(shard) {
            count.store(departed, Relaxed);
        }
    }

    fn sum(&self) -> u64 {
        self.0
            .iter()
            .map(|Departed(count)| count.load(Relaxed))
            .sum()
    }
}

/// Blocks until all have ended, and returns what they end with; what a stopped shard owes is
/// missing. With a bar if it is wanted and stderr is a terminal.
pub(super) fn wait<T>(
    running: Vec<Running<T>>,
    progress: &Progress,
    extent: Extent,
    is_watched: bool,
) -> Vec<T> {
    if !is_watched || !io::stderr().is_terminal() {
        return running.into_iter().filter_map(Running::wait).collect();
    }
    let bar = bar(extent);
    let began = Instant::now();
    let mut waiting = running;
    let mut ended = Vec::new();
    while !waiting.is_empty() {
        waiting.retain_mut(|one| match poll_now(one) {
            None => true,
            Some(output) => {
                ended.extend(output);
                false
            }
        });
        let departed = progress.sum();
        match extent {
            Extent::Count(_) => bar.set_position(departed),
            Extent::For(_) => bar.set_position(millis(began.elapsed())),
        }
        bar.set_message(format!("{departed} sent"));
        if !waiting.is_empty() {
            thread::sleep(DRAWN_EVERY);
        }
    }
    bar.finish_and_clear();
    ended
}

fn poll_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    block_on(poll_once(future))
}

fn bar(extent: Extent) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {percent:>3} %  {msg}  {elapsed}");
    ProgressBar::new(match extent {
        Extent::Count(count) => count,
        Extent::For(time) => millis(time),
    })
    .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
