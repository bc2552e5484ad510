//! Handlers that cannot be registered or removed while the runtime runs.

use super::RegistryError;

/// Why a handler is not served. Nothing of it is left on any shard.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// It cannot be served beside those that there are.
    #[error(transparent)]
    Refused(#[from] RegistryError),
    /// It is a blocking one, and the configuration forbids threads for those.
    #[error(
        "blocking handler {name:?}: blocking.threads is 0; give it threads, or make it spawned"
    )]
    NoThreads {
        /// Its name.
        name: String,
    },
    /// It is the first blocking one, and not all threads for those could be started. Those that
    /// were are kept, for when it is tried again.
    #[error("blocking handler {name:?}: {text}")]
    Threads {
        /// Its name.
        name: String,
        /// What has failed, and what to do.
        text: String,
    },
    /// Its factory panicked, on the first of the shards that said so.
    #[error("handler {name:?}: its factory panicked on shard {shard}: {text}")]
    FactoryPanicked {
        /// Its name.
        name: String,
        /// Which shard.
        shard: usize,
        /// What the panic said.
        text: String,
    },
    /// A shard has not ended its turn for so long: one of its handlers does not return.
    #[error(
        "handler {name:?} is not registered: shard {shard} is silent, since one of its handlers \
         does not return; see `_metrics` for its name"
    )]
    Silent {
        /// The handler's name.
        name: String,
        /// Which shard.
        shard: usize,
    },
    /// More names than a runtime takes down in its life.
    #[error("handler {name:?}: a runtime registers {names_max} different names at most")]
    TooMany {
        /// Its name.
        name: String,
        /// How many.
        names_max: usize,
    },
    /// The runtime drains, or has stopped.
    #[error("the runtime is stopping: it takes no new handlers")]
    Stopping,
}

/// Why a handler is not removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// There is none of this name.
    #[error("no handler {name:?} is registered")]
    Unknown {
        /// The name.
        name: String,
    },
    /// It is corelane's own.
    #[error("handler {name:?} is a built-in one, and stays")]
    Reserved {
        /// The name.
        name: String,
    },
    /// The runtime drains, or has stopped.
    #[error("the runtime is stopping: its handlers end with it")]
    Stopping,
}
