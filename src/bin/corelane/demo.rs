//! The demonstration handlers that `corelane serve` serves: one of each kind, and one for each way
//! to fail.

use std::{
    cell::Cell,
    hint, thread,
    time::{Duration, Instant},
};

use corelane::{
    error::HandlerError,
    handler::{Handler, blocking, inline, inline_raw, spawned},
};
use serde::{Deserialize, Serialize};

/// A minute is long enough to see what a handler does that does not return.
const SPIN_US_MAX: u64 = 60_000_000;
const SLEEP_MS_MAX: u64 = 3_600_000;

/// All of them.
pub(crate) fn handlers() -> Vec<Handler> {
    vec![
        echo(),
        sum(),
        count(),
        count_read(),
        fail(),
        panic(),
        spin(),
        sleep(),
        block(),
        location("where"),
        location("where.one").on_last_shard(),
        location("where.key").by_route_key(),
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

thread_local! {
    /// How many messages `count` has had on this shard, which is a thread: nobody else sees it.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() -> Handler {
    inline_raw("count", |_payload, _reply, _cx| {
        COUNT.set(COUNT.get() + 1);
        Ok(())
    })
}

#[derive(Serialize)]
struct Counted {
    count: u64,
}

/// Of the shard that reads it. Raw, as `where` is: nothing is asked, so any payload will do, none
/// included.
fn count_read() -> Handler {
    inline_raw("count.read", |_payload, reply, _cx| {
        let count = COUNT.get();
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
        cx.sleep(sleep_time(ms, "sleep")?).await;
        Ok(Sleep { ms })
    })
}

/// As `sleep`, on a thread of the pool for such handlers, which it takes for as long.
fn block() -> Handler {
    blocking("block", |Sleep { ms }: Sleep, _cx| {
        thread::sleep(sleep_time(ms, "block")?);
        Ok(Sleep { ms })
    })
}

fn sleep_time(ms: u64, handler: &str) -> Result<Duration, HandlerError> {
    if ms > SLEEP_MS_MAX {
        let text = format!("{ms} ms are too long; {handler} takes {SLEEP_MS_MAX} at most");
        return Err(HandlerError::new(text));
    }
    Ok(Duration::from_millis(ms))
}

#[derive(Serialize)]
struct Location {
    shard: usize,
    cpu: usize,
    numa_node: usize,
}

/// The CPU is the one that the kernel says this runs on, so that anybody can see that shards stay
/// where they were put. `where` runs on the shard that reads it, `where.one` on the last one, and
/// `where.key` on the one that its route key belongs to.
fn location(name: &str) -> Handler {
    inline_raw(name, |_payload, reply, cx| {
        let info = cx.shard();
        let location = Location {
            shard: info.shard,
            cpu: rustix::thread::sched_getcpu(),
            numa_node: info.numa_node,
        };
        Ok(serde_json::to_writer(reply, &location)?)
    })
}
