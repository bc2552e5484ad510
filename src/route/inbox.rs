use std::{fmt, sync::Arc};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::Doorbell;

/// A bounded queue from any thread to one shard. Several inboxes of a shard share its doorbell.
pub fn inbox<T>(capacity: usize, doorbell: &Arc<Doorbell>) -> (Port<T>, Inbox<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    (
        Port {
            sender,
            doorbell: doorbell.clone(),
        },
        Inbox { receiver },
    )
}

/// The writing end of an inbox: cheap to clone, usable from any thread.
pub struct Port<T> {
    sender: Sender<T>,
    doorbell: Arc<Doorbell>,
}

impl<T> Port<T> {
    /// Puts an item into the shard's inbox and wakes the shard if it is parked. Never blocks: an
    /// item that has no room, or no shard, comes back.
    pub fn try_send(&self, item: T) -> Result<(), Refused<T>> {
        self.sender.try_send(item).map_err(|error| match error {
            TrySendError::Full(item) => Refused::Full(item),
            TrySendError::Disconnected(item) => Refused::Closed(item),
        })?;
        self.doorbell.ring();
        Ok(())
    }

    /// As [`try_send`](Self::try_send), but waits for room. For threads that may block.
    pub fn send(&self, item: T) -> Result<(), T> {
        self.sender.send(item).map_err(|error| error.into_inner())?;
        self.doorbell.ring();
        Ok(())
    }
}

impl<T> Clone for Port<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
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

/// The shard's end.
pub struct Inbox<T> {
    receiver: Receiver<T>,
}

impl<T> Inbox<T> {
    /// The oldest item, if there is one.
    pub fn pop(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }
}

impl<T> fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("queued", &self.receiver.len())
            .finish_non_exhaustive()
    }
}
