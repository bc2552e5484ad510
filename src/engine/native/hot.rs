//! Which connections are polled directly: those that were active just now.
//!
//! An empty `recv` costs a quarter of a microsecond, so only a few can be asked every turn; an
//! epoll look costs half of that, however many connections it watches, but being watched makes each
//! arrival dearer and a look adds a step. So a few recently active connections are asked directly,
//! and all others through epoll.

use super::ConnectionId;

/// Connections that are polled directly at most.
const HOT_MAX: usize = 4;
/// A hot connection is let go once the others have been active so often since it last was.
const MISSES_MAX: u32 = 64;

#[derive(Default)]
pub(super) struct HotSet {
    members: Vec<Member>,
}

struct Member {
    id: ConnectionId,
    /// How often another one was active since this one was.
    misses: u32,
    /// How often it was active since the shard last parked.
    streak: u32,
}

impl HotSet {
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn get(&self, index: usize) -> Option<ConnectionId> {
        self.members.get(index).map(|member| member.id)
    }

    pub(super) fn contains(&self, id: ConnectionId) -> bool {
        self.members.iter().any(|member| member.id == id)
    }

    /// A connection was active: it becomes or stays hot, if there is room. Returns its streak (0:
    /// it is not hot), and who is let go.
    #[inline]
    pub(super) fn enter(&mut self, id: ConnectionId) -> (u32, Option<ConnectionId>) {
        if let [only] = &mut self.members[..]
            && only.id == id
        {
            only.streak = only.streak.saturating_add(1);
            return (only.streak, None);
        }
        self.enter_among(id)
    }

    fn enter_among(&mut self, id: ConnectionId) -> (u32, Option<ConnectionId>) {
        let mut found = None;
        let mut stale = None;
        for (index, member) in self.members.iter_mut().enumerate() {
            if member.id == id {
                member.misses = 0;
                member.streak = member.streak.saturating_add(1);
                found = Some(member.streak);
            } else {
                member.misses += 1;
                if member.misses > MISSES_MAX {
                    stale = Some(index);
                }
            }
        }
        let let_go = stale.map(|index| self.members.swap_remove(index).id);
        if found.is_none() && self.members.len() < HOT_MAX {
            self.members.push(Member {
                id,
                misses: 0,
                streak: 1,
            });
            found = Some(1);
        }
        (found.unwrap_or(0), let_go)
    }

    pub(super) fn remove(&mut self, id: ConnectionId) {
        self.members.retain(|member| member.id != id);
    }

    /// The shard parks: streaks begin anew.
    pub(super) fn end_streaks(&mut self) {
        for member in &mut self.members {
            member.streak = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> ConnectionId {
        ConnectionId {
            slot,
            generation: 1,
        }
    }

    #[test]
    fn who_is_alone_stays_hot_and_who_falls_silent_beside_others_does_not() {
        let mut hot = HotSet::default();
        for streak in 1..1_000 {
            assert_eq!(hot.enter(id(1)), (streak, None));
        }
        assert_eq!(hot.enter(id(2)), (1, None));
        let mut let_go = Vec::new();
        for _ in 0..100 {
            let_go.extend(hot.enter(id(2)).1);
        }
        assert_eq!(let_go, [id(1)]);
        assert_eq!((hot.len(), hot.get(0)), (1, Some(id(2))));
    }

    #[test]
    fn there_is_room_for_a_few() {
        let mut hot = HotSet::default();
        for slot in 0..10 {
            hot.enter(id(slot));
        }
        assert_eq!(hot.len(), HOT_MAX);
        hot.remove(id(0));
        hot.enter(id(9));
        assert!(hot.contains(id(9)));
    }
}
