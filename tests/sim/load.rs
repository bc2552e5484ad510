//! What is sent, and how each of it ended.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use corelane::{
    client::{Message, Peer, Submit},
    error::{CallError, Indeterminate, NotSent, SendError},
    wire::Reason,
};
use quanta::Instant;

use crate::handlers::Order;

/// How the traces' lines end, each of which some seed must come to.
pub(crate) const ENDS: [&str; 31] = [
    "answered",
    "Cancelled",
    "Nack(UnknownHandler)",
    "Nack(HandlerFailed)",
    "Nack(HandlerPanicked)",
    "Nack(DeadlineExceeded)",
    "Nack(Overloaded)",
    "Nack(Draining)",
    "Indeterminate(ConnectionLost)",
    "Indeterminate(Deadline)",
    "Indeterminate(Stopped)",
    "NotSent(Deadline)",
    "NotSent(ConnectionLost)",
    "NotSent(Draining)",
    "NotSent(Closed)",
    "NotSent(Outstanding)",
    "refused: Full",
    "fault: twins",
    "fault: stranger",
    "late answers",
    "fault: cut all",
    "fault: cut one",
    "fault: half-open",
    "fault: stall shard",
    "fault: stall process",
    "fault: crash",
    "fault: restart",
    "fault: jump",
    "Lost(Closed)",
    "Lost(Silent)",
    "Lost(SlowConsumer)",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    OneWay,
    Confirm,
    Request,
}

type Reply = Result<Bytes, CallError>;
/// A confirm's reply is empty.
type Answer = Pin<Box<dyn Future<Output = Reply>>>;

/// A message that was accepted.
pub(crate) struct Sent {
    pub(crate) order: Order,
    pub(crate) mode: Mode,
    /// Index of its peer.
    pub(crate) peer: usize,
    /// By when it must have ended: its deadline, unless its shard could not run then.
    pub(crate) deadline: Instant,
    pub(crate) end: Option<End>,
    /// In which round that was seen.
    pub(crate) ended_in: u64,
    call: Option<Answer>,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Answered,
    /// Nobody waits for it.
    Cancelled,
    /// Whoever waited for it has crashed.
    Crashed,
    Nack(Reason),
    NotSent(NotSent),
    Indeterminate(Indeterminate),
}

impl Sent {
    /// Sends, or returns why not, having seen that the payload came back.
    pub(crate) fn send<C: Submit>(
        message: Message<'_, C>,
        order: Order,
        mode: Mode,
        (peer_index, peer): (usize, &Peer),
        now: Instant,
        within: Duration,
    ) -> Result<Self, NotSent> {
        let message = message.raw(order.encode().to_vec()).to(peer);
        let call: Result<Option<Answer>, SendError> = match mode {
            Mode::OneWay => message.one_way().map(|()| None),
            Mode::Confirm => message.confirm().within(within).send().map(|call| {
                let reply = async move { call.await.map(|()| Bytes::new()) };
                Some(Box::pin(reply) as _)
            }),
            Mode::Request => message
                .request()
                .within(within)
                .send()
                .map(|call| Some(Box::pin(call) as _)),
        };
        let call = call.map_err(|refused| {
            assert_eq!(
                refused.payload,
                order.encode()[..],
                "the payload comes back"
            );
            refused.why
        })?;
        Ok(Self {
            order,
            mode,
            peer: peer_index,
            deadline: now + within,
            end: None,
            ended_in: 0,
            call,
        })
    }

    /// Whether a call is not resolved.
    pub(crate) fn is_pending(&self) -> bool {
        self.call.is_some()
    }

    /// Its shard does nothing before this time.
    pub(crate) fn excuse(&mut self, until: Instant) {
        self.deadline = self.deadline.max(until);
    }

    /// Its process is no more.
    pub(crate) fn crash(&mut self) {
        self.call = None;
        self.end = Some(End::Crashed);
    }

    /// Stops waiting for it.
    pub(crate) fn cancel(&mut self) {
        self.call = None;
        self.end = Some(End::Cancelled);
    }

    /// Whether it should have ended by now.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.is_pending() && self.deadline <= now
    }

    /// Looks whether the call is resolved, in turns that began at this time; true only once.
    pub(crate) fn poll(&mut self, began: Instant) -> bool {
        let Some(call) = &mut self.call else {
            return false;
        };
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(reply) = call.as_mut().poll(&mut cx) else {
            return false;
        };
        assert!(began <= self.deadline, "too late: {:?}", self.order);
        self.call = None;
        self.end = Some(self.understand(reply));
        true
    }

    /// As [`ENDS`] has it.
    pub(crate) fn end_name(&self) -> String {
        match self.end {
            None => String::new(),
            Some(End::Answered) => "answered".to_owned(),
            Some(end) => format!("{end:?}"),
        }
    }

    fn understand(&self, reply: Reply) -> End {
        match reply {
            Ok(reply) if self.mode == Mode::Request => {
                assert_eq!(
                    reply,
                    self.order.encode()[..],
                    "the reply is this request's"
                );
                End::Answered
            }
            Ok(_) => End::Answered,
            Err(CallError::Nack { reason, text }) => {
                assert!(!text.is_empty(), "a nack says why");
                End::Nack(reason)
            }
            Err(CallError::NotSent(SendError { why, payload })) => {
                assert_eq!(payload, self.order.encode()[..], "the payload comes back");
                End::NotSent(why)
            }
            Err(CallError::Indeterminate(why)) => End::Indeterminate(why),
            Err(CallError::Reply(error)) => panic!("a raw reply has nothing to decode: {error}"),
        }
    }
}
