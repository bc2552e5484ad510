//! Which handlers a runtime serves, and how that changes while it runs.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{collector::Collector, listening::entries, operator::listing, pool::Pool};
use crate::{
    client::Client,
    error::{RegisterError, RemoveError},
    events::Event,
    handler::{Handler, Registry},
    route::{Port, Refused},
    shard::{Announcement, Change, ChangeRefused, Changed, Command},
    wire::{HandlerEntry, Hello},
};

/// How long a shard may take to end its turn before a handler is registered.
const PATIENCE: Duration = Duration::from_secs(5);
/// Different names in a runtime's life, beside those that it was started with: each keeps its
/// histograms.
const ADDED_MAX: usize = 4096;

/// The handlers of a running [`Runtime`](super::Runtime), to be added to and taken from by any
/// thread. It may outlive the runtime; then it says that that is stopping.
#[derive(Clone)]
pub struct Handlers(Arc<Roster>);

/// What a roster is made from.
pub(super) struct Parts {
    pub(super) handlers: Vec<Handler>,
    pub(super) shards: Vec<Port<Command>>,
    pub(super) hello: Arc<Hello>,
    pub(super) collector: Arc<Mutex<Collector>>,
    pub(super) client: Client,
    /// `None` if there may be no blocking handler.
    pub(super) pool: Option<Weak<Mutex<Pool>>>,
}

struct Roster {
    /// Held for as long as a change takes: one comes after the other.
    state: Mutex<State>,
    shards: Vec<Port<Command>>,
    collector: Arc<Mutex<Collector>>,
    /// Whose hub is told.
    client: Client,
    /// The runtime's: who registers a handler holds it no longer than that takes.
    pool: Option<Weak<Mutex<Pool>>>,
    is_stopping: AtomicBool,
}

struct State {
    /// By index.
    places: Vec<Place>,
    places_max: usize,
    /// As it was last said.
    hello: Arc<Hello>,
}

/// What has an index for ever.
struct Place {
    name: String,
    /// `None` while it is not served.
    handler: Option<Handler>,
}

/// Why not all shards have done what they were told.
enum Unfinished {
    Refused(usize, ChangeRefused),
    Silent(usize),
    /// At least one has ended.
    Ended,
}

impl Handlers {
    pub(super) fn new(parts: Parts) -> Self {
        let place = |handler: &Handler| Place {
            name: handler.name().to_owned(),
            handler: Some(handler.clone()),
        };
        let places: Vec<Place> = parts.handlers.iter().map(place).collect();
        let state = Mutex::new(State {
            places_max: places.len() + ADDED_MAX,
            places,
            hello: parts.hello,
        });
        Self(Arc::new(Roster {
            state,
            shards: parts.shards,
            collector: parts.collector,
            client: parts.client,
            pool: parts.pool,
            is_stopping: AtomicBool::new(false),
        }))
    }

    /// Serves one more handler, on every shard. When this returns `Ok`, all of them do, but for one
    /// that stalls meanwhile (see below), and peers are being told; a peer that does not know it
    /// yet may send to it all the same.
    ///
    /// Each shard runs the factory on its own thread, between two turns: it should not take long.
    /// If one panics, the handler is served nowhere, and the shards live. The name may be one that
    /// was removed before; its counters and histograms go on.
    ///
    /// Blocks until every shard has ended its turn twice, so never call it on a shard. A shard that
    /// is silent for five seconds, since one of its handlers does not return, has the handler
    /// refused. Where that happens only after all shards have made it, this returns `Ok`, a warning
    /// is logged, and that shard nacks `UnknownHandler` until its own handler returns.
    pub fn register(&self, handler: Handler) -> Result<(), RegisterError> {
        let mut state = self.0.state();
        self.0.register(&mut state, handler)
    }

