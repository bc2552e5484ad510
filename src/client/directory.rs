//! The peers that a runtime knows, by instance, and the handles to those that have connected to it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak},
};

use rustc_hash::FxHashMap;
use uuid::Uuid;

use super::{Client, Connect, ConnectError, LocalClient, Peer, Target, submit::PeerHandle};
use crate::{
    error::NotSent,
    events::PeerInfo,
    peers::{PeerId, PeerShared},
};

/// Dead entries are swept out once there are so many, or twice as many as were left.
const SWEPT_MIN: usize = 64;

/// A process that this one knows: it was dialed and has welcomed us, or has connected and said
/// hello.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownPeer {
    /// As it names its running process.
    pub instance: Uuid,
    /// Where it listens, by its own words: as many of them as take 1 KiB.
    pub endpoints: Vec<String>,
    /// How many shards it runs, by its own words; 0 if it does not say.
    pub shards: usize,
    /// The connections that there are: each that was dialed, and of those that it has made to one
    /// shard the latest.
    pub connections: Vec<PeerInfo>,
}

/// Who sent a message, by the hello or welcome on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its process.
    pub instance: Uuid,
    /// The shard of this process that has the connection.
    pub shard: usize,
    /// If this process has dialed it.
    pub dialed: Option<PeerId>,
}

/// What a peer says of itself, as far as it is kept.
#[derive(Debug, Default)]
pub struct Said {
    /// As [`KnownPeer::endpoints`].
    pub endpoints: Vec<String>,
    /// As [`KnownPeer::shards`].
    pub shards: usize,
}

/// A connection to a known peer.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub info: PeerInfo,
    /// What the peer says.
    pub said: Arc<Said>,
}

/// By which a row is known: the instance, and the peer if it was dialed.
pub type RowKey = (Uuid, Option<PeerId>);

/// Of one instance.
type Rows = Vec<(Option<PeerId>, Arc<Row>)>;

/// Shared by all shards and clients of a runtime. Shards write it when peers come and go, and never
/// wait for it; who looks a peer up does, a handler on its shard, too. The lock is held as long as
/// it takes to look one up, or to copy a pointer to each row.
#[derive(Default)]
pub struct Directory(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    known: FxHashMap<Uuid, Rows>,
    /// Handles to peers that were dialed.
    dialed: FxHashMap<PeerId, Weak<PeerHandle>>,
    /// By instance, and by the shard that it has connected to.
    contacts: FxHashMap<(Uuid, usize), Contact>,
    /// What was left by the last sweep.
    swept: usize,
}

/// How a peer is spoken of that has connected to a shard: by all handles in the same way.
struct Contact {
    id: PeerId,
    shared: Arc<PeerShared>,
    handle: Weak<PeerHandle>,
}

impl Directory {
    /// Enters what has changed on a shard, or takes it out. False, with nothing changed, if the
    /// lock is held just now.
    pub fn try_enter(&self, shard: usize, rows: &mut FxHashMap<RowKey, Option<Row>>) -> bool {
        let mut inner = match self.0.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        for ((instance, dialed), row) in rows.drain() {
            let known = inner.known.entry(instance).or_default();
            known.retain(|(by, row)| *by != dialed || row.info.shard != shard);
            known.extend(row.map(|row| (dialed, Arc::new(row))));
            if known.is_empty() {
                inner.known.remove(&instance);
            }
        }
        true
    }

    /// A handle was made to a peer that is dialed.
    pub(super) fn note_dialed(&self, handle: &Arc<PeerHandle>) {
        let mut inner = self.lock();
        inner.sweep();
        inner.dialed.insert(handle.id, Arc::downgrade(handle));
    }

