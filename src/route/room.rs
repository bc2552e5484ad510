//! Waking the writer of a full ring.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};

/// Whether the writer of a full ring sleeps until there is room in it.
///
/// As with a [`Doorbell`](super::Doorbell), the two sides must not miss each other: the writer
/// says that it wants room and then looks for it, the reader makes room and then looks whether it
/// is wanted; a sequentially consistent fence stands between the two steps, on both sides.
#[derive(Debug)]
pub(super) struct Room {
    is_wanted: AtomicBool,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            is_wanted: AtomicBool::new(false),
        }
    }

    /// The writer means to sleep. It must look once more whether there is room before it does.
    pub(super) fn want(&self) {
        self.is_wanted.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Whether the writer is to be woken: to be asked after room was made.
    pub(super) fn take_wanted(&self) -> bool {
        fence(Ordering::SeqCst);
        self.is_wanted.load(Ordering::Relaxed) && self.is_wanted.swap(false, Ordering::AcqRel)
    }
}

/// The interleavings of a writer that finds a ring full, a reader that makes room in it, and a
/// command to stop: `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`.
#[cfg(all(test, loom))]
mod loom_tests {
    use std::{future::poll_fn, task::Poll};

    use loom::{
        model::Builder,
        sync::{Arc, atomic::AtomicUsize},
    };

    use super::*;
    use crate::route::Doorbell;

    /// The writer of a full ring sleeps until the reader has taken an item.
    #[test]
    fn loom_a_writer_that_wants_room_is_woken() {
        loom::model(|| {
            let (doorbell, room) = (Arc::new(Doorbell::default()), Arc::new(Room::new()));
            let free = Arc::new(AtomicUsize::new(0));
            let reader = loom::thread::spawn({
                let (doorbell, room, free) = (doorbell.clone(), room.clone(), free.clone());
                move || {
                    free.store(1, Ordering::Release);
                    if room.take_wanted() {
                        doorbell.wake();
                    }
                }
            });
            // Loom reports a deadlock if the writer sleeps although there is room.
            loom::future::block_on(poll_fn(|cx| {
                doorbell.prepare_to_park(cx.waker());
                room.want();
                if free.load(Ordering::Acquire) == 1 {
                    doorbell.leave();
                    return Poll::Ready(());
                }
                Poll::Pending
            }));
            reader.join().unwrap();
        });
    }

    /// A shard that sleeps hears of a message of another shard, and of the command to stop,
    /// whichever comes first, and has taken both when it ends.
    #[test]
    fn loom_a_sleeping_shard_hears_of_a_message_and_of_its_end() {
        let mut model = Builder::new();
        // All of them would take hours.
        model.preemption_bound = Some(2);
        model.check(|| {
            let doorbell = Arc::new(Doorbell::default());
            let (published, is_told) =
                (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let neighbour = loom::thread::spawn({
                let (doorbell, published) = (doorbell.clone(), published.clone());
                move || {
                    published.store(1, Ordering::Release);
                    doorbell.wake();
                }
            });
            let runtime = loom::thread::spawn({
                let (doorbell, is_told) = (doorbell.clone(), is_told.clone());
                move || {
                    is_told.store(1, Ordering::Release);
                    doorbell.ring();
                }
            });
            loom::future::block_on(poll_fn(|cx| {
                doorbell.prepare_to_park(cx.waker());
                let has_both = published.load(Ordering::Acquire) + is_told.load(Ordering::Acquire);
                if has_both == 2 {
                    doorbell.leave();
                    return Poll::Ready(());
                }
                Poll::Pending
            }));
            neighbour.join().unwrap();
            runtime.join().unwrap();
        });
    }
}