    /// Serves the handler of this name no longer: from now on its messages are nacked
    /// `UnknownHandler`. What it has accepted is handled: its tasks go on, what waits for a turn or
    /// a thread runs, and what it has collected is run at once. A shard drops its state when the
    /// last of these is done.
    ///
    /// Blocks until every shard has ended its turn, so never call it on a shard; one that is silent
    /// for five seconds does it when its handler returns.
    pub fn remove(&self, name: &str) -> Result<(), RemoveError> {
        let mut state = self.0.state();
        self.0.remove(&mut state, name)
    }

    /// The names of the handlers that are served, but for the built-in ones. Waits for a change
    /// that is under way.
    pub fn names(&self) -> Vec<String> {
        let state = self.0.state();
        let served = state.served();
        served.map(|it| it.name().to_owned()).collect()
    }

    /// From now on nothing changes.
    pub(super) fn stop(&self) {
        self.0.is_stopping.store(true, Relaxed);
    }
}

impl State {
    fn served(&self) -> impl Iterator<Item = &Handler> {
        self.places.iter().filter_map(|it| it.handler.as_ref())
    }

    /// Where a handler of this name was, or the next free index.
    fn index_for(&self, name: &str) -> usize {
        let was = self.places.iter().position(|it| it.name == name);
        was.unwrap_or(self.places.len())
    }
}

