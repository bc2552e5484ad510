//! Handlers that come and go while their shard runs.
//!
//! An index is never another handler's: a handler that has gone leaves its place, which only one of
//! the same name takes again. So what is under way may speak of it by its index until its end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    Failure, Handler, Registry, ShardInfo,
    registry::{Entry, Runner},
};
use crate::wire::HandlerKey;

impl Registry {
    /// Makes a handler's state on this shard; `index` is the one that it will have. It is not
    /// served before [`install`](Self::install). Errors: what its factory's panic said.
    #[cold]
    pub fn prepare(
        &mut self,
        handler: &Handler,
        index: usize,
        shard: &ShardInfo,
    ) -> Result<(), String> {
        self.discard();
        let shared = (&self.lines, &self.board);
        let make = AssertUnwindSafe(|| handler.make_runner(index, shard, shared));
        let runner = catch_unwind(make).map_err(|panic| Failure::panicked(&*panic).text)?;
        let entry = Entry::new(handler, runner, shard);
        self.prepared = Some((index, entry));
        Ok(())
    }

    /// Serves what was prepared, if anything was.
    #[cold]
    pub fn install(&mut self) {
        let Some((index, mut entry)) = self.prepared.take() else {
            return;
        };
        self.by_key.insert(HandlerKey::of(&entry.name).get(), index);
        self.last = None;
        let position = self.position(index);
        match self.entries.get_mut(position) {
            Some(place) => {
                // Of the one that was there before some may be under way.
                entry.running = place.running;
                entry.running_most = place.running_most;
                *place = entry;
            }
            None => self.entries.push(entry),
        }
    }

    /// Forgets what was prepared.
    #[cold]
    pub fn discard(&mut self) {
        drop_quietly(self.prepared.take());
    }

    /// Serves a user's handler no longer: its messages are unknown ones from now on, and its state
    /// goes, but for what its tasks hold. What it has collected must have run.
    #[cold]
    pub fn remove(&mut self, name: &str) {
        let Some(index) = self.user_index_of(name) else {
            return;
        };
        self.by_key.remove(&HandlerKey::of(name).get());
        self.last = None;
        let runner = &mut self.entry_mut(index).runner;
        drop_quietly(std::mem::replace(runner, Runner::Gone));
    }

    /// Puts a built-in handler in the place of the one of this name.
    #[cold]
    pub fn replace_built_in(&mut self, handler: &Handler, shard: &ShardInfo) {
        let key = HandlerKey::of(handler.name()).get();
        if let Some(&index) = self.by_key.get(&key) {
            let runner = handler.make_runner(index, shard, (&self.lines, &self.board));
            self.entry_mut(index).runner = runner;
        }
    }

    /// The index of the handler of this name that a user has registered.
    pub fn user_index_of(&self, name: &str) -> Option<usize> {
        let index = *self.by_key.get(&HandlerKey::of(name).get())?;
        let is_it = !self.entry(index).origin.is_built_in() && &*self.entry(index).name == name;
        is_it.then_some(index)
    }
}

/// What a handler holds, wherever its last owner lets it go: no thread ends of its panic.
pub(super) struct Quietly<T>(Option<T>);

impl<T> Quietly<T> {
    pub(super) fn new(state: T) -> Self {
        Self(Some(state))
    }

    #[inline]
    pub(super) fn get(&self) -> &T {
        self.0.as_ref().expect("is taken only as it is dropped")
    }
}

impl<T> Drop for Quietly<T> {
    fn drop(&mut self) {
        drop_quietly(self.0.take());
    }
}

/// What a handler holds is a user's, and may panic as it goes.
fn drop_quietly<T>(state: T) {
    if catch_unwind(AssertUnwindSafe(|| drop(state))).is_err() {
        tracing::error!("a handler's state has panicked as it was dropped");
    }
}
