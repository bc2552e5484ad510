//! Which handlers cannot be served together.

use rustc_hash::FxHashMap;

use super::{Handler, HandlerKind, Home, Registry};
use crate::{error::RegistryError, wire::HandlerKey};

/// Names that begin so belong to corelane.
const RESERVED_PREFIX: char = '_';
/// Bytes of the longest name: what a dump's tag and a log line bear.
const NAME_BYTES_MAX: usize = 128;

/// Whether a handler can have this name, be it a built-in one's.
pub(in crate::handler) fn could_be_served(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
}

impl Registry {
    /// Refuses what so many shards could not serve: a name twice, two names with one key, a
    /// reserved, empty or overlong name, a shard that is not there.
    pub fn check(handlers: &[Handler], shards: usize) -> Result<(), RegistryError> {
        let mut by_key: FxHashMap<u64, &str> = FxHashMap::default();
        for Handler {
            name,
            home,
            kind,
            ordered,
            ..
        } in handlers
        {
            if ordered.is_some() && *kind != HandlerKind::Spawned {
                let name = name.to_string();
                return Err(RegistryError::NotSpawned { name });
            }
            if let Home::Shard(shard) = *home
                && shard >= shards
            {
                let name = name.to_string();
                return Err(RegistryError::NoSuchShard {
                    name,
                    shard,
                    shards,
                });
            }
            if !could_be_served(name) {
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
}
