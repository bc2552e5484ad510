//! Who lists the peers holds up nobody who looks one up: not while it copies what they say.
//!
//! A file of its own, because it shows that from within the allocator, which is the process's.
#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{
        AtomicBool, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
    thread,
    time::{Duration, Instant},
};

use corelane::{Config, Runtime};
use tempfile::TempDir;

/// Far longer than a look-up takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many bytes a peer's endpoint has, of which a copy is waited for.
static ENDPOINT_BYTES: AtomicUsize = AtomicUsize::new(usize::MAX);
/// A copy is being made.
static IS_COPYING: AtomicBool = AtomicBool::new(false);
/// Somebody has looked the peer up meanwhile.
static HAS_LOOKED: AtomicBool = AtomicBool::new(false);
static HAS_WAITED_IN_VAIN: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread lists the peers.
    static LISTS: Cell<bool> = const { Cell::new(false) };
}

struct Halting;

/// Keeps who copies the endpoint in the middle of it until another thread has looked the peer up.
fn halt(layout: Layout) {
    let is_copy = layout.align() == 1 && layout.size() == ENDPOINT_BYTES.load(Relaxed);
    if !(is_copy && LISTS.try_with(Cell::get).unwrap_or(false)) {
        return;
    }
    IS_COPYING.store(true, Release);
    let began = Instant::now();
    while !HAS_LOOKED.load(Acquire) {
        if began.elapsed() > PATIENCE {
            return HAS_WAITED_IN_VAIN.store(true, Relaxed);
        }
        thread::yield_now();
    }
}

// SAFETY: every call goes to `System` unchanged; `halt` does not allocate (a `const` thread-local
// without a destructor, atomics, the clock).
unsafe impl GlobalAlloc for Halting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        halt(layout);
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HALTING: Halting = Halting;

fn start(listen: &[&str]) -> Runtime {
    let config = Config::default().with_shards(1).with_oversubscribe(true);
    let config = config.with_listen(listen.iter().copied());
    let started = Runtime::builder(config).start();
    started.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn who_looks_a_peer_up_does_not_wait_for_who_lists_them() {
    let directory = TempDir::new().unwrap();
    let ipc = format!(
        "ipc://{}/of-a-length-of-its-own",
        directory.path().display()
    );
    let service = start(&[&ipc]);
    let caller = start(&["tcp://127.0.0.1:0"]);
    let peer = caller.client().connect(&ipc).unwrap();
    let health = caller.client().message("_health").to(&peer);
    health.request().wait().unwrap();
    ENDPOINT_BYTES.store(ipc.len(), Relaxed);
    thread::scope(|scope| {
        let lister = scope.spawn(|| {
            LISTS.set(true);
            let known = caller.client().peers();
            LISTS.set(false);
            assert_eq!(known.len(), 1);
            assert_eq!(known[0].endpoints, [ipc.as_str()]);
        });
        while !(IS_COPYING.load(Acquire) || lister.is_finished()) {
            thread::yield_now();
        }
        assert!(caller.client().peer(service.instance()).is_ok());
        HAS_LOOKED.store(true, Release);
    });
    assert!(
        IS_COPYING.load(Relaxed),
        "no copy was seen: this shows nothing"
    );
    assert!(!HAS_WAITED_IN_VAIN.load(Relaxed), "a look-up was held up");
}
