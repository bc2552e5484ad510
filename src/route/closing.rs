//! The end of a queue that both sides must notice.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};

/// Whether the reader of a queue has gone.
///
/// An item that is put in as the reader goes must be dropped by one of the two: the writer puts it
/// in and then looks whether the queue is closed, the reader closes it and then looks what is in
/// it; a sequentially consistent fence stands between the two steps, on both sides.
#[derive(Debug)]
pub(super) struct Closing {
    is_closed: AtomicBool,
}

impl Closing {
    pub(super) fn new() -> Self {
        Self {
            is_closed: AtomicBool::new(false),
        }
    }

    /// The reader goes. It must drop what is in the queue afterwards.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Whether the reader has gone, as far as is known.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// The same, to be asked after an item was put in: if so the writer must drop it.
    pub(super) fn has_closed(&self) -> bool {
        fence(Ordering::SeqCst);
        self.is_closed()
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::{Arc, atomic::AtomicUsize};

    use super::*;

    /// Nobody waits for ever for the end of what nobody will read.
    #[test]
    fn loom_an_item_put_in_as_the_reader_goes_is_dropped() {
        loom::model(|| {
            let closing = Arc::new(Closing::new());
            let (queued, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let take = |queued: &AtomicUsize, dropped: &AtomicUsize| {
                if queued.swap(0, Ordering::AcqRel) == 1 {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            };
            let writer = loom::thread::spawn({
                let (closing, queued, dropped) = (closing.clone(), queued.clone(), dropped.clone());
                move || {
                    queued.store(1, Ordering::Relaxed);
                    if closing.has_closed() {
                        take(&queued, &dropped);
                    }
                }
            });
            closing.close();
            if queued.load(Ordering::Relaxed) == 1 {
                take(&queued, &dropped);
            }
            writer.join().unwrap();
            assert_eq!(dropped.load(Ordering::Relaxed), 1);
        });
    }
}
