//! Handlers that come and go: the runtime has every shard do the same, at a turn's boundary, and
//! tells peers only of what all shards serve.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::{Core, Phase, Shard};
use crate::{
    engine::Engine,
    handler::Handler,
    wire::{Header, Hello, Kind},
};

/// Peers that one turn tells of a change: a hello may be long, and they may be many.
const TOLD_AT_ONCE: usize = 64;

/// What a shard is to do about its handlers.
#[derive(Clone, Debug)]
pub enum Change {
    /// Make the state of this one, which will have this index, on its own thread; but do not serve
    /// it yet.
    Prepare {
        /// Which.
        handler: Handler,
        /// The same on every shard.
        index: usize,
    },
    /// Serve what was prepared.
    Install {
        /// The names of all users' handlers by index, of those that have gone, too.
        names: Arc<[String]>,
    },
    /// Forget what was prepared.
    Discard,
    /// Serve the handler of this name no longer.
    Remove {
        /// Which.
        name: String,
    },
    /// Say so from now on, to peers, too.
    Announce(Announcement),
}

/// What a process says of its handlers.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Its hello; each shard adds its own number.
    pub hello: Arc<Hello>,
    /// The built-in handler that lists them, if there is one.
    pub listing: Option<Handler>,
}

/// Why a shard does not do so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeRefused {
    /// It takes no new handlers any more.
    Stopping,
    /// The handler's factory panicked, and said this.
    Panicked(String),
}

/// Which shard, and whether it has done so.
pub type Changed = (usize, Result<(), ChangeRefused>);

impl<E: Engine> Shard<E> {
    pub(super) fn change(&mut self, change: Change, reply: &Sender<Changed>) {
        let done = match change {
            Change::Prepare { handler, index } => self.core.prepare(&handler, index),
            Change::Install { names } => {
                self.core.registry.install();
                self.core.batches.grow(names.len());
                self.core.recorder.grow(names);
                Ok(())
            }
            Change::Discard => {
                self.core.registry.discard();
                Ok(())
            }
            Change::Remove { name } => {
                self.core.remove_handler(&name);
                Ok(())
            }
            Change::Announce(announcement) => {
                self.core.announce(announcement);
                Ok(())
            }
        };
        // Nobody there: the asker has gone on without.
        let _ = reply.send((self.core.info.shard, done));
    }

    /// Tells some of the peers that are still to be told of a change. Returns how many.
    #[inline]
    pub(super) fn tell_changes(&mut self) -> usize {
        match self.core.untold.is_empty() {
            true => 0,
            false => self.tell_some(),
        }
    }

    #[cold]
    fn tell_some(&mut self) -> usize {
        let Self { engine, core } = self;
        let rest = core.untold.len().saturating_sub(TOLD_AT_ONCE);
        let told = core.untold.drain(rest..);
        let count = told.len();
        for connection in told {
            if let Some(outbox) = engine.outbox(connection) {
                // A peer whose queue is full goes on with what it knows.
                let _ = outbox.push(&Header::new(Kind::Welcome, 0), &core.hello);
            }
        }
        count
    }
}

impl Core {
    fn prepare(&mut self, handler: &Handler, index: usize) -> Result<(), ChangeRefused> {
        if !matches!(self.phase, Phase::Running) {
            return Err(ChangeRefused::Stopping);
        }
        let prepared = self.registry.prepare(handler, index, &self.info);
        prepared.map_err(ChangeRefused::Panicked)
    }

    fn remove_handler(&mut self, name: &str) {
        if let Some(index) = self.registry.user_index_of(name) {
            // What it has accepted it handles.
            self.run_batch_of(index);
            self.registry.remove(name);
        }
    }

    fn announce(&mut self, Announcement { hello, listing }: Announcement) {
        let hello = Hello {
            shard: Some(self.info.shard),
            ..(*hello).clone()
        };
        self.hello = hello.encode();
        self.registry.board().set(hello.handlers);
        if let Some(listing) = listing {
            self.registry.replace_built_in(&listing, &self.info);
        }
        let introduced = self.introduced.iter();
        let wanting = introduced.filter(|(_, it)| it.takes_updates && !it.is_draining);
        self.untold = wanting.map(|(&connection, _)| connection).collect();
    }
}
