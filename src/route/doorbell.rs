//! Waking a parked reader, without a system call or a locked instruction per message while it is
//! awake.

use std::task::Waker;

#[cfg(not(loom))]
use {
    atomic_waker::AtomicWaker,
    std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence},
};
#[cfg(loom)]
use {
    loom::future::AtomicWaker,
    loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence},
};

/// Rung by writers after they have published something; answered by one reader that is about to
/// park.
///
/// The two sides must not miss each other: a writer publishes and then looks whether the reader is
/// parked, the reader says that it is parked and then looks whether something is published. Release
/// and acquire allow both to see the old value; a sequentially consistent fence between the two
/// steps, on both sides, does not.
pub struct Doorbell {
    /// How often it was rung: while awake, the reader looks at nothing else.
    rings: AtomicU64,
    parked: AtomicBool,
    waker: AtomicWaker,
}

impl Default for Doorbell {
    fn default() -> Self {
        Self {
            rings: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }
}

impl Doorbell {
    /// Wakes the reader if it is parked. To be called after publishing. Never blocks; makes a
    /// system call only if the reader was parked, and then only one of the writers does. Says
    /// whether it woke.
    pub fn ring(&self) -> bool {
        // What was published before is seen by whoever sees this count.
        self.rings.fetch_add(1, Ordering::Release);
        self.wake()
    }

    /// As [`ring`](Self::ring), for writers whose publications the reader looks at by itself while
    /// it is awake: then this costs a fence and a load.
    #[inline]
    pub fn wake(&self) -> bool {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::AcqRel) {
            self.waker.wake();
            return true;
        }
        false
    }

    /// How often it was rung. A reader that finds it unchanged since it last looked has missed
    /// nothing that was published before the last of these rings.
    #[inline]
    pub fn rings(&self) -> u64 {
        self.rings.load(Ordering::Acquire)
    }

    /// The reader means to park: from now on a writer wakes it. It must look once more whether
    /// something is published before it does park, and call [`leave`](Self::leave) if so.
    pub fn prepare_to_park(&self, waker: &Waker) {
        self.register(waker);
        self.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The reader is awake. Its waker is dropped here, on its own thread. Says whether a writer has
    /// woken it.
    pub fn leave(&self) -> bool {
        let was_woken = !self.parked.load(Ordering::Relaxed);
        self.parked.store(false, Ordering::Relaxed);
        drop(self.take());
        was_woken
    }

    #[cfg(not(loom))]
    fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    #[cfg(not(loom))]
    fn take(&self) -> Option<Waker> {
        self.waker.take()
    }

    #[cfg(loom)]
    fn register(&self, waker: &Waker) {
        self.waker.register_by_ref(waker);
    }

    #[cfg(loom)]
    fn take(&self) -> Option<Waker> {
        self.waker.take_waker()
    }
}

impl std::fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doorbell").finish_non_exhaustive()
    }
}

/// The interleavings of a parking reader and its writers: `RUSTFLAGS="--cfg loom" cargo test
/// --release --lib loom_`.
#[cfg(all(test, loom))]
mod loom_tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use loom::{
        model::Builder,
        sync::{Arc, atomic::AtomicUsize},
    };

    use super::*;

    /// All of them.
    #[test]
    fn loom_no_wake_up_of_one_writer_is_lost() {
        check(1, None);
    }

    /// Those with at most two preemptions; all of them would take hours.
    #[test]
    fn loom_no_wake_up_of_two_writers_is_lost() {
        check(2, Some(2));
    }

    fn check(writers: usize, preemption_bound: Option<usize>) {
        let mut model = Builder::new();
        model.preemption_bound = preemption_bound;
        model.check(move || {
            let doorbell = Arc::new(Doorbell::default());
            let published = Arc::new(AtomicUsize::new(0));
            let threads: Vec<_> = (0..writers)
                .map(|_| {
                    let (doorbell, published) = (doorbell.clone(), published.clone());
                    loom::thread::spawn(move || {
                        published.fetch_add(1, Ordering::Relaxed);
                        doorbell.ring();
                    })
                })
                .collect();
            // Loom reports a deadlock if the reader sleeps although all have written.
            loom::future::block_on(poll_fn(|cx| {
                doorbell.prepare_to_park(cx.waker());
                if published.load(Ordering::Relaxed) == writers {
                    assert!(doorbell.rings() <= writers as u64);
                    doorbell.leave();
                    return Poll::Ready(());
                }
                Poll::Pending
            }));
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn wakes_once_and_only_who_is_parked() {
        let (doorbell, count) = (Doorbell::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        assert!(!doorbell.ring());
        doorbell.prepare_to_park(&waker);
        assert!(doorbell.ring() && !doorbell.ring());
        assert!(doorbell.leave());
        doorbell.prepare_to_park(&waker);
        assert!(!doorbell.leave());
        assert!(!doorbell.ring());
        assert_eq!((count.0.load(Relaxed), doorbell.rings()), (1, 4));
    }
}
