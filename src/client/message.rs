//! The builder: handler, payload, peer, delivery mode.

use std::{future::IntoFuture, marker::PhantomData, time::Duration};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Call, Peer, Submit,
    call::{Acked, Expect, RawReply, TypedReply},
    order::{Order, Payload},
};
use crate::{
    codec,
    error::{CallError, CodecError, NotSent, SendError},
    wire::{Codec, HandlerKey, Kind},
};

/// As long a time as the wire can tell.
const DEADLINE_MAX: Duration = Duration::from_micros(u32::MAX as u64);

/// A message that names its handler and has no payload yet.
#[derive(Debug)]
#[must_use = "a message is sent only once it has a peer and a delivery mode"]
pub struct Message<'c, C> {
    client: &'c C,
    handler: HandlerKey,
    route_key: u64,
}

/// The payload is bytes, and so is the reply.
#[derive(Debug)]
pub struct Raw;
/// The payload is an encoded value, and so is the reply.
#[derive(Debug)]
pub struct Encoded;

impl<'c, C: Submit> Message<'c, C> {
    pub(super) fn new(client: &'c C, handler: HandlerKey) -> Self {
        Self {
            client,
            handler,
            route_key: 0,
        }
    }

    /// For handlers that are sharded by key; 0 means none.
    pub fn route_key(mut self, key: u64) -> Self {
        self.route_key = key;
        self
    }

    /// Bytes as they are. `Bytes` and `Vec<u8>` are not copied here, and large ones nowhere.
    pub fn raw(self, payload: impl Into<Bytes>) -> Outgoing<'c, C, Raw> {
        self.with(Codec::Raw, Payload::Shared(payload.into()))
    }

    /// Bytes that are copied into a buffer of the client's.
    pub fn raw_copy(self, payload: &[u8]) -> Outgoing<'c, C, Raw> {
        let mut buffer = self.client.buffer();
        buffer.extend_from_slice(payload);
        self.with(Codec::Raw, Payload::Own(buffer))
    }

    /// A value as JSON, written into a buffer of the client's.
    pub fn json<T: Serialize + ?Sized>(
        self,
        value: &T,
    ) -> Result<Outgoing<'c, C, Encoded>, CodecError> {
        self.encoded(Codec::Json, value)
    }

    /// A value as postcard, written into a buffer of the client's.
    pub fn postcard<T: Serialize + ?Sized>(
        self,
        value: &T,
    ) -> Result<Outgoing<'c, C, Encoded>, CodecError> {
        self.encoded(Codec::Postcard, value)
    }

    /// Bytes that are JSON already: neither encoded nor checked again.
    pub fn json_text(self, payload: impl Into<Bytes>) -> Outgoing<'c, C, Raw> {
        self.with(Codec::Json, Payload::Shared(payload.into()))
    }

    /// To this peer, with an empty payload.
    pub fn to(self, peer: &'c Peer) -> Addressed<'c, C, Raw> {
        self.raw(Bytes::new()).to(peer)
    }

    fn encoded<T: Serialize + ?Sized>(
        self,
        codec: Codec,
        value: &T,
    ) -> Result<Outgoing<'c, C, Encoded>, CodecError> {
        let mut payload = self.client.buffer();
        codec::encode(codec, value, &mut payload)?;
        Ok(self.with(codec, Payload::Own(payload)))
    }

    fn with<K>(self, codec: Codec, payload: Payload) -> Outgoing<'c, C, K> {
        let Self {
            client,
            handler,
            route_key,
        } = self;
        Outgoing {
            client,
            handler,
            codec,
            payload,
            route_key,
            kind: PhantomData,
        }
    }
}

/// A message with its payload.
#[derive(Debug)]
#[must_use = "a message is sent only once it has a peer and a delivery mode"]
pub struct Outgoing<'c, C, K> {
    client: &'c C,
    handler: HandlerKey,
    codec: Codec,
    payload: Payload,
    route_key: u64,
    kind: PhantomData<K>,
}

impl<'c, C: Submit, K> Outgoing<'c, C, K> {
    /// For handlers that are sharded by key; 0 means none.
    pub fn route_key(mut self, key: u64) -> Self {
        self.route_key = key;
        self
    }

    /// To this peer.
    pub fn to(self, peer: &'c Peer) -> Addressed<'c, C, K> {
        Addressed {
            outgoing: self,
            peer,
        }
    }
}

/// A message that knows where it goes, but not yet how.
#[derive(Debug)]
#[must_use = "a message is sent only once it has a delivery mode"]
pub struct Addressed<'c, C, K> {
    outgoing: Outgoing<'c, C, K>,
    peer: &'c Peer,
}

