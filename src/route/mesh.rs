//! The rings between the shards of one runtime.

use std::{fmt, ops::Range, sync::Arc};

use crossbeam_channel::{Receiver, Sender};

use super::{
    Doorbell,
    ring::{Reader, Writer, ring},
};

/// One shard's ends of all rings.
///
/// Between each two shards there are four rings: each has one to the other for what it asks, and
/// one back for what it was asked. Whatever crosses comes back, once, to the shard that sent it.
/// What comes back is always taken; so a shard that takes no more of what it is asked than it has
/// room to give back never waits for one that waits for it, however full the rings are.
///
/// Nothing here blocks, locks or allocates. While both shards are awake, a crossing costs two
/// stores and a fence per turn that has any; one that sleeps is woken once.
pub struct Mesh<T> {
    /// By shard; none to itself.
    lanes: Vec<Option<Lane<T>>>,
    /// Items that one ring holds.
    capacity: usize,
    /// Something was staged or taken since the last publication.
    has_news: bool,
    /// The most items that were found in one ring.
    most_waiting: usize,
}

/// The rings to one other shard and from it.
struct Lane<T> {
    asked: Writer<T>,
    given_back: Reader<T>,
    to_answer: Reader<T>,
    answered: Writer<T>,
    /// The other shard's.
    doorbell: Arc<Doorbell>,
    /// Something was taken since the last publication.
    has_taken: bool,
}

/// What crossing came to in one publication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Shards that were given something.
    pub shards: usize,
    /// Of these, and of those that waited for room, how many slept and were woken.
    pub woken: usize,
}

impl<T> Mesh<T> {
    /// That of a shard which is alone.
    pub fn alone() -> Self {
        Self {
            lanes: vec![None],
            capacity: 0,
            has_news: false,
            most_waiting: 0,
        }
    }

    /// Items that one ring holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Shards, this one included.
    pub fn shards(&self) -> usize {
        self.lanes.len()
    }

    /// Stages an item for another shard, to be published with others. Without room it comes back:
    /// `limits.ring_capacity` items stand in the ring.
    ///
    /// # Panics
    ///
    /// If there is no such other shard.
    #[inline]
    pub fn ask(&mut self, shard: usize, item: Box<T>) -> Result<(), Box<T>> {
        self.has_news = true;
        self.lane(shard).asked.stage(item)
    }

    /// Whether [`ask`](Self::ask) would take an item.
    #[inline]
    pub fn has_room(&mut self, shard: usize) -> bool {
        self.lane(shard).asked.has_room()
    }

    /// Stages what another shard had asked, on its way back. Without room it comes back, and
    /// nothing but a task that took its time can find none.
    #[inline]
    pub fn give_back(&mut self, shard: usize, item: Box<T>) -> Result<(), Box<T>> {
        self.has_news = true;
        self.lane(shard).answered.stage(item)
    }

    /// The first of these shards that has asked something. A turn looks at every shard, and finds
    /// nothing from most of them: such a look is a comparison and a load.
    #[inline]
    pub fn next_asking(&self, shards: Range<usize>) -> Option<usize> {
        self.next(shards, |lane| !lane.to_answer.is_empty())
    }

    /// Takes at most so many items that another shard has asked, and no more than may be given
    /// back at once. Returns how many.
    #[inline]
    pub fn take_asked(&mut self, shard: usize, most: usize, into: &mut Vec<Box<T>>) -> usize {
        let Some(lane) = &mut self.lanes[shard] else {
            return 0;
        };
        let waiting = lane.to_answer.len();
        self.most_waiting = self.most_waiting.max(waiting);
        let wanted = waiting.min(most);
        let count = lane.answered.room(wanted);
        lane.to_answer.take(count, into);
        lane.has_taken |= count > 0;
        self.has_news |= count > 0;
        count
    }

    /// The first of these shards from which something comes back. As cheap as
    /// [`next_asking`](Self::next_asking).
    #[inline]
    pub fn next_answering(&self, shards: Range<usize>) -> Option<usize> {
        self.next(shards, |lane| !lane.given_back.is_empty())
    }

