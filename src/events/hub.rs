//! From whoever tells of an event to the queues of all who want to know.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
};

use super::{
    Event, Subscription,
    subscription::{Outlet, pair},
};

/// Hands events to every subscription of a runtime.
///
/// The lock is held for as long as it takes to add a subscription, or to put a bounded number of
/// events into their queues, never while anybody waits. Shards do not wait for it either
/// ([`try_publish`](Self::try_publish)).
#[derive(Default)]
pub struct Hub {
    outlets: Mutex<Outlets>,
    /// How many there are: without any, nobody needs to tell.
    count: AtomicUsize,
}

#[derive(Default)]
struct Outlets {
    open: Vec<Outlet>,
    is_over: bool,
}

impl Hub {
    /// A subscription to all that is told from now on.
    pub fn subscribe(&self) -> Subscription {
        let (outlet, subscription) = pair(Subscription::CAPACITY);
        let mut outlets = self.lock();
        if !outlets.is_over {
            // Else those that are dropped would pile up until something is told.
            outlets.open.retain(Outlet::is_wanted);
            outlets.open.push(outlet);
            self.count.store(outlets.open.len(), Relaxed);
        }
        subscription
    }

    /// Whether anybody wants to know.
    #[inline]
    pub fn has_subscribers(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    /// Tells of an event. For threads that may wait: the lock is held by others for moments.
    pub fn publish(&self, event: Event) {
        if self.has_subscribers() {
            let mut wakers = Vec::new();
            self.tell(self.lock(), event, &mut wakers);
            wakers.drain(..).for_each(Waker::wake);
        }
    }

    /// Takes events from the front, no more than so many, and tells of each; before them, that so
    /// many are missing. Returns false, with nothing taken, if the lock is held just now.
    pub fn try_publish(
        &self,
        events: &mut VecDeque<Event>,
        missing: &mut u64,
        events_max: usize,
    ) -> bool {
        let mut wakers = Vec::new();
        for _ in 0..events_max.min(events.len()) {
            let mut outlets = match self.outlets.try_lock() {
                Ok(outlets) => outlets,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return false,
            };
            let missing = std::mem::take(missing);
            outlets.open.iter_mut().for_each(|it| it.skip(missing));
            if let Some(event) = events.pop_front() {
                self.tell(outlets, event, &mut wakers);
            }
            // Without the lock: whose waker it is may want to know more.
            wakers.drain(..).for_each(Waker::wake);
        }
        true
    }

    /// The runtime has ended: so does every subscription, once its queue is empty.
    pub fn close(&self) {
        let outlets = {
            let mut outlets = self.lock();
            outlets.is_over = true;
            self.count.store(0, Relaxed);
            std::mem::take(&mut outlets.open)
        };
        for outlet in outlets {
            if let Some(waker) = outlet.close() {
                waker.wake();
            }
        }
    }

    fn tell(&self, mut outlets: MutexGuard<'_, Outlets>, event: Event, wakers: &mut Vec<Waker>) {
        outlets.open.retain_mut(|outlet| {
            let is_wanted = outlet.is_wanted();
            if is_wanted {
                wakers.extend(outlet.push(event.clone()));
            }
            is_wanted
        });
        self.count.store(outlets.open.len(), Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Outlets> {
        self.outlets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("subscriptions", &self.count)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread, time::Duration};

    use futures_lite::future::block_on;

    use super::*;
    use crate::events::NoEvent;

    /// An event that says which it is.
    fn event(number: u64) -> Event {
        Event::Missed(number)
    }

    #[test]
    fn each_subscription_is_told_in_order_from_its_beginning() {
        let hub = Hub::default();
        hub.publish(event(0));
        let mut first = hub.subscribe();
        hub.publish(event(1));
        let mut second = hub.subscribe();
        hub.publish(event(2));
        assert_eq!([first.recv(), first.recv()], [1, 2].map(|n| Some(event(n))));
        assert_eq!(first.try_recv(), Err(NoEvent::Yet));
        assert_eq!(second.try_recv(), Ok(event(2)));
        let soon = Duration::from_millis(1);
        assert_eq!(second.recv_timeout(soon), Err(NoEvent::Yet));
    }

    #[test]
    fn who_lags_loses_the_oldest_and_is_told_how_many_first() {
        const CAPACITY: u64 = Subscription::CAPACITY as u64;
        let hub = Hub::default();
        let (mut slow, mut quick) = (hub.subscribe(), hub.subscribe());
        let told = CAPACITY + 7;
        for number in 0..told {
            hub.publish(event(number));
            assert_eq!(quick.try_recv(), Ok(event(number)));
        }
        // However it asks, what it has missed comes before what follows, and hides none of it.
        assert_eq!(slow.try_recv(), Ok(Event::Missed(7)));
        for number in 7..told {
            assert_eq!(slow.try_recv(), Ok(event(number)));
        }
        for at_once in [true, false] {
            (0..told).for_each(|number| hub.publish(event(number)));
            let soon = Duration::from_secs(1);
            let mut next = || match at_once {
                true => slow.recv(),
                false => slow.recv_timeout(soon).ok(),
            };
            assert_eq!(next(), Some(Event::Missed(7)));
            assert_eq!([next(), next()], [7, 8].map(|it| Some(event(it))));
            while slow.try_recv().is_ok() {}
            while quick.try_recv().is_ok() {}
        }
        assert_eq!(slow.try_recv(), Err(NoEvent::Yet));
        // What a shard had no room to keep is missing for everybody, and before what it kept.
        let mut kept = VecDeque::from([event(1), event(2)]);
        let mut missing = 3;
        assert!(hub.try_publish(&mut kept, &mut missing, 1));
        assert_eq!((kept.len(), missing), (1, 0));
        for it in [&mut slow, &mut quick] {
            assert_eq!(it.try_recv(), Ok(Event::Missed(3)));
            assert_eq!(it.try_recv(), Ok(event(1)));
        }
    }

    #[test]
    fn nobody_waits_for_a_lock_that_is_held() {
        let hub = Hub::default();
        let mut subscription = hub.subscribe();
        let mut kept = VecDeque::from([event(1)]);
        let held = hub.lock();
        assert!(!hub.try_publish(&mut kept, &mut 0, 10));
        assert_eq!(kept.len(), 1);
        drop(held);
        assert!(hub.try_publish(&mut kept, &mut 0, 10) && kept.is_empty());
        assert_eq!(subscription.recv(), Some(event(1)));
    }

    #[test]
    fn who_waits_is_woken_by_an_event_and_by_the_end() {
        let hub = Arc::new(Hub::default());
        let (mut blocked, mut awaiting) = (hub.subscribe(), hub.subscribe());
        let threads = [
            thread::spawn(move || std::iter::from_fn(|| blocked.recv()).collect::<Vec<_>>()),
            thread::spawn(move || {
                block_on(async {
                    let mut told = Vec::new();
                    while let Some(event) = awaiting.next().await {
                        told.push(event);
                    }
                    told
                })
            }),
        ];
        let told: Vec<Event> = (0..100).map(event).collect();
        for event in &told {
            hub.publish(event.clone());
            thread::yield_now();
        }
        hub.close();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), told);
        }
        assert_eq!(hub.subscribe().recv(), None);
    }

    #[test]
    fn subscriptions_that_come_and_go_untold_leave_nothing() {
        let hub = Hub::default();
        let mut kept = hub.subscribe();
        for _ in 0..100 {
            drop(hub.subscribe());
        }
        assert!(hub.lock().open.len() <= 2);
        hub.publish(event(1));
        assert_eq!(kept.recv(), Some(event(1)));
    }

    #[test]
    fn a_dropped_subscription_is_forgotten() {
        let hub = Hub::default();
        drop(hub.subscribe());
        assert!(hub.has_subscribers());
        hub.publish(event(0));
        assert!(!hub.has_subscribers());
    }
}