impl<'c, C: Submit, K> Addressed<'c, C, K> {
    /// One-way: at most once, and nothing answers. `Ok` means that it stands in a bounded queue of
    /// this process; otherwise the payload comes back. Never blocks.
    pub fn one_way(self) -> Result<(), SendError> {
        let Self { outgoing, peer } = self;
        let (client, order) = outgoing.order(Kind::OneWay)?;
        client.one_way(peer, order)
    }

    /// Confirmed: resolves with `Ok` once the handler has returned.
    pub fn confirm(self) -> Confirm<'c, C, K> {
        Confirm {
            addressed: self,
            within: None,
        }
    }

    fn call<E: Expect>(
        self,
        kind: Kind,
        within: Option<Duration>,
    ) -> Result<Call<E, C::Answer>, SendError> {
        let Self { outgoing, peer } = self;
        let (client, order) = outgoing.order(kind)?;
        let within = within.unwrap_or_else(|| client.within());
        let answer = client.call(peer, order, within.min(DEADLINE_MAX))?;
        Ok(Call::new(answer, peer.clone()))
    }
}

impl<'c, C: Submit, K> Outgoing<'c, C, K> {
    fn order(self, kind: Kind) -> Result<(&'c C, Order), SendError> {
        let Self {
            client,
            handler,
            codec,
            payload,
            route_key,
            ..
        } = self;
        let order = Order {
            kind,
            codec,
            handler,
            route_key,
            payload,
        };
        match order.payload.len() <= client.options().message_bytes_max {
            true => Ok((client, order)),
            false => Err(order.refuse(NotSent::TooLarge)),
        }
    }
}

impl<'c, C: Submit> Addressed<'c, C, Raw> {
    /// A request: at most one execution, at most one reply, of bytes.
    pub fn request(self) -> Request<'c, C, Raw, RawReply> {
        Request {
            addressed: self,
            within: None,
            reply: PhantomData,
        }
    }
}

impl<'c, C: Submit> Addressed<'c, C, Encoded> {
    /// A request: at most one execution, at most one reply, a value in the request's codec.
    pub fn request<T: DeserializeOwned>(self) -> Request<'c, C, Encoded, TypedReply<T>> {
        Request {
            addressed: self,
            within: None,
            reply: PhantomData,
        }
    }
}

/// A request that is not yet sent. `.await` or [`wait`](Self::wait) sends it.
#[derive(Debug)]
#[must_use = "a request is sent by `.await`, `wait` or `send`"]
pub struct Request<'c, C, K, E> {
    addressed: Addressed<'c, C, K>,
    within: Option<Duration>,
    reply: PhantomData<fn() -> E>,
}

impl<C: Submit, K, E: Expect> Request<'_, C, K, E> {
    /// The time that the call may take in all, at most some 71 minutes. Without it
    /// the config's `limits.deadline_ms` counts, or what remains of the deadline of the call that
    /// the client's handler serves, if that is less.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.within = Some(deadline);
        self
    }

    /// Sends it now, and answers later: for several calls at once. An error gives the payload back.
    pub fn send(self) -> Result<Call<E, C::Answer>, SendError> {
        self.addressed.call(Kind::Request, self.within)
    }

    /// Sends it and blocks this thread until it is resolved. Not for a shard, whose reactor would
    /// wait for itself.
    pub fn wait(self) -> Result<E::Reply, CallError> {
        self.send()?.wait()
    }
}

impl<C: Submit, K, E: Expect> IntoFuture for Request<'_, C, K, E> {
    type Output = Result<E::Reply, CallError>;
    type IntoFuture = Call<E, C::Answer>;

    fn into_future(self) -> Self::IntoFuture {
        self.send().unwrap_or_else(Call::refused)
    }
}

/// A confirmed message that is not yet sent. `.await` or [`wait`](Self::wait) sends it.
#[derive(Debug)]
#[must_use = "a message is sent by `.await`, `wait` or `send`"]
pub struct Confirm<'c, C, K> {
    addressed: Addressed<'c, C, K>,
    within: Option<Duration>,
}

impl<C: Submit, K> Confirm<'_, C, K> {
    /// The time that it may take in all, at most some 71 minutes. Without it the
    /// config's `limits.deadline_ms` counts, or what remains of the deadline of the call that the
    /// client's handler serves, if that is less.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.within = Some(deadline);
        self
    }

    /// Sends it now, and answers later. An error gives the payload back.
    pub fn send(self) -> Result<Call<Acked, C::Answer>, SendError> {
        self.addressed.call(Kind::Confirm, self.within)
    }

    /// Sends it and blocks this thread until it is resolved. Not for a shard, whose reactor would
    /// wait for itself.
    pub fn wait(self) -> Result<(), CallError> {
        self.send()?.wait()
    }
}

impl<C: Submit, K> IntoFuture for Confirm<'_, C, K> {
    type Output = Result<(), CallError>;
    type IntoFuture = Call<Acked, C::Answer>;

    fn into_future(self) -> Self::IntoFuture {
        self.send().unwrap_or_else(Call::refused)
    }
}
