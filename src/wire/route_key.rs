//! Which shard a route key belongs to: the same in every client and every server.

/// Names [`shard_of_key`] in a `welcome`: a client that does not know the name sends to any shard,
/// and the message is routed there.
pub const ROUTE_MAP: &str = "splitmix64";

/// The shard of a route key among so many: the key's bits are mixed by the finalizer of splitmix64,
/// and the result, taken as a fraction of 2^64, says how far along the shards it lies.
///
/// Part of the wire, and never to change: two processes that disagreed would run one key on two
/// shards. Sequential keys spread evenly; with another number of shards most keys move. Key 0 means
/// none, and no shard owns it.
///
/// ```
/// use corelane::wire::shard_of_key;
/// assert_eq!([1, 2, 3, u64::MAX].map(|key| shard_of_key(key, 3)), [1, 2, 0, 2]);
/// ```
///
/// # Panics
///
/// If there are no shards.
pub const fn shard_of_key(route_key: u64, shards: usize) -> usize {
    assert!(shards > 0, "a process has a shard");
    let mut mixed = route_key;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    ((mixed as u128 * shards as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted and hashed keys alike, within 5% of an even share.
    #[test]
    fn keys_spread_evenly() {
        let steps = [1, 8, 1 << 20, 1 << 40, 0x9e37_79b9_7f4a_7c15];
        for shards in [1, 2, 3, 8, 64] {
            for step in steps {
                let mut counts = vec![0_u32; shards];
                for n in 1..=(10_000 * shards as u64) {
                    counts[shard_of_key(n.wrapping_mul(step), shards)] += 1;
                }
                for count in counts {
                    assert!(
                        (9_500..=10_500).contains(&count),
                        "{shards}, {step}: {count}"
                    );
                }
            }
        }
    }
}