    /// Takes all that comes back from another shard. Returns how many.
    #[inline]
    pub fn take_back(&mut self, shard: usize, into: &mut Vec<Box<T>>) -> usize {
        let Some(lane) = &mut self.lanes[shard] else {
            return 0;
        };
        let count = lane.given_back.len();
        self.most_waiting = self.most_waiting.max(count);
        lane.given_back.take(count, into);
        lane.has_taken |= count > 0;
        self.has_news |= count > 0;
        count
    }

    /// What waits now in the fullest of the rings that this shard reads, and the most that it found
    /// in one as it took from it.
    pub fn waiting(&self) -> (usize, usize) {
        let lanes = self.lanes.iter().flatten();
        let rings = lanes.flat_map(|lane| [lane.to_answer.len(), lane.given_back.len()]);
        (rings.max().unwrap_or(0), self.most_waiting)
    }

    /// Lets the other shards have what is staged, and wakes those that sleep.
    #[inline]
    pub fn publish(&mut self) -> Published {
        match std::mem::take(&mut self.has_news) {
            true => self.publish_news(),
            false => Published::default(),
        }
    }

    // Out of line, so that who has no news is asked in line.
    #[inline(never)]
    fn publish_news(&mut self) -> Published {
        let mut published = Published::default();
        for lane in self.lanes.iter_mut().flatten() {
            let (asked, answered) = (lane.asked.publish(), lane.answered.publish());
            let has_taken = std::mem::take(&mut lane.has_taken);
            let is_given = asked | answered;
            published.shards += usize::from(is_given);
            if is_given || (has_taken && lane.is_room_wanted()) {
                published.woken += usize::from(lane.doorbell.wake());
            }
        }
        published
    }

    /// The last look before parking: false if anything has come or is staged. `wants_room` says to
    /// which shards something is held back; they wake this one once there is room.
    pub fn may_park(&mut self, wants_room: impl Fn(usize) -> bool) -> bool {
        let lanes = self.lanes.iter_mut().enumerate();
        let mut lanes = lanes.filter_map(|(shard, lane)| Some((shard, lane.as_mut()?)));
        lanes.all(|(shard, lane)| {
            lane.given_back.is_empty()
                && !lane.asked.has_staged()
                && !lane.answered.has_staged()
                && (lane.to_answer.is_empty() || lane.answered.may_sleep())
                && (!wants_room(shard) || lane.asked.may_sleep())
        })
    }

    /// Whether nothing is staged.
    pub fn is_published(&self) -> bool {
        let mut lanes = self.lanes.iter().flatten();
        lanes.all(|lane| !lane.asked.has_staged() && !lane.answered.has_staged())
    }

    /// Whether another shard has ended: it takes nothing, and gives nothing back.
    pub fn is_gone(&self, shard: usize) -> bool {
        let lane = self.lanes[shard].as_ref();
        lane.is_some_and(|lane| lane.asked.is_abandoned())
    }

    #[inline]
    fn next(&self, shards: Range<usize>, is_it: impl Fn(&Lane<T>) -> bool) -> Option<usize> {
        let start = shards.start;
        let mut lanes = self.lanes[shards].iter();
        let after = lanes.position(|lane| lane.as_ref().is_some_and(&is_it))?;
        Some(start + after)
    }

    #[inline]
    fn lane(&mut self, shard: usize) -> &mut Lane<T> {
        self.lanes[shard].as_mut().expect("is another shard")
    }
}

impl<T> Lane<T> {
    fn is_room_wanted(&self) -> bool {
        // Both, or the second would stay wanted.
        self.to_answer.is_room_wanted() | self.given_back.is_room_wanted()
    }
}

impl<T> fmt::Debug for Mesh<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("shards", &self.shards())
            .finish_non_exhaustive()
    }
}

/// A shard's place among those that are to be connected. Each makes the rings that it reads, on its
/// own thread, and gives their writing ends to the others.
pub struct Seat<T> {
    own: usize,
    /// To all, this one included.
    others: Vec<Sender<Ends<T>>>,
    received: Receiver<Ends<T>>,
}

/// The writing ends that one shard gives to another.
struct Ends<T> {
    from: usize,
    asked: Writer<T>,
    answered: Writer<T>,
}