    /// All of them, those of one instance together.
    fn rows(&self) -> Vec<(Uuid, Arc<Row>)> {
        let inner = self.lock();
        let known = inner.known.iter();
        let rows = known.flat_map(|(&instance, rows)| rows.iter().map(move |it| (instance, &it.1)));
        rows.map(|(instance, row)| (instance, row.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The handle to a peer that was dialed, if there is one.
    fn dialed(&self, instance: Uuid) -> Option<Peer> {
        let mut ids = self.known.get(&instance)?.iter().filter_map(|(by, _)| *by);
        ids.find_map(|id| Some(Peer(self.dialed.get(&id)?.upgrade()?)))
    }

    /// A shard that it has connected to: this one, if that is one of them.
    fn shard_of(&self, instance: Uuid, own: Option<usize>) -> Option<usize> {
        let accepted = || {
            let rows = self.known.get(&instance).into_iter().flatten();
            let accepted = rows.filter(|(by, _)| by.is_none());
            accepted.map(|(_, row)| row.info.shard)
        };
        accepted()
            .find(|shard| Some(*shard) == own)
            .or_else(|| accepted().min())
    }

    fn contact(
        &mut self,
        client: &Client,
        (instance, shard): (Uuid, usize),
        submit: impl FnOnce(Connect) -> Result<(), NotSent>,
    ) -> Result<Peer, ConnectError> {
        self.sweep();
        let new = || Contact {
            id: PeerId::unique(),
            shared: client.new_shared(),
            handle: Weak::new(),
        };
        let contact = self.contacts.entry((instance, shard)).or_insert_with(new);
        if let Some(handle) = contact.handle.upgrade() {
            return Ok(Peer(handle));
        }
        let (peer, shared) = (contact.id, contact.shared.clone());
        let connect = Connect {
            peer,
            to: Target::Caller(instance),
            shared: shared.clone(),
            is_routed: true,
            prefers_ipc: false,
        };
        submit(connect).map_err(ConnectError::NotAccepted)?;
        let handle = client.new_handle(peer, shard, None, shared);
        contact.handle = Arc::downgrade(&handle);
        Ok(Peer(handle))
    }

    /// Forgets handles that are gone, and contacts without one whose peer has gone, too.
    fn sweep(&mut self) {
        if self.dialed.len() + self.contacts.len() < (2 * self.swept).max(SWEPT_MIN) {
            return;
        }
        let Self {
            known,
            dialed,
            contacts,
            swept,
        } = self;
        dialed.retain(|_, handle| handle.strong_count() > 0);
        contacts.retain(|(instance, shard), contact| {
            let mut rows = known.get(instance).into_iter().flatten();
            contact.handle.strong_count() > 0
                || rows.any(|(by, row)| by.is_none() && row.info.shard == *shard)
        });
        *swept = dialed.len() + contacts.len();
    }
}

impl Client {
    /// The peers that are known now, in no order; [`events`](Self::events) tells of those that come
    /// and go. Allocates the list. Whoever looks a peer up waits meanwhile for as long as it takes
    /// to copy a pointer for each connection; shards go on.
    pub fn peers(&self) -> Vec<KnownPeer> {
        let rows = self.directory().rows();
        let of_peers = rows.chunk_by(|(one, _), (other, _)| one == other);
        let known = of_peers.filter_map(|rows| {
            let (instance, last) = rows.last()?;
            let mut connections: Vec<_> = rows.iter().map(|(_, row)| row.info.clone()).collect();
            connections.sort_by_key(|it| (it.shard, it.epoch));
            Some(KnownPeer {
                instance: *instance,
                endpoints: last.said.endpoints.clone(),
                shards: last.said.shards,
                connections,
            })
        });
        known.collect()
    }

    /// The peer of this instance: by the connection that was dialed, if there is one, else by one
    /// that it has made to this process, which need not be able to reach it. All such handles are
    /// one: their messages share credit and account, and go in one order.
    ///
    /// Messages to a peer that has connected go by its latest connection to that shard. Once it has
    /// none they come back as [`NotConnected`](crate::error::NotSent::NotConnected), until it
    /// connects again: then the handle serves as before. Dropping the handle closes nothing.
    ///
    /// Two processes that say the same instance are one peer: the one that connected last is sent
    /// to, both are answered, and each has its own events.
    pub fn peer(&self, instance: Uuid) -> Result<Peer, ConnectError> {
        let mut inner = self.directory().lock();
        if let Some(peer) = inner.dialed(instance) {
            return Ok(peer);
        }
        let shard = inner.shard_of(instance, None);
        let shard = shard.ok_or(ConnectError::Unknown(instance))?;
        inner.contact(self, (instance, shard), |it| self.ask_for(shard, it))
    }

    /// Who sent a message.
    pub(crate) fn peer_of(&self, origin: Option<Origin>) -> Result<Peer, ConnectError> {
        let Origin {
            instance, shard, ..
        } = origin.ok_or(ConnectError::Stranger)?;
        let mut inner = self.directory().lock();
        match inner.dialed_by(origin) {
            Some(peer) => Ok(peer),
            None => inner.contact(self, (instance, shard), |it| self.ask_for(shard, it)),
        }
    }
}

impl Inner {
    /// The handle to who sent a message, if this process has dialed it.
    fn dialed_by(&self, origin: Option<Origin>) -> Option<Peer> {
        let Origin {
            instance, dialed, ..
        } = origin?;
        let by_connection = dialed.and_then(|id| self.dialed.get(&id)?.upgrade());
        by_connection.map(Peer).or_else(|| self.dialed(instance))
    }
}

impl LocalClient {
    /// As [`Client::peer`]; of several connections, it takes one of this shard.
    pub fn peer(&self, instance: Uuid) -> Result<Peer, ConnectError> {
        let client = self.remote();
        let mut inner = client.directory().lock();
        if let Some(peer) = inner.dialed(instance) {
            return Ok(peer);
        }
        let shard = inner.shard_of(instance, Some(self.shard()));
        let shard = shard.ok_or(ConnectError::Unknown(instance))?;
        inner.contact(client, (instance, shard), |it| self.ask_for(shard, it))
    }

    /// Who sent a message.
    pub(crate) fn peer_of(&self, origin: Option<Origin>) -> Result<Peer, ConnectError> {
        let Origin {
            instance, shard, ..
        } = origin.ok_or(ConnectError::Stranger)?;
        let client = self.remote();
        let mut inner = client.directory().lock();
        match inner.dialed_by(origin) {
            Some(peer) => Ok(peer),
            None => inner.contact(client, (instance, shard), |it| self.ask_for(shard, it)),
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{Account, Credit};

    const INSTANCE: Uuid = Uuid::from_u128(1);

    fn row(shard: usize, epoch: u64) -> Row {
        Row {
            info: PeerInfo {
                instance: INSTANCE,
                endpoint: None,
                shard,
                epoch,
            },
            said: Arc::default(),
        }
    }

    fn enter(directory: &Directory, shard: usize, dialed: Option<PeerId>, row: Option<Row>) {
        let mut rows = FxHashMap::from_iter([((INSTANCE, dialed), row)]);
        assert!(directory.try_enter(shard, &mut rows) && rows.is_empty());
    }

    /// The shards and epochs of its rows, in their order.
    fn entered(directory: &Directory) -> Vec<(usize, u64)> {
        let rows = directory.rows().into_iter();
        rows.map(|(_, row)| (row.info.shard, row.info.epoch))
            .collect()
    }

    #[test]
    fn a_row_replaces_that_of_its_shard_and_peer_and_no_other() {
        let directory = Directory::default();
        let dialed = Some(PeerId::unique());
        enter(&directory, 3, dialed, Some(row(3, 9)));
        enter(&directory, 2, None, Some(row(2, 1)));
        enter(&directory, 1, None, Some(row(1, 1)));
        enter(&directory, 2, None, Some(row(2, 5)));
        assert_eq!(entered(&directory), [(3, 9), (1, 1), (2, 5)]);
        // Whom it has dialed has connected to no shard.
        let shard_of = |own| directory.lock().shard_of(INSTANCE, own);
        assert_eq!([None, Some(2), Some(3)].map(shard_of), [1, 2, 1].map(Some));
        enter(&directory, 3, None, Some(row(3, 7)));
        enter(&directory, 3, dialed, None);
        assert_eq!(entered(&directory), [(1, 1), (2, 5), (3, 7)]);
        (1..=3).for_each(|shard| enter(&directory, shard, None, None));
        assert!(directory.lock().known.is_empty(), "it is forgotten");
    }

    #[test]
    fn what_nobody_holds_and_has_gone_is_swept_out_now_and_then() {
        let directory = Directory::default();
        enter(&directory, 1, None, Some(row(1, 1)));
        enter(&directory, 2, Some(PeerId::unique()), Some(row(2, 1)));
        let mut inner = directory.lock();
        let contact = || Contact {
            id: PeerId::unique(),
            shared: Arc::new(PeerShared {
                credit: Credit::new(1, 1),
                account: Account::default(),
            }),
            handle: Weak::new(),
        };
        let dial = |inner: &mut Inner, count: usize| {
            for _ in 0..count {
                inner.dialed.insert(PeerId::unique(), Weak::new());
            }
        };
        // Of these the first alone is known.
        for key in [(INSTANCE, 1), (INSTANCE, 2), (Uuid::nil(), 1)] {
            inner.contacts.insert(key, contact());
        }
        dial(&mut inner, SWEPT_MIN - 4);
        inner.sweep();
        assert_eq!(inner.dialed.len(), SWEPT_MIN - 4, "it is not due");
        dial(&mut inner, 1);
        inner.sweep();
        assert!(inner.dialed.is_empty());
        assert!(inner.contacts.keys().eq(&[(INSTANCE, 1)]));
        assert_eq!(inner.swept, 1);
        // After many were left, once there are twice as many.
        inner.swept = SWEPT_MIN;
        dial(&mut inner, 2 * SWEPT_MIN - 2);
        inner.sweep();
        assert_eq!(inner.dialed.len(), 2 * SWEPT_MIN - 2, "it is not due");
        dial(&mut inner, 1);
        inner.sweep();
        assert!(inner.dialed.is_empty());
    }
}
