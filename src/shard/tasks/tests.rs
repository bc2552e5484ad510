use std::{future::poll_fn, sync::atomic::AtomicUsize, thread};

use super::*;

/// An executor's waker that counts: glommio's is put into a queue that nobody looks at for long, if
/// another thread wakes it.
struct Executor {
    shard: thread::ThreadId,
    woken: AtomicUsize,
}

impl Wake for Executor {
    fn wake(self: Arc<Self>) {
        assert_eq!(thread::current().id(), self.shard, "it is woken there");
        self.woken.fetch_add(1, Ordering::Relaxed);
    }
}

/// A task that waits for its waker to be woken.
struct Bench {
    tasks: Tasks,
    doorbell: Arc<Doorbell>,
    executor: Arc<Executor>,
    spawned: Rc<RefCell<Vec<LocalFuture>>>,
    given: Waker,
}

impl Bench {
    fn new() -> Self {
        let (spawned, doorbell): (Rc<RefCell<Vec<LocalFuture>>>, Arc<Doorbell>) =
            Default::default();
        let queue = spawned.clone();
        let spawner: Spawner = Box::new(move |task| queue.borrow_mut().push(task));
        let mut tasks = Tasks::new(spawner, 1, &doorbell);
        let (say, said) = std::sync::mpsc::channel();
        tasks.spawn_guest(Box::pin(poll_fn(move |cx| {
            let _ = say.send(cx.waker().clone());
            Poll::<()>::Pending
        })));
        let executor = Arc::new(Executor {
            shard: thread::current().id(),
            woken: AtomicUsize::new(0),
        });
        let waker = executor.clone().into();
        let polled = spawned.borrow_mut()[0]
            .as_mut()
            .poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        tasks.take_ready();
        let given = said.recv().expect("it was polled");
        Self {
            tasks,
            doorbell,
            executor,
            spawned,
            given,
        }
    }

    fn woken(&self) -> usize {
        self.executor.woken.load(Ordering::Relaxed)
    }

    fn wake_elsewhere(&self) {
        let waker = &self.given;
        thread::scope(|scope| drop(scope.spawn(|| waker.wake_by_ref())));
    }
}

#[test]
fn another_thread_wakes_a_task_by_the_doorbell() {
    let bench = Bench::new();
    for round in 1..=2 {
        bench.wake_elsewhere();
        bench.wake_elsewhere();
        assert_eq!(bench.doorbell.rings(), round, "once until it has arrived");
        assert!(bench.tasks.has_mail() && !bench.tasks.has_ready());
        assert_eq!(bench.tasks.take_mail(8), 1);
        assert_eq!(bench.woken(), round as usize);
        assert!(bench.tasks.take_ready() && !bench.tasks.has_mail());
    }
    bench.given.wake_by_ref();
    assert_eq!((bench.woken(), bench.doorbell.rings()), (3, 2), "its own");
}

#[test]
fn what_is_woken_while_tasks_are_held_waits_for_the_mail() {
    let bench = Bench::new();
    bench.tasks.hold();
    bench.given.wake_by_ref();
    bench.wake_elsewhere();
    assert_eq!(bench.woken(), 0);
    bench.tasks.release();
    assert_eq!(bench.tasks.take_mail(8), 1);
    assert_eq!(bench.woken(), 1);
    bench.given.wake_by_ref();
    assert_eq!(bench.woken(), 2);
}

#[test]
fn a_waker_may_outlive_its_task_and_its_shard() {
    let bench = Bench::new();
    bench.wake_elsewhere();
    bench.spawned.borrow_mut().clear();
    assert_eq!(bench.tasks.take_mail(8), 1);
    bench.wake_elsewhere();
    let Bench {
        tasks,
        executor,
        given,
        ..
    } = bench;
    drop(tasks);
    thread::spawn(move || given.wake())
        .join()
        .expect("no panic");
    assert_eq!(Arc::strong_count(&executor), 1, "nothing is left of it");
}
