//! Host names: the system's resolver blocks, so a thread of its own asks it, and no shard waits.

use std::{os::fd::OwnedFd, sync::Arc};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::{EventfdFlags, eventfd};

use super::ConnectionId;
use crate::{
    config::Endpoint,
    error::{EndpointError, EngineError},
};

/// Names that wait to be resolved, over all shards; beyond them a connection tries again later.
const QUERIES_MAX: usize = 256;
/// Answers that wait for one shard; one beyond them is dropped, and asked for again in time.
const ANSWERS_MAX: usize = 256;

/// Where the shards of a runtime ask for names. It ends with the last of its clones.
#[derive(Clone, Debug)]
pub struct Resolver(Sender<Query>);

#[derive(Debug)]
struct Query {
    connection: ConnectionId,
    endpoint: Endpoint,
    mailbox: Arc<Mailbox>,
}

/// What a shard is told: the endpoint with an address in place of the name.
pub(super) struct Answer {
    pub(super) connection: ConnectionId,
    pub(super) endpoint: Result<Endpoint, EndpointError>,
}

/// One shard's answers, and the descriptor that says that there are some.
#[derive(Debug)]
pub(super) struct Mailbox {
    sender: Sender<Answer>,
    receiver: Receiver<Answer>,
    pub(super) rung: OwnedFd,
}

impl Resolver {
    /// A resolver, and what its thread is to run.
    pub fn new() -> (Self, impl FnOnce() + Send + 'static) {
        let (sender, queries) = crossbeam_channel::bounded::<Query>(QUERIES_MAX);
        let serve = move || {
            for query in queries {
                let answer = Answer {
                    connection: query.connection,
                    endpoint: query.endpoint.resolve(),
                };
                if query.mailbox.sender.try_send(answer).is_ok() {
                    // The counter cannot overflow before the shard reads it.
                    let _ = rustix::io::write(&query.mailbox.rung, &1_u64.to_ne_bytes());
                }
            }
        };
        (Self(sender), serve)
    }

    /// Asks for a name; the answer comes into the mailbox. False if too many others wait.
    pub(super) fn ask(
        &self,
        connection: ConnectionId,
        endpoint: &Endpoint,
        mailbox: &Arc<Mailbox>,
    ) -> bool {
        let query = Query {
            connection,
            endpoint: endpoint.clone(),
            mailbox: mailbox.clone(),
        };
        self.0.try_send(query).is_ok()
    }
}

impl Mailbox {
    pub(super) fn new() -> Result<Arc<Self>, EngineError> {
        let (sender, receiver) = crossbeam_channel::bounded(ANSWERS_MAX);
        let rung = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| EngineError::Socket(errno.to_string()))?;
        Ok(Arc::new(Self {
            sender,
            receiver,
            rung,
        }))
    }

    /// The next answer. Once there is none, the descriptor is quiet until another comes.
    pub(super) fn pop(&self) -> Option<Answer> {
        if let Ok(answer) = self.receiver.try_recv() {
            return Some(answer);
        }
        let _ = rustix::io::read(&self.rung, &mut [0; 8]);
        // One may have come before the descriptor was read.
        self.receiver.try_recv().ok()
    }
}
