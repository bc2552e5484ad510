//! What a client knows of the shards of a process: which of them runs what, and the connections to
//! them.

use rustc_hash::FxHashMap;
use uuid::Uuid;

use crate::{
    config::{Endpoint, Host},
    peers::PeerId,
    wire::{Affinity, HandlerKey, Hello, ROUTE_MAP, shard_of_key},
};

/// No process has more. One that says so would have us connect as often.
const SHARDS_MAX: usize = 1024;

/// The shards of a process that has more than one, as its welcome tells.
#[derive(Debug)]
pub(super) struct Shards {
    instance: Uuid,
    /// By shard.
    links: Vec<Link>,
    targets: FxHashMap<HandlerKey, Target>,
    /// The shard that gets what runs wherever it arrives.
    home: usize,
    /// Messages come in runs to one handler.
    last: Option<(HandlerKey, Target)>,
}

/// The way to one shard.
#[derive(Debug)]
enum Link {
    /// The connection that the welcome came by.
    Main,
    /// Nothing has gone there yet.
    Unopened(Endpoint),
    Open(PeerId),
    /// It cannot be reached, or is not the shard that it should be: messages go by the main
    /// connection, and are routed there.
    Unusable,
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Home,
    Shard(usize),
    RouteKey,
}

/// Which way a message goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By the main connection.
    Main,
    Open(PeerId),
    /// By a connection to this shard that is yet to be made.
    Opening(usize, Endpoint),
}

impl Shards {
    /// What a welcome tells to a shard with this number, on a connection to this endpoint. `None`:
    /// there is one shard, or it does not tell enough.
    ///
    /// Messages that run wherever they arrive go to the shard that the endpoint is of; but if that
    /// is shard 0, whose address is the one that people write down, shard k's go to shard k, modulo
    /// how many there are: two processes then talk shard to shard, and share the work.
    pub(super) fn learn(hello: &Hello, dialed: &Endpoint, own: usize) -> Option<Self> {
        let shards = hello.shards;
        let at = hello.shard.unwrap_or(0);
        let listed = hello.endpoints.len();
        let is_told = (2..=SHARDS_MAX).contains(&shards) && at < shards;
        if !is_told || listed < shards || !listed.is_multiple_of(shards) {
            return None;
        }
        let per_shard = listed / shards;
        let endpoint = |index: usize| hello.endpoints[index].parse::<Endpoint>().ok();
        let own_endpoints: Vec<_> = (at * per_shard..(at + 1) * per_shard)
            .map(endpoint)
            .collect();
        let column = column_of(dialed, &own_endpoints)?;
        let link = |shard: usize| {
            if shard == at {
                return Link::Main;
            }
            match endpoint(shard * per_shard + column) {
                Some(endpoint) => Link::Unopened(reachable(endpoint, dialed)),
                None => Link::Unusable,
            }
        };
        Some(Self {
            instance: hello.instance,
            links: (0..shards).map(link).collect(),
            targets: targets(hello),
            home: if at == 0 { own % shards } else { at },
            last: None,
        })
    }

    /// The same process serves other handlers now. Its connections stay as they are.
    pub(super) fn learn_handlers(&mut self, hello: &Hello) {
        if hello.instance == self.instance && hello.shards == self.links.len() {
            self.targets = targets(hello);
            self.last = None;
        }
    }

    /// Which way a message goes.
    #[inline]
    pub(super) fn way(&mut self, handler: HandlerKey, route_key: u64) -> Way {
        let target = match self.last {
            Some((last, target)) if last == handler => target,
            _ => {
                let Some(&target) = self.targets.get(&handler) else {
                    return Way::Main;
                };
                self.last = Some((handler, target));
                target
            }
        };
        let shard = match target {
            Target::Home => self.home,
            Target::Shard(shard) => shard,
            // Refused wherever it arrives.
            Target::RouteKey if route_key == 0 => return Way::Main,
            Target::RouteKey => shard_of_key(route_key, self.links.len()),
        };
        match &self.links[shard] {
            Link::Main | Link::Unusable => Way::Main,
            Link::Open(peer) => Way::Open(*peer),
            Link::Unopened(endpoint) => Way::Opening(shard, endpoint.clone()),
        }
    }

