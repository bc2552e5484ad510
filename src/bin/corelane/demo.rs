//! The demonstration handlers that `corelane serve` serves: one of each kind, and one for each way
//! to fail.

use std::{
    hint,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use corelane::{
    error::HandlerError,
    handler::{Handler, inline, inline_raw, inline_raw_with, spawned},
};
use serde::{Deserialize, Serialize};

/// A minute is long enough to see what a handler does that does not return.
const SPIN_US_MAX: u64 = 60_000_000;
const SLEEP_MS_MAX: u64 = 3_600_000;

/// All of them, for a process of so many shards.
pub(crate) fn handlers(shards: usize) -> Vec<Handler> {
    let counts = Counts::new(shards);
    vec![
        echo(),
        sum(),
        count(counts.clone()),
        count_read(counts),
        fail(),
        panic(),
        spin(),
        sleep(),
        location(),
    ]
}

fn echo() -> Handler {
    inline_raw("echo", |payload, reply, cx| {
        if cx.wants_reply() {
            reply.extend_from_slice(payload);
        }
        Ok(())
    })
}

#[derive(Deserialize)]
struct Sum {
    a: i64,
    b: i64,
}

#[derive(Serialize)]
struct Total {
    total: i64,
}

fn sum() -> Handler {
    inline("sum", |Sum { a, b }: Sum, _cx| match a.checked_add(b) {
        Some(total) => Ok(Total { total }),
        None => Err(HandlerError::new("the sum is beyond 64 bits")),
    })
}

/// How many messages `count` has had, by shard. Each shard writes its own line of the cache, so
/// that counting costs them nothing of each other; a reader sums them up.
#[derive(Clone)]
struct Counts(Arc<[Count]>);

/// Two lines of 64 bytes: processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Count(AtomicU64);

impl Counts {
    fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| Count::default()).collect())
    }

    /// One more on this shard, the only one that writes here: so a load and a store will do.
    fn add_one(&self, shard: usize) {
        if let Some(Count(count)) = self.0.get(shard) {
            count.store(count.load(Relaxed) + 1, Relaxed);
        }
    }

    fn sum(&self) -> u64 {
        self.0.iter().map(|Count(count)| count.load(Relaxed)).sum()
    }
}

fn count(counts: Counts) -> Handler {
    inline_raw_with("count", move |info| {
        let (counts, shard) = (counts.clone(), info.shard);
        move |_payload, _reply, _cx| {
            counts.add_one(shard);
            Ok(())
        }
    })
}

#[derive(Serialize)]
struct Counted {
    count: u64,
}

/// Raw, as `where` is: nothing is asked, so any payload will do, none included.
fn count_read(counts: Counts) -> Handler {
    inline_raw("count.read", move |_payload, reply, _cx| {
        let count = counts.sum();
        Ok(serde_json::to_writer(reply, &Counted { count })?)
    })
}

fn fail() -> Handler {
    inline_raw("fail", |_payload, _reply, _cx| {
        Err(HandlerError::new("asked to fail"))
    })
}

fn panic() -> Handler {
    inline_raw("panic", |_payload, _reply, _cx| panic!("asked to panic"))
}

#[derive(Serialize, Deserialize)]
struct Spin {
    us: u64,
}

fn spin() -> Handler {
    inline("spin", |Spin { us }: Spin, _cx| {
        if us > SPIN_US_MAX {
            let text = format!("{us} us are too long; spin takes {SPIN_US_MAX} at most");
            return Err(HandlerError::new(text));
        }
        let (began, duration) = (Instant::now(), Duration::from_micros(us));
        while began.elapsed() < duration {
            hint::spin_loop();
        }
        Ok(Spin { us })
    })
}

#[derive(Serialize, Deserialize)]
struct Sleep {
    ms: u64,
}

fn sleep() -> Handler {
    spawned("sleep", |Sleep { ms }: Sleep, cx| async move {
        if ms > SLEEP_MS_MAX {
            let text = format!("{ms} ms are too long; sleep takes {SLEEP_MS_MAX} at most");
            return Err(HandlerError::new(text));
        }
        cx.sleep(Duration::from_millis(ms)).await;
        Ok(Sleep { ms })
    })
}

#[derive(Serialize)]
struct Location {
    shard: usize,
    cpu: usize,
    numa_node: usize,
}

/// The CPU is the one that the kernel says this runs on, so that anybody can see that shards stay
/// where they were put.
fn location() -> Handler {
    inline_raw("where", |_payload, reply, cx| {
        let info = cx.shard();
        let location = Location {
            shard: info.shard,
            cpu: rustix::thread::sched_getcpu(),
            numa_node: info.numa_node,
        };
        Ok(serde_json::to_writer(reply, &location)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_summed_over_shards_that_share_no_line() {
        let counts = Counts::new(3);
        for shard in [0, 2, 2, 1, 7] {
            counts.add_one(shard);
        }
        assert_eq!(counts.sum(), 4, "there is no shard 7");
        assert_eq!(size_of::<Count>(), 128);
    }
}
