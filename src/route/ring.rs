//! One direction between two shards.

use std::sync::Arc;

use rtrb::{Consumer, Producer, RingBuffer};

use super::room::Room;

/// A bounded ring from one shard to another, made by its reader: its memory is first touched by the
/// thread that calls this, and so lies on that thread's NUMA node.
///
/// What moves is one pointer per item, so that an item of any size crosses at the price of a cache
/// line, and a ring of 1,024 takes 8 KiB: there are 2 N (N - 1) of them.
pub(super) fn ring<T>(capacity: usize) -> (Writer<T>, Reader<T>) {
    let (mut producer, mut consumer) = RingBuffer::new(capacity);
    let touched = producer
        .write_chunk_uninit(capacity)
        .map(|chunk| chunk.fill_from_iter(std::iter::repeat_with(|| None)));
    debug_assert_eq!(touched, Ok(capacity));
    if let Ok(chunk) = consumer.read_chunk(capacity) {
        chunk.commit_all();
    }
    let room = Arc::new(Room::new());
    let writer = Writer {
        producer,
        staged: Vec::with_capacity(capacity),
        free: 0,
        room: room.clone(),
    };
    (writer, Reader { consumer, room })
}

/// The writing end. What is staged is published at once, by one store that the reader sees.
pub(super) struct Writer<T> {
    producer: Producer<Option<Box<T>>>,
    staged: Vec<Box<T>>,
    /// Places of the ring that were free when it was last looked at, less those staged for.
    free: usize,
    room: Arc<Room>,
}

impl<T> Writer<T> {
    /// Whether another item may be staged.
    #[inline]
    pub(super) fn has_room(&mut self) -> bool {
        self.room(1) > 0
    }

    /// How many more items may be staged now, if that is less than so many. The reader's end is
    /// looked at only then: what it has written lies in another CPU's cache.
    #[inline]
    pub(super) fn room(&mut self, wanted: usize) -> usize {
        if self.free < wanted {
            self.free = self.producer.slots() - self.staged.len();
        }
        self.free.min(wanted)
    }

    /// Takes an item, to be published with others. Without room it comes back.
    #[inline]
    pub(super) fn stage(&mut self, item: Box<T>) -> Result<(), Box<T>> {
        if !self.has_room() {
            return Err(item);
        }
        self.free -= 1;
        self.staged.push(item);
        Ok(())
    }

    pub(super) fn has_staged(&self) -> bool {
        !self.staged.is_empty()
    }

    /// Lets the reader have what is staged. Says whether that was anything.
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        match self.staged.len() {
            0 => return false,
            // Most often; a chunk is made for many.
            1 => {
                let pushed = self.producer.push(self.staged.pop());
                debug_assert!(pushed.is_ok(), "a place was free for it");
            }
            many => self.publish_many(many),
        }
        true
    }

    #[inline(never)]
    fn publish_many(&mut self, many: usize) {
        if let Ok(chunk) = self.producer.write_chunk_uninit(many) {
            chunk.fill_from_iter(self.staged.drain(..).map(Some));
        }
        debug_assert!(self.staged.is_empty(), "a place was free for each");
    }

    /// The last look before sleeping until there is room: false if there is some now. Afterwards
    /// the reader says when there is.
    pub(super) fn may_sleep(&mut self) -> bool {
        self.room.want();
        !self.has_room()
    }

    /// Whether the reader is gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.producer.is_abandoned()
    }
}

/// The reading end.
pub(super) struct Reader<T> {
    consumer: Consumer<Option<Box<T>>>,
    room: Arc<Room>,
}

impl<T> Reader<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.consumer.is_empty()
    }

    /// Items that may be taken now.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.consumer.slots()
    }

    /// Moves so many items, of those that may be taken, into `into`, in their order.
    #[inline]
    pub(super) fn take(&mut self, count: usize, into: &mut Vec<Box<T>>) {
        match count {
            0 => {}
            1 => {
                if let Ok(Some(item)) = self.consumer.pop() {
                    into.push(item);
                }
            }
            many => self.take_many(many, into),
        }
    }

    #[inline(never)]
    fn take_many(&mut self, many: usize, into: &mut Vec<Box<T>>) {
        if let Ok(chunk) = self.consumer.read_chunk(many) {
            into.extend(chunk.into_iter().flatten());
        }
    }

    /// Whether the writer sleeps until there is room: to be asked after items were taken.
    pub(super) fn is_room_wanted(&self) -> bool {
        self.room.take_wanted()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn take(reader: &mut Reader<u32>, most: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        reader.take(most.min(reader.len()), &mut taken);
        taken.into_iter().map(|item| *item).collect()
    }

    #[test]
    fn what_is_staged_is_seen_once_it_is_published() {
        let (mut writer, mut reader) = ring(4);
        for n in 0..3 {
            writer.stage(Box::new(n)).unwrap();
        }
        assert!(reader.is_empty() && writer.has_staged());
        assert!(writer.publish() && !writer.publish());
        assert_eq!(take(&mut reader, 2), [0, 1]);
        assert_eq!(take(&mut reader, 9), [2]);
    }

    #[test]
    fn a_full_ring_gives_the_item_back_and_takes_it_once_there_is_room() {
        for capacity in [1, 3, 1024] {
            let (mut writer, mut reader) = ring(capacity);
            for round in 0..3 {
                for n in 0..capacity as u32 {
                    writer.stage(Box::new(n)).unwrap();
                }
                assert_eq!(*writer.stage(Box::new(7)).unwrap_err(), 7, "round {round}");
                writer.publish();
                assert!(writer.stage(Box::new(7)).is_err() && writer.may_sleep());
                assert_eq!(take(&mut reader, 1), [0]);
                assert!(reader.is_room_wanted() && !reader.is_room_wanted());
                writer.stage(Box::new(9)).unwrap();
                writer.publish();
                let all: Vec<u32> = (1..capacity as u32).chain([9]).collect();
                assert_eq!(take(&mut reader, usize::MAX), all);
            }
        }
    }

    #[test]
    fn what_nobody_took_is_dropped_with_the_ring() {
        let item = Arc::new(());
        let (mut writer, reader) = ring(4);
        writer.stage(Box::new(item.clone())).unwrap();
        writer.publish();
        writer.stage(Box::new(item.clone())).unwrap();
        drop(reader);
        assert!(writer.is_abandoned());
        drop(writer);
        assert_eq!(Arc::strong_count(&item), 1);
    }
}