impl Roster {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, state: &mut State, handler: Handler) -> Result<(), RegisterError> {
        let name = handler.name().to_owned();
        if self.is_stopping.load(Relaxed) {
            return Err(RegisterError::Stopping);
        }
        let all: Vec<Handler> = state.served().cloned().chain([handler.clone()]).collect();
        Registry::check(&all, self.shards.len())?;
        let index = state.index_for(&name);
        if index >= state.places_max {
            let names_max = state.places_max;
            return Err(RegisterError::TooMany { name, names_max });
        }
        if handler.is_blocking() {
            self.start_pool(&name)?;
        }
        let prepare = || Change::Prepare {
            handler: handler.clone(),
            index,
        };
        if let Err(why) = self.tell(prepare, Duration::ZERO) {
            self.take_back();
            return Err(why.of(name));
        }
        if index == state.places.len() {
            let handler = None;
            state.places.push(Place {
                name: name.clone(),
                handler,
            });
        }
        let names: Arc<[String]> = state.places.iter().map(|it| it.name.clone()).collect();
        self.collector
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .grow(&names);
        let install = || Change::Install {
            names: names.clone(),
        };
        self.see_through(install, &name)
            .map_err(|Ended| RegisterError::Stopping)?;
        state.places[index].handler = Some(handler);
        self.announce(state, &name);
        let event = Event::HandlerRegistered { name };
        self.client.hub().publish(event);
        Ok(())
    }

    /// The first blocking handler of a runtime brings the threads.
    fn start_pool(&self, name: &str) -> Result<(), RegisterError> {
        let name = name.to_owned();
        let Some(pool) = &self.pool else {
            return Err(RegisterError::NoThreads { name });
        };
        let Some(pool) = pool.upgrade() else {
            return Err(RegisterError::Stopping);
        };
        let started = Pool::lock(&pool).start_threads();
        started.map_err(|error| RegisterError::Threads {
            name,
            text: error.to_string(),
        })
    }

    fn remove(&self, state: &mut State, name: &str) -> Result<(), RemoveError> {
        if self.is_stopping.load(Relaxed) {
            return Err(RemoveError::Stopping);
        }
        let name = name.to_owned();
        if name.starts_with('_') {
            return Err(RemoveError::Reserved { name });
        }
        let mut places = state.places.iter_mut();
        let place = places.find(|it| it.name == name && it.handler.is_some());
        let Some(place) = place else {
            return Err(RemoveError::Unknown { name });
        };
        place.handler = None;
        // First of all nobody is sent there any more.
        self.announce(state, &name);
        let remove = || Change::Remove { name: name.clone() };
        self.see_through(remove, &name)
            .map_err(|Ended| RemoveError::Stopping)?;
        let event = Event::HandlerRemoved { name };
        self.client.hub().publish(event);
        Ok(())
    }

    /// Has all shards say from now on what is served.
    fn announce(&self, state: &mut State, name: &str) {
        let handlers: Vec<Handler> = state.served().cloned().collect();
        let entries: Vec<HandlerEntry> = entries(&handlers, self.shards.len());
        let hello = Arc::new(Hello {
            handlers: entries.clone(),
            ..(*state.hello).clone()
        });
        state.hello = hello.clone();
        let announcement = Announcement {
            hello,
            listing: Some(listing(entries)),
        };
        // A shard that has ended says nothing any more.
        let _ = self.see_through(|| Change::Announce(announcement.clone()), name);
    }

    /// As [`tell`](Self::tell), for what cannot be taken back: a shard that is silent will do it.
    fn see_through(&self, change: impl Fn() -> Change, name: &str) -> Result<(), Ended> {
        // Waits for room: it is to come to every shard.
        match self.tell(change, PATIENCE) {
            Ok(()) => Ok(()),
            Err(Unfinished::Ended | Unfinished::Refused(..)) => Err(Ended),
            Err(Unfinished::Silent(shard)) => {
                tracing::warn!(
                    handler = name,
                    shard,
                    "a shard learns of a change of handlers only when one of its own returns"
                );
                Ok(())
            }
        }
    }

    /// Has every shard forget what it has prepared. It stands behind that in each queue; where
    /// there is no room for it, the next one that is prepared takes its place.
    fn take_back(&self) {
        let (reply, _) = crossbeam_channel::unbounded();
        for shard in &self.shards {
            let (change, reply) = (Change::Discard, reply.clone());
            let _ = shard.try_send(Command::Change { change, reply });
        }
    }

    /// Has every shard do something, and waits until all have. For room among a shard's commands it
    /// waits so long.
    fn tell(&self, change: impl Fn() -> Change, patience: Duration) -> Result<(), Unfinished> {
        let (reply, replies) = crossbeam_channel::unbounded::<Changed>();
        let mut unreached = None;
        for (number, shard) in self.shards.iter().enumerate() {
            let command = Command::Change {
                change: change(),
                reply: reply.clone(),
            };
            match shard.send_within(command, patience) {
                Ok(()) => {}
                // It has not looked at its commands for long. What can be taken back stops here.
                Err(Refused::Full(_)) if patience.is_zero() => {
                    return Err(Unfinished::Silent(number));
                }
                Err(Refused::Full(_)) => unreached = Some(number),
                Err(_) => return Err(Unfinished::Ended),
            }
        }
        drop(reply);
        let mut silent: Vec<usize> = (0..self.shards.len()).collect();
        let mut refused = None;
        let deadline = Instant::now() + PATIENCE;
        while !silent.is_empty() {
            match replies.recv_deadline(deadline) {
                Ok((shard, done)) => {
                    silent.retain(|&other| other != shard);
                    if let Err(why) = done {
                        refused.get_or_insert(Unfinished::Refused(shard, why));
                    }
                }
                Err(error) if error.is_timeout() => return Err(Unfinished::Silent(silent[0])),
                Err(_) => return Err(unreached.map_or(Unfinished::Ended, Unfinished::Silent)),
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

/// A shard has.
struct Ended;

impl Unfinished {
    fn of(self, name: String) -> RegisterError {
        match self {
            Unfinished::Ended | Unfinished::Refused(_, ChangeRefused::Stopping) => {
                RegisterError::Stopping
            }
            Unfinished::Refused(shard, ChangeRefused::Panicked(text)) => {
                RegisterError::FactoryPanicked { name, shard, text }
            }
            Unfinished::Silent(shard) => RegisterError::Silent { name, shard },
        }
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers").finish_non_exhaustive()
    }
}
