//! What is refused, and who runs what.

use super::*;
use crate::{
    error::RegistryError,
    handler::{blocking, inline, spawned},
    wire::Kind,
};

fn named(name: &str) -> Handler {
    inline(name, |(): (), _| Ok(()))
}

#[test]
fn names_that_cannot_be_served_are_refused() {
    assert_eq!(Registry::check(&[named("a"), named("b")], 1), Ok(()));
    let refused = |names: &[&str]| {
        let handlers: Vec<Handler> = names.iter().map(|name| named(name)).collect();
        Registry::check(&handlers, 1).unwrap_err()
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
    let error = Registry::check(&[named(first), named(second)], 1).unwrap_err();
    assert!(matches!(error, RegistryError::Collision { .. }), "{error}");
}

#[test]
fn a_shard_that_is_not_there_is_refused() {
    let check = |handler: Handler, shards| Registry::check(&[handler], shards);
    assert_eq!(check(named("a").on_shard(1), 2), Ok(()));
    assert_eq!(check(named("a").on_last_shard(), 1), Ok(()));
    let error = check(named("a").on_shard(2), 2).unwrap_err();
    assert!(
        matches!(error, RegistryError::NoSuchShard { .. }),
        "{error}"
    );
}

#[test]
fn order_is_for_spawned_handlers() {
    let check = |handler: Handler| Registry::check(&[handler.ordered_per_peer(1)], 1);
    assert_eq!(check(spawned("a", |(): (), _| async { Ok(()) })), Ok(()));
    for other in [named("a"), blocking("a", |(): (), _| Ok(()))] {
        let error = check(other).unwrap_err();
        assert!(matches!(error, RegistryError::NotSpawned { .. }), "{error}");
    }
}

#[test]
fn each_shard_knows_which_messages_are_anothers() {
    let handlers = [
        named("local"),
        named("one").on_shard(1),
        named("last").on_last_shard(),
        named("key").by_route_key(),
    ];
    for own in 0..3 {
        let info = ShardInfo {
            shard: own,
            shards: 3,
            cpu: 0,
            numa_node: 0,
        };
        let mut registry = Registry::new(&handlers, &info);
        let mut home_of = |name: &str, route_key| {
            let header = Header {
                handler: HandlerKey::of(name),
                route_key,
                ..Header::new(Kind::Request, 1)
            };
            registry.elsewhere(&header).unwrap_or(own)
        };
        assert_eq!(home_of("local", 7), own);
        assert_eq!((home_of("one", 7), home_of("last", 7)), (1, 2));
        assert_eq!((home_of("key", 0), home_of("unknown", 7)), (own, own));
        for key in 1..100 {
            assert_eq!(home_of("key", key), shard_of_key(key, 3));
        }
    }
}

/// What its predecessor has begun ends under it, and counts among what it may run at once.
#[test]
fn a_handler_that_is_served_anew_keeps_count_of_what_is_under_way() {
    let info = ShardInfo {
        shard: 0,
        shards: 1,
        cpu: 0,
        numa_node: 0,
    };
    let handler = || spawned("a", |(): (), _| async { Ok(()) }).concurrency(2);
    let mut registry = Registry::new(&[handler()], &info);
    let index = registry.user_index_of("a").unwrap();
    for _ in 0..2 {
        registry.begin(index);
    }
    registry.end(index);
    registry.remove("a");
    registry.prepare(&handler(), index, &info).unwrap();
    registry.install();
    assert_eq!(registry.user_index_of("a"), Some(index));
    assert_eq!(registry.under_way(index), (1, 2));
    registry.end(index);
    assert_eq!(registry.under_way(index), (0, 2));
}
