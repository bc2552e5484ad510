//! What is put into a queue once, however often it is asked for, until it has been taken out.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering};

/// Whether something is on its way to a shard.
///
/// Whoever finds that it is does not send it again, and what he has done before must be seen by the
/// shard when it arrives: both exchange the flag, so that one of them sees what the other did.
#[derive(Debug, Default)]
pub struct Posted(AtomicBool);

impl Posted {
    /// Whether it is to be sent: it is not on its way.
    #[inline]
    pub fn post(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// It has arrived; to be said before anything is looked at for its sake. Whoever posts it from
    /// here on sends it again.
    #[inline]
    pub fn arrive(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use super::*;

    #[derive(Default)]
    struct Mail {
        posted: Posted,
        waiting: Mutex<usize>,
        done: AtomicUsize,
    }

    impl Mail {
        /// Does something, and has the shard look.
        fn post(&self) {
            self.done.fetch_add(1, Relaxed);
            if self.posted.post() {
                *self.waiting.lock().unwrap() += 1;
            }
        }

        /// What the shard sees when something has arrived.
        fn take(&self) -> Option<usize> {
            let waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
            assert!(waiting <= 1, "it is sent once");
            (waiting > 0).then(|| {
                self.posted.arrive();
                self.done.load(Relaxed)
            })
        }
    }

    #[test]
    fn loom_what_was_done_before_a_post_is_seen() {
        loom::model(|| {
            let mail = Arc::new(Mail::default());
            let writers = [(); 2].map(|()| {
                let mail = mail.clone();
                loom::thread::spawn(move || mail.post())
            });
            // While they are at it, and when they are done.
            let early = mail.take();
            for writer in writers {
                writer.join().unwrap();
            }
            assert_eq!(mail.take().or(early), Some(2));
        });
    }
}
