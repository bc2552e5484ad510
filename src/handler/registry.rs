//! The handlers of one shard, by key.

use std::{fmt, sync::Arc};

use rustc_hash::FxHashMap;

use super::{ShardInfo, inline::Inline, spawned::Spawned};
use crate::{codec::Decoder, error::RegistryError, wire::HandlerKey};

/// Names that begin so belong to corelane.
const RESERVED_PREFIX: char = '_';
/// Bytes of the longest name: what a dump's tag and a log line bear.
const NAME_BYTES_MAX: usize = 128;

/// A name, and how to make what runs for it on a shard. Made by [`inline`](super::inline()) and its
/// like.
#[derive(Clone)]
pub struct Handler {
    name: Arc<str>,
    make: Arc<dyn Fn(&ShardInfo) -> Runner + Send + Sync>,
}

/// What runs, and how.
pub(super) enum Runner {
    Inline(Box<dyn Inline>),
    Spawned(Box<dyn Spawned>),
}

impl Handler {
    pub(super) fn new(
        name: &str,
        make: impl Fn(&ShardInfo) -> Runner + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            make: Arc::new(make),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The handlers that one shard runs, frozen at start. A handler's index is its place in the order
/// of registration, the same on every shard.
pub struct Registry {
    by_key: FxHashMap<u64, usize>,
    pub(super) entries: Vec<(Arc<str>, Runner)>,
    pub(super) decoder: Decoder,
    /// What handlers write for nobody.
    pub(super) scratch: Vec<u8>,
    /// The key that was looked up last, and its index: messages come in runs to one handler.
    last: Option<(HandlerKey, usize)>,
}

impl Registry {
    /// Refuses what could not be served: a name twice, two names with one key, a reserved, empty or
    /// overlong name.
    pub fn check(handlers: &[Handler]) -> Result<(), RegistryError> {
        let mut by_key: FxHashMap<u64, &str> = FxHashMap::default();
        for Handler { name, .. } in handlers {
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(RegistryError::Length {
                    name: name.to_string(),
                    bytes_max: NAME_BYTES_MAX,
                });
            }
            if name.starts_with(RESERVED_PREFIX) {
                return Err(RegistryError::Reserved {
                    name: name.to_string(),
                });
            }
            let key = HandlerKey::of(name);
            match by_key.insert(key.get(), name) {
                Some(other) if other == &**name => {
                    return Err(RegistryError::Twice {
                        name: name.to_string(),
                    });
                }
                Some(other) => {
                    let (name, other) = (name.to_string(), other.to_owned());
                    return Err(RegistryError::Collision {
                        name,
                        other,
                        key: key.to_string(),
                    });
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Makes every handler for this shard, on this shard.
    pub fn new(handlers: &[Handler], shard: &ShardInfo) -> Self {
        let keys = handlers
            .iter()
            .map(|handler| HandlerKey::of(&handler.name).get());
        Self {
            by_key: keys.zip(0..).collect(),
            entries: handlers
                .iter()
                .map(|handler| (handler.name.clone(), (handler.make)(shard)))
                .collect(),
            decoder: Decoder::new(),
            scratch: Vec::new(),
            last: None,
        }
    }

    /// The names in the order of their indexes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| &**name)
    }

    #[inline]
    pub(super) fn index_of(&mut self, key: HandlerKey) -> Option<usize> {
        match self.last {
            Some((last, index)) if last == key => Some(index),
            _ => {
                let index = self.by_key.get(&key.get()).copied()?;
                self.last = Some((key, index));
                Some(index)
            }
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::inline;

    fn named(name: &str) -> Handler {
        inline(name, |(): (), _| Ok(()))
    }

    #[test]
    fn names_that_cannot_be_served_are_refused() {
        assert_eq!(Registry::check(&[named("a"), named("b")]), Ok(()));
        let refused = |names: &[&str]| {
            let handlers: Vec<Handler> = names.iter().map(|name| named(name)).collect();
            Registry::check(&handlers).unwrap_err()
        };
        assert!(matches!(refused(&["a", "a"]), RegistryError::Twice { .. }));
        assert!(matches!(
            refused(&["_health"]),
            RegistryError::Reserved { .. }
        ));
        assert!(matches!(refused(&[""]), RegistryError::Length { .. }));
        assert!(matches!(
            refused(&[&"x".repeat(129)]),
            RegistryError::Length { .. }
        ));
    }

    /// Two names that FNV-1a 64 maps to one key, from its published collisions.
    #[test]
    fn a_collision_of_keys_is_refused() {
        let (first, second) = ("8yn0iYCKYHlIj4-BwPqk", "GReLUrM4wMqfg9yzV3KQ");
        assert_eq!(HandlerKey::of(first), HandlerKey::of(second));
        let error = Registry::check(&[named(first), named(second)]).unwrap_err();
        assert!(matches!(error, RegistryError::Collision { .. }), "{error}");
    }
}