    /// The connection to this shard is being made.
    pub(super) fn open(&mut self, shard: usize, peer: PeerId) {
        self.links[shard] = Link::Open(peer);
    }

    /// This connection leads nowhere.
    pub(super) fn give_up(&mut self, peer: PeerId) {
        if let Some(shard) = self.shard_of(peer) {
            self.links[shard] = Link::Unusable;
        }
    }

    /// The connections to other shards.
    pub(super) fn open_links(&self) -> impl Iterator<Item = PeerId> {
        self.links.iter().filter_map(|link| match link {
            Link::Open(peer) => Some(*peer),
            _ => None,
        })
    }

    /// Whether whoever answers on this connection is the shard that it should be.
    pub(super) fn is_met(&self, peer: PeerId, hello: &Hello) -> bool {
        let shard = self.shard_of(peer);
        hello.instance == self.instance && shard.is_some() && hello.shard == shard
    }

    /// Takes over the connections of what was known before, if that is still true. Returns those
    /// that lead nowhere now.
    pub(super) fn inherit(&mut self, before: &Shards) -> Vec<PeerId> {
        let is_same = before.instance == self.instance && before.links.len() == self.links.len();
        let mut stale = Vec::new();
        for (shard, link) in before.links.iter().enumerate() {
            match link {
                Link::Open(peer) if is_same && matches!(self.links[shard], Link::Unopened(_)) => {
                    self.links[shard] = Link::Open(*peer);
                }
                Link::Open(peer) => stale.push(*peer),
                _ => {}
            }
        }
        stale
    }

    fn shard_of(&self, peer: PeerId) -> Option<usize> {
        let mut links = self.links.iter();
        links.position(|link| matches!(link, Link::Open(open) if *open == peer))
    }
}

/// Which of a shard's endpoints was dialed.
fn column_of(dialed: &Endpoint, endpoints: &[Option<Endpoint>]) -> Option<usize> {
    let is_it = |it: &Endpoint| match (it, dialed) {
        (Endpoint::Tcp { port, .. }, Endpoint::Tcp { port: dialed, .. }) => port == dialed,
        (it, dialed) => it == dialed,
    };
    // A forwarded port, or another path to the same socket.
    let is_alike = |it: &Endpoint| std::mem::discriminant(it) == std::mem::discriminant(dialed);
    let find = |is: &dyn Fn(&Endpoint) -> bool| {
        let mut endpoints = endpoints.iter();
        endpoints.position(|it| it.as_ref().is_some_and(is))
    };
    find(&is_it).or_else(|| find(&is_alike))
}

/// A listed endpoint, by the host that is known to be reachable.
fn reachable(listed: Endpoint, dialed: &Endpoint) -> Endpoint {
    match (listed, dialed) {
        (Endpoint::Tcp { port, .. }, Endpoint::Tcp { host, .. }) => Endpoint::Tcp {
            host: Host::clone(host),
            port,
        },
        (listed, _) => listed,
    }
}

