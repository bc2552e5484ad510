//! Recording and handing out do not allocate after the first record: counted, not believed.
//!
//! A file of its own, because the allocator that counts is the whole process's.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use corelane::metrics::{Blank, CALLED_KEYS_MAX, Recorder};

thread_local! {
    /// Per thread, so that the test harness' own threads are not counted.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // A thread that ends has no counter any more; it is not the one under test.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call goes to `System` unchanged; counting does not allocate (a `const` thread-local
// without a destructor).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations, reallocations and frees by this thread during `work`.
fn counted(work: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    work();
    CALLS.get() - before
}

fn record_all(recorder: &mut Recorder, ns: u64) {
    for handler in 0..3 {
        recorder.record_inline_run(handler, ns, 100);
        recorder.record_read_to_reply(handler, ns);
    }
    // More keys than have a histogram of their own.
    for key in 0..CALLED_KEYS_MAX as u64 + 20 {
        recorder.record_round_trip(key, ns);
    }
}

#[test]
fn only_the_first_record_allocates() {
    let names: Arc<[String]> = ["echo", "sum", "never"].map(str::to_owned).into();
    let mut recorder = Recorder::new(names);
    // Storage as the dumper has it at first: without a histogram.
    let mut blank = Some(Blank::new(3));
    let first = counted(|| record_all(&mut recorder, 1));
    assert!(first > 0, "the counter counts");

    for ns in 2..50 {
        let recording = counted(|| record_all(&mut recorder, ns * 1_000));
        assert_eq!(recording, 0, "recording, interval {ns}");
        let storage = blank.take().unwrap();
        let mut interval = None;
        let taking = counted(|| interval = Some(recorder.take(storage)));
        assert_eq!(taking, 0, "handing out, interval {ns}");
        // Another thread's work, and free of the shard.
        blank = interval.map(|interval| interval.clear());
    }
}

#[test]
fn a_handler_that_comes_late_does_not_make_the_others_allocate() {
    let mut recorder = Recorder::new(["echo", "late"].map(str::to_owned).into());
    recorder.record_in_handler(0, 1);
    let mut blank = recorder.take(Blank::new(2)).clear();
    recorder.record_in_handler(1, 1);
    for _ in 0..4 {
        let mut interval = None;
        let calls = counted(|| {
            recorder.record_in_handler(0, 1);
            recorder.record_in_handler(1, 1);
            interval = Some(recorder.take(blank));
        });
        assert_eq!(calls, 0);
        blank = interval.unwrap().clear();
    }
}
