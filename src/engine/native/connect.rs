//! Connections that begin: accepting, and dialing, with a look-up of the name first.

use rustix::net::sockopt::socket_error;

use super::{
    Native,
    dial::Dial,
    link::{Link, Phase},
    listen::Accepted,
    socket::{self, Address},
    user,
};
use crate::{
    config::{Endpoint, Host},
    engine::ConnectionId,
    error::{EngineError, Lost},
};

/// Connections accepted in one look.
const ACCEPTS_MAX: usize = 32;

impl Native {
    pub(super) fn accept(&mut self, number: usize) {
        for _ in 0..ACCEPTS_MAX {
            if self.io.greeting >= self.io.options.unauthenticated_max {
                break;
            }
            let Some(listener) = self.listeners.get_mut(number) else {
                break;
            };
            match listener.accept(self.now, self.io.uid_of) {
                Accepted::Socket(socket) => {
                    self.io.greeting += 1;
                    let link = Link::accepted(socket, self.now, &self.io.options);
                    let id = self.links.insert(link);
                    self.begin(id);
                }
                Accepted::Refused => {}
                Accepted::None => break,
            }
        }
    }

    /// A connection to be dialed by the next poll.
    pub(super) fn begin_to_dial(
        &mut self,
        to: &Endpoint,
        is_once: bool,
    ) -> Result<ConnectionId, EngineError> {
        if let Endpoint::Tcp { port: 0, .. }
        | Endpoint::Tcp {
            host: Host::Any, ..
        } = to
        {
            return Err(EngineError::Connect {
                endpoint: to.to_string(),
                why: "name a host and a port; port 0 and `*` are for listening".to_owned(),
            });
        }
        let link = Link::dialed(Dial::new(to.clone(), is_once), self.now, &self.io.options);
        let id = self.links.insert(link);
        // Due at once: the next poll dials.
        self.schedule(id, self.now);
        Ok(id)
    }

    /// Dials, or asks for the address first.
    pub(super) fn dial(&mut self, id: ConnectionId) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let Some(Dial { endpoint, .. }) = &link.dial else {
            return;
        };
        if let Some(address) = Address::of(endpoint) {
            return self.dial_address(id, &address);
        }
        let until = self.now + self.io.options.handshake;
        let is_asked = self.resolver.ask(id, endpoint, &self.mailbox);
        link.phase = Phase::Resolving { until };
        match is_asked {
            true => self.schedule(id, until),
            false => self.fail(id, broken("too many names wait to be resolved")),
        }
    }

    pub(super) fn take_answers(&mut self) {
        while let Some(answer) = self.mailbox.pop() {
            let id = answer.connection;
            let phase = self.links.get(id).map(|link| &link.phase);
            // Else the connection is closed, or the answer came too late.
            if !matches!(phase, Some(Phase::Resolving { .. })) {
                continue;
            }
            match answer.endpoint.as_ref().map(Address::of) {
                Ok(Some(address)) => self.dial_address(id, &address),
                Ok(None) => self.fail(id, broken("the name has no address")),
                Err(error) => self.fail(id, broken(error)),
            }
        }
    }

    fn dial_address(&mut self, id: ConnectionId, address: &Address) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        match socket::connect_to(address) {
            Ok(socket) => {
                let until = self.now + self.io.options.handshake;
                link.socket = Some(socket);
                link.phase = Phase::Connecting { until };
                self.watch(id);
                self.schedule(id, until);
            }
            Err(errno) => self.fail(id, broken(errno)),
        }
    }

    /// The kernel has connected, or has given up.
    pub(super) fn on_connected(&mut self, id: ConnectionId) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let Some(socket) = link.socket.take() else {
            return;
        };
        let is_ipc = link.dial.as_ref().is_some_and(Dial::is_ipc);
        let outcome = match socket_error(&socket) {
            // Before anything is said to it.
            Ok(Ok(())) if is_ipc => user::check(&socket, self.io.uid_of),
            Ok(Ok(())) => Ok(()),
            Ok(Err(errno)) | Err(errno) => Err(broken(errno)),
        };
        match outcome {
            Ok(()) => {
                socket::tune(&socket);
                link.greet(socket, self.now, &self.io.options);
                self.begin(id);
            }
            Err(why) => {
                // Closing it takes it out of the poller's set.
                drop(socket);
                link.watched = None;
                self.fail(id, why);
            }
        }
    }

    /// A socket is connected: the handshake begins.
    fn begin(&mut self, id: ConnectionId) {
        self.watch(id);
        self.flush_one(id, self.now);
        let options = &self.io.options;
        let first_look = options.handshake.min(options.heartbeat_interval);
        self.schedule(id, self.now + first_look);
    }

    /// It cannot be made now.
    fn fail(&mut self, id: ConnectionId, why: Lost) {
        let Some(link) = self.links.get(id) else {
            return;
        };
        if let (Lost::OtherUser { .. }, Some(dial)) = (&why, &link.dial) {
            tracing::warn!(endpoint = %dial.endpoint, "left an ipc connection: {why}");
        }
        match link.is_once() {
            true => self.part(id, why),
            false => self.dial_again(id, &why),
        }
    }

    pub(super) fn dial_again(&mut self, id: ConnectionId, why: &Lost) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let Some(dial) = &mut link.dial else {
            return;
        };
        tracing::debug!(endpoint = %dial.endpoint, "trying again: {why}");
        let until = dial.next_attempt(self.now, &self.io.options, &mut self.random);
        link.reset(until, &mut self.io);
        self.schedule(id, until);
    }
}

fn broken(why: impl ToString) -> Lost {
    Lost::Broken(why.to_string())
}
