//! Tasks of parking shards, woken by other threads.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    task::{Poll, Waker},
    thread,
};

use crate::service::{PATIENCE, Setup};

/// Another thread wakes a task while its shard is awake, and gives the waker up before the shard
/// looks whether it may sleep: nothing else will wake it.
pub(crate) fn no_wake_up_from_another_thread_is_lost(setup: &Setup) {
    let service = setup.serve(vec![]);
    let (wakers, woken) = (mpsc::channel::<Waker>(), Arc::new(AtomicU32::new(0)));
    let (to_waker, from_shard) = wakers;
    let counter = woken.clone();
    let waker = thread::spawn(move || {
        while let Ok(waker) = spin_for(&from_shard) {
            waker.wake();
            counter.fetch_add(1, Ordering::Release);
        }
    });
    for round in 1..=200 {
        let (woken, to_waker) = (woken.clone(), to_waker.clone());
        let (done, is_done) = mpsc::channel();
        let _running = service.runtime.run_on(0, move |_| async move {
            let mut has_asked = false;
            poll_fn(|cx| {
                if std::mem::replace(&mut has_asked, true) {
                    return Poll::Ready(());
                }
                to_waker.send(cx.waker().clone()).unwrap();
                // In every other round it comes whenever it comes.
                while round % 2 == 0 && woken.load(Ordering::Acquire) < round {
                    thread::yield_now();
                }
                Poll::Pending
            })
            .await;
            done.send(()).unwrap();
        });
        let polled = is_done.recv_timeout(PATIENCE);
        assert_eq!(polled, Ok(()), "round {round}");
    }
    drop(to_waker);
    waker.join().unwrap();
}

/// Without a sleep, for as long as somebody may send.
fn spin_for<T>(receiver: &mpsc::Receiver<T>) -> Result<T, mpsc::TryRecvError> {
    loop {
        match receiver.try_recv() {
            Err(mpsc::TryRecvError::Empty) => thread::yield_now(),
            result => return result,
        }
    }
}
