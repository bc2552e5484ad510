use std::{fmt, sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TrySendError};

use super::{Doorbell, closing::Closing};

/// A bounded queue from any thread to one shard. Several inboxes of a shard share its doorbell.
pub fn inbox<T>(capacity: usize, doorbell: &Arc<Doorbell>) -> (Port<T>, Inbox<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    let closing = Arc::new(Closing::new());
    let port = Port {
        sender,
        rest: receiver.clone(),
        closing: closing.clone(),
        doorbell: doorbell.clone(),
    };
    (port, Inbox { receiver, closing })
}

/// The writing end of an inbox: cheap to clone, usable from any thread.
pub struct Port<T> {
    sender: Sender<T>,
    /// For what is sent while the inbox goes: somebody waits for its end.
    rest: Receiver<T>,
    closing: Arc<Closing>,
    doorbell: Arc<Doorbell>,
}

impl<T> Port<T> {
    /// Puts an item into the shard's inbox and wakes the shard if it is parked. Never blocks: an
    /// item that has no room, or no shard, comes back.
    pub fn try_send(&self, item: T) -> Result<(), Refused<T>> {
        if self.is_closed() {
            return Err(Refused::Closed(item));
        }
        self.sender.try_send(item).map_err(|error| match error {
            TrySendError::Full(item) => Refused::Full(item),
            TrySendError::Disconnected(item) => Refused::Closed(item),
        })?;
        self.announce();
        Ok(())
    }

    /// As [`try_send`](Self::try_send), but waits for room. For threads that may block.
    pub fn send(&self, item: T) -> Result<(), T> {
        if self.is_closed() {
            return Err(item);
        }
        self.sender.send(item).map_err(|error| error.into_inner())?;
        self.announce();
        Ok(())
    }

    /// As [`send`](Self::send), but waits for room no longer than this.
    pub fn send_within(&self, item: T, patience: Duration) -> Result<(), Refused<T>> {
        if self.is_closed() {
            return Err(Refused::Closed(item));
        }
        let sent = self.sender.send_timeout(item, patience);
        sent.map_err(|error| match error {
            SendTimeoutError::Timeout(item) => Refused::Full(item),
            SendTimeoutError::Disconnected(item) => Refused::Closed(item),
        })?;
        self.announce();
        Ok(())
    }

    /// Whether the shard has stopped.
    pub fn is_closed(&self) -> bool {
        self.closing.is_closed()
    }

    /// Something was put into the inbox: the shard is told, or, if it stopped just then, what
    /// nobody will read is dropped.
    fn announce(&self) {
        self.doorbell.ring();
        if self.closing.has_closed() {
            drop_all(&self.rest);
        }
    }
}

impl<T> Clone for Port<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            rest: self.rest.clone(),
            closing: self.closing.clone(),
            doorbell: self.doorbell.clone(),
        }
    }
}

impl<T> fmt::Debug for Port<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("queued", &self.sender.len())
            .finish_non_exhaustive()
    }
}

/// An item that an inbox did not take.
#[derive(Debug)]
pub enum Refused<T> {
    /// There is no room.
    Full(T),
    /// The shard has stopped.
    Closed(T),
}

/// The shard's end. Whatever is in it when it is dropped is dropped with it, though ports remain;
/// the channel alone would keep it as long as they do, and who waits for it would wait for ever.
pub struct Inbox<T> {
    receiver: Receiver<T>,
    closing: Arc<Closing>,
}

impl<T> Inbox<T> {
    /// The oldest item, if there is one.
    pub fn pop(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }

    /// How much waits.
    pub fn len(&self) -> usize {
        self.receiver.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        self.closing.close();
        drop_all(&self.receiver);
    }
}

fn drop_all<T>(receiver: &Receiver<T>) {
    while receiver.try_recv().is_ok() {}
}

impl<T> fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("queued", &self.receiver.len())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_is_in_an_inbox_goes_with_it_though_its_port_remains() {
        let item = Arc::new(());
        let (port, inbox) = inbox(2, &Arc::default());
        port.try_send(item.clone()).unwrap();
        drop(inbox);
        assert_eq!(Arc::strong_count(&item), 1);
        assert!(matches!(
            port.try_send(item.clone()),
            Err(Refused::Closed(_))
        ));
        assert!(port.send(item).is_err() && port.is_closed());
    }

    /// Threads that wait for room included.
    #[test]
    fn nothing_is_left_in_an_inbox_that_closes_under_its_writers() {
        for _ in 0..200 {
            let item = Arc::new(());
            let (port, inbox) = inbox(1, &Arc::default());
            thread::scope(|scope| {
                for _ in 0..3 {
                    let (port, item) = (port.clone(), item.clone());
                    scope.spawn(move || while port.send(item.clone()).is_ok() {});
                }
                scope.spawn(|| {
                    while inbox.pop().is_none() {
                        thread::yield_now();
                    }
                    drop(inbox);
                });
            });
            assert_eq!(Arc::strong_count(&item), 1);
        }
    }
}