/// A shard that has given and not yet received.
pub struct Joining<T> {
    own: usize,
    capacity: usize,
    readers: Vec<Option<(Reader<T>, Reader<T>)>>,
    received: Receiver<Ends<T>>,
}

/// A seat for each of so many shards.
pub fn seats<T>(shards: usize) -> Vec<Seat<T>> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..shards)
        .map(|_| crossbeam_channel::bounded(shards))
        .unzip();
    let receivers = receivers.into_iter().enumerate();
    let seat = |(own, received)| Seat {
        own,
        others: senders.clone(),
        received,
    };
    receivers.map(seat).collect()
}

impl<T> Seat<T> {
    /// Makes this shard's rings, of so many places each, and gives the others their ends. To be
    /// called on the shard's thread: that is where the rings' memory is touched first.
    pub fn offer(self, capacity: usize) -> Joining<T> {
        let Self {
            own,
            others,
            received,
        } = self;
        let mut readers = Vec::new();
        for (shard, other) in others.iter().enumerate() {
            if shard == own {
                readers.push(None);
                continue;
            }
            let ((asked, to_answer), (answered, given_back)) = (ring(capacity), ring(capacity));
            // One that has ended takes none.
            let _ = other.send(Ends {
                from: own,
                asked,
                answered,
            });
            readers.push(Some((to_answer, given_back)));
        }
        Joining {
            own,
            capacity,
            readers,
            received,
        }
    }
}

impl<T> Joining<T> {
    /// Waits for the ends that the others give. `None`: one of them has ended before. Their
    /// doorbells are given by shard.
    pub fn complete(self, doorbells: &[Arc<Doorbell>]) -> Option<Mesh<T>> {
        let Self {
            own,
            capacity,
            mut readers,
            received,
        } = self;
        let mut lanes: Vec<Option<Lane<T>>> = readers.iter().map(|_| None).collect();
        for _ in 0..readers.len() - 1 {
            let Ends {
                from,
                asked,
                answered,
            } = received.recv().ok()?;
            debug_assert_ne!(from, own);
            let (to_answer, given_back) = readers[from].take()?;
            lanes[from] = Some(Lane {
                asked,
                given_back,
                to_answer,
                answered,
                doorbell: doorbells[from].clone(),
                has_taken: false,
            });
        }
        Some(Mesh {
            lanes,
            capacity,
            has_news: false,
            most_waiting: 0,
        })
    }
}

impl<T> fmt::Debug for Seat<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("shard", &self.own)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Joining<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joining")
            .field("shard", &self.own)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_look_finds_each_shard_that_has_something_and_no_other() {
        let doorbells: Vec<Arc<Doorbell>> = (0..4).map(|_| Arc::default()).collect();
        let joining: Vec<_> = seats(4).into_iter().map(|seat| seat.offer(2)).collect();
        let meshes = joining.into_iter().map(|it| it.complete(&doorbells));
        let mut meshes: Vec<Mesh<u32>> = meshes.map(|it| it.expect("all have offered")).collect();
        let mut taken = Vec::new();
        for shard in [1, 3] {
            meshes[shard].ask(2, Box::new(shard as u32)).unwrap();
            assert_eq!(
                meshes[2].next_asking(shard..4),
                None,
                "before it is published"
            );
            meshes[shard].publish();
            assert_eq!(meshes[2].next_asking(0..4), Some(1));
            assert_eq!(meshes[2].next_asking(shard..4), Some(shard));
        }
        assert_eq!(
            (meshes[2].next_asking(2..3), meshes[2].next_asking(4..4)),
            (None, None)
        );
        for shard in [3, 1] {
            assert_eq!(meshes[2].take_asked(shard, 9, &mut taken), 1);
            let item = taken.pop().expect("was just taken");
            meshes[2].give_back(shard, item).unwrap();
            meshes[2].publish();
            assert_eq!(meshes[shard].next_asking(0..4), None);
            assert_eq!(meshes[shard].next_answering(0..4), Some(2));
            assert_eq!(meshes[shard].take_back(2, &mut taken), 1);
            assert_eq!(meshes[shard].next_answering(0..4), None);
        }
        assert_eq!(meshes[2].next_asking(0..4), None);
    }
}