fn targets(hello: &Hello) -> FxHashMap<HandlerKey, Target> {
    let handlers = hello.handlers.iter().filter_map(|handler| {
        let key = u64::from_str_radix(&handler.key, 16).ok()?;
        let target = match handler.affinity {
            Affinity::Local => Target::Home,
            Affinity::Shard(shard) if shard < hello.shards => Target::Shard(shard),
            Affinity::Key if hello.route_map == ROUTE_MAP => Target::RouteKey,
            _ => return None,
        };
        Some((HandlerKey::from_u64(key), target))
    });
    handlers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::HandlerEntry;

    fn welcome(endpoints: &[&str], shards: usize) -> Hello {
        let handlers = [
            ("local", Affinity::Local),
            ("last", Affinity::Shard(shards - 1)),
            ("key", Affinity::Key),
            ("new", Affinity::Other("node:1".to_owned())),
            ("wrong", Affinity::Shard(shards)),
        ];
        Hello {
            endpoints: endpoints.iter().map(|it| it.to_string()).collect(),
            shards,
            shard: Some(0),
            handlers: handlers
                .map(|(name, it)| HandlerEntry::new(name, it))
                .into(),
            ..Hello::of_instance(Uuid::from_u128(1))
        }
    }

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    const THREE: [&str; 6] = [
        "tcp://0.0.0.0:7400",
        "ipc:///tmp/a",
        "tcp://0.0.0.0:7401",
        "ipc:///tmp/a.1",
        "tcp://0.0.0.0:7402",
        "ipc:///tmp/a.2",
    ];

    fn learn(dialed: &str, own: usize) -> Shards {
        Shards::learn(&welcome(&THREE, 3), &endpoint(dialed), own).unwrap()
    }

    fn way(shards: &mut Shards, name: &str, route_key: u64) -> Way {
        shards.way(HandlerKey::of(name), route_key)
    }

    #[test]
    fn each_message_goes_to_the_shard_that_runs_it() {
        let mut shards = learn("tcp://db:7400", 4);
        let at =
            |shard: usize| Way::Opening(shard, endpoint(&format!("tcp://db:{}", 7400 + shard)));
        assert_eq!(way(&mut shards, "local", 0), at(1), "4 modulo 3");
        assert_eq!(way(&mut shards, "last", 0), at(2));
        for unknown in ["new", "wrong", "unknown"] {
            assert_eq!(way(&mut shards, unknown, 7), Way::Main);
        }
        for key in 1..100 {
            let expected = match shard_of_key(key, 3) {
                0 => Way::Main,
                shard => at(shard),
            };
            assert_eq!(way(&mut shards, "key", key), expected);
        }
        assert_eq!(way(&mut shards, "key", 0), Way::Main);
    }

    #[test]
    fn the_same_transport_is_taken_by_the_host_that_was_dialed() {
        let mut ipc = learn("ipc:///tmp/a", 0);
        let there = Way::Opening(2, endpoint("ipc:///tmp/a.2"));
        assert_eq!(way(&mut ipc, "last", 0), there);
        // Through a tunnel.
        let mut other = learn("tcp://gate:1", 0);
        let there = Way::Opening(2, endpoint("tcp://gate:7402"));
        assert_eq!(way(&mut other, "last", 0), there);
    }

    #[test]
    fn another_shards_endpoint_is_stuck_to() {
        let mut hello = welcome(&THREE, 3);
        hello.shard = Some(2);
        let mut shards = Shards::learn(&hello, &endpoint("tcp://db:7402"), 4).unwrap();
        assert_eq!(way(&mut shards, "local", 0), Way::Main);
        assert_eq!(way(&mut shards, "last", 0), Way::Main);
    }

    #[test]
    fn who_does_not_tell_enough_has_one_connection() {
        let dialed = endpoint("tcp://db:7400");
        let one = welcome(&THREE[..2], 1);
        let uneven = welcome(&THREE[..5], 3);
        let no_endpoints = welcome(&[], 3);
        let boundless = Hello {
            shards: usize::MAX,
            ..welcome(&THREE, 3)
        };
        for hello in [one, uneven, no_endpoints, boundless] {
            assert!(Shards::learn(&hello, &dialed, 0).is_none(), "{hello:?}");
        }
        let no_map = Hello {
            route_map: "another".to_owned(),
            ..welcome(&THREE, 3)
        };
        let mut shards = Shards::learn(&no_map, &dialed, 0).unwrap();
        assert_eq!(way(&mut shards, "key", 1), Way::Main);
    }

    #[test]
    fn a_restarted_process_gets_new_connections() {
        let mut before = learn("tcp://db:7400", 0);
        let peer = PeerId::unique();
        before.open(2, peer);
        let mut same = learn("tcp://db:7400", 0);
        assert!(same.inherit(&before).is_empty());
        assert_eq!(way(&mut same, "last", 0), Way::Open(peer));
        let mut hello = welcome(&THREE, 3);
        hello.instance = Uuid::from_u128(2);
        let mut other = Shards::learn(&hello, &endpoint("tcp://db:7400"), 0).unwrap();
        assert_eq!(other.inherit(&before), [peer]);
        assert!(matches!(way(&mut other, "last", 0), Way::Opening(2, _)));
        same.give_up(peer);
        assert_eq!(way(&mut same, "last", 0), Way::Main);
    }
}
