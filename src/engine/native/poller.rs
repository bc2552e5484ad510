//! The shard's epoll descriptor: what is quiet costs nothing until it says something.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    event::epoll::{self, EventData, EventFlags},
    io::Errno,
    time::Timespec,
};

use super::ConnectionId;

/// Events taken in one look; the others are there in the next one.
const EVENTS_MAX: usize = 256;

/// What a readiness event speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Listener(u32),
    Link(ConnectionId),
    /// Names that have been resolved.
    Resolver,
    /// Somebody wants the shard awake.
    Bell,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// What may be done now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub(super) token: Token,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

pub(super) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_MAX),
        })
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub(super) fn add(
        &self,
        descriptor: impl AsFd,
        token: Token,
        interest: Interest,
    ) -> Result<(), Errno> {
        epoll::add(&self.epoll, descriptor, token.to_data(), interest.flags())
    }

    pub(super) fn modify(
        &self,
        descriptor: impl AsFd,
        token: Token,
        interest: Interest,
    ) -> Result<(), Errno> {
        epoll::modify(&self.epoll, descriptor, token.to_data(), interest.flags())
    }

    pub(super) fn remove(&self, descriptor: impl AsFd) -> Result<(), Errno> {
        epoll::delete(&self.epoll, descriptor)
    }

    /// Asks what is ready, without waiting, and hands it on.
    #[inline]
    pub(super) fn look(&mut self, each: impl FnMut(Ready)) {
        let no_wait = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        self.wait(Some(&no_wait), each);
    }

    /// Waits until something is ready, at most so long, and hands it on.
    pub(super) fn wait(&mut self, at_most: Option<&Timespec>, mut each: impl FnMut(Ready)) {
        self.events.clear();
        let buffer = rustix::buffer::spare_capacity(&mut self.events);
        // EINTR is the only error that can come; the next look asks again.
        let _ = epoll::wait(&self.epoll, buffer, at_most);
        for event in &self.events {
            // Copied out: the kernel's struct is packed.
            let (flags, data) = (event.flags, event.data);
            let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            each(Ready {
                token: Token::from_u64(data.u64()),
                readable: failed || flags.contains(EventFlags::IN),
                writable: failed || flags.contains(EventFlags::OUT),
            });
        }
    }
}

impl Interest {
    pub(super) const READABLE: Self = Self {
        readable: true,
        writable: false,
    };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.readable);
        flags.set(EventFlags::OUT, self.writable);
        flags
    }
}

impl Token {
    /// As epoll keeps it. Generations begin at 1, so that no connection's is below 2^32.
    fn to_data(self) -> EventData {
        EventData::new_u64(match self {
            Token::Listener(number) => u64::from(number),
            Token::Resolver => u64::from(u32::MAX),
            Token::Bell => u64::from(u32::MAX - 1),
            Token::Link(id) => id.to_u64(),
        })
    }

    fn from_u64(data: u64) -> Self {
        match u32::try_from(data) {
            Ok(u32::MAX) => Token::Resolver,
            Ok(number) if number == u32::MAX - 1 => Token::Bell,
            Ok(number) => Token::Listener(number),
            Err(_) => Token::Link(ConnectionId::from_u64(data)),
        }
    }
}
