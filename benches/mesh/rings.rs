//! Two threads and the rings between them: bare ones of `rtrb`, and a mesh of two shards.

use std::{
    hint::{black_box, spin_loop},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use core_affinity::CoreId;
use corelane::route::{Doorbell, Mesh, Seat, seats};
use rtrb::{Consumer, Producer, RingBuffer};

const CAPACITY: usize = 1024;
/// Items published at once, at most.
const BATCH: usize = 256;
/// Trips between two looks at the clock.
const TRIPS: u64 = 1_000;

/// The figures of one round.
#[derive(Debug, Default)]
pub(crate) struct Rings {
    pub(crate) raw_hop_ns: f64,
    pub(crate) hop_ns: f64,
    /// Times that one end woke the other.
    pub(crate) woken: usize,
    pub(crate) raw_million_per_s: f64,
    pub(crate) million_per_s: f64,
    /// The same, of items that nobody looks into.
    pub(crate) unread_million_per_s: f64,
}

/// What crosses: a line of the cache, as a parcel is two. Its reader reads all of it, and writes.
#[derive(Default)]
#[repr(align(64))]
struct Item([u64; 8]);

impl Item {
    fn touch(&mut self) -> u64 {
        self.0[7] = self.0[7].wrapping_add(1);
        self.0.iter().fold(0, |sum, it| sum ^ it)
    }
}

impl Rings {
    /// On threads of their own, pinned, so that nobody else is.
    pub(crate) fn run(cpus: (usize, usize), span: Duration) -> Self {
        thread::scope(|scope| scope.spawn(|| Self::run_pinned(cpus, span)).join())
            .expect("it does not panic")
    }

    fn run_pinned(cpus: (usize, usize), span: Duration) -> Self {
        let (raw_hop_ns, raw_million_per_s) = (raw_trips(cpus, span), raw_batches(cpus, span));
        let (hop_ns, woken) = trips(cpus, span);
        Self {
            raw_hop_ns,
            hop_ns,
            woken,
            raw_million_per_s,
            million_per_s: batches(cpus, span, Item::touch),
            unread_million_per_s: batches(cpus, span, |_| 0),
        }
    }
}

pub(crate) fn pin(cpu: usize) {
    core_affinity::set_for_current(CoreId { id: cpu });
}

/// Runs until the time is over, and returns how many and how long.
pub(crate) fn until_over(span: Duration, mut some: impl FnMut() -> u64) -> (u64, Duration) {
    let began = Instant::now();
    let mut count = 0;
    loop {
        count += some();
        let took = began.elapsed();
        if took >= span {
            return (count, took);
        }
    }
}

fn ns_each((count, took): (u64, Duration)) -> f64 {
    took.as_nanos() as f64 / count as f64
}

pub(crate) fn million_per_s((count, took): (u64, Duration)) -> f64 {
    count as f64 / took.as_secs_f64() / 1e6
}

fn pop(consumer: &mut Consumer<u64>) -> u64 {
    loop {
        match consumer.pop() {
            Ok(item) => return item,
            Err(_) => spin_loop(),
        }
    }
}

/// A number there and back; 0 ends it.
fn raw_trips(cpus: (usize, usize), span: Duration) -> f64 {
    let (mut there, mut arrived) = RingBuffer::new(CAPACITY);
    let (mut back, mut returned) = RingBuffer::new(CAPACITY);
    thread::scope(|scope| {
        scope.spawn(move || {
            pin(cpus.1);
            loop {
                let item = pop(&mut arrived);
                let _ = back.push(item);
                if item == 0 {
                    return;
                }
            }
        });
        pin(cpus.0);
        let ended = until_over(span, || {
            for n in 1..=TRIPS {
                let _ = there.push(n);
                pop(&mut returned);
            }
            TRIPS
        });
        let _ = there.push(0);
        pop(&mut returned);
        ns_each(ended)
    })
}

/// Numbers one way, in chunks; the writer's end ends it.
fn raw_batches(cpus: (usize, usize), span: Duration) -> f64 {
    let (mut producer, mut consumer): (Producer<u64>, _) = RingBuffer::new(CAPACITY);
    thread::scope(|scope| {
        scope.spawn(move || {
            pin(cpus.1);
            let mut sum = 0;
            while !(consumer.is_abandoned() && consumer.is_empty()) {
                if let Ok(chunk) = consumer.read_chunk(consumer.slots()) {
                    sum = chunk.into_iter().fold(sum, |sum, it| sum ^ it);
                }
            }
            black_box(sum);
        });
        pin(cpus.0);
        let ended = until_over(span, || {
            let count = producer.slots().min(BATCH);
            if let Ok(chunk) = producer.write_chunk_uninit(count) {
                chunk.fill_from_iter(1..);
            }
            count as u64
        });
        drop(producer);
        million_per_s(ended)
    })
}

fn two_seats() -> ([Seat<Item>; 2], Vec<Arc<Doorbell>>) {
    let seats: Result<[Seat<Item>; 2], _> = seats(2).try_into();
    let doorbells = (0..2).map(|_| Arc::default()).collect();
    (seats.unwrap_or_else(|_| unreachable!("two")), doorbells)
}

fn join(seat: Seat<Item>, doorbells: &[Arc<Doorbell>]) -> Mesh<Item> {
    let joining = seat.offer(CAPACITY);
    joining.complete(doorbells).expect("the other is there")
}

/// Gives back what is asked, until the other end is gone. Returns how often it woke that.
fn serve(mut mesh: Mesh<Item>, touch: fn(&mut Item) -> u64) -> usize {
    let (mut taken, mut woken) = (Vec::with_capacity(CAPACITY), 0);
    let mut sum = 0;
    while !mesh.is_gone(0) {
        mesh.take_asked(0, CAPACITY, &mut taken);
        for mut item in taken.drain(..) {
            sum ^= touch(&mut item);
            let given = mesh.give_back(0, item);
            debug_assert!(given.is_ok(), "there was room");
        }
        woken += mesh.publish().woken;
    }
    black_box(sum);
    woken
}

fn trips(cpus: (usize, usize), span: Duration) -> (f64, usize) {
    let ([seat, other], doorbells) = two_seats();
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            pin(cpus.1);
            serve(join(other, &doorbells), Item::touch)
        });
        pin(cpus.0);
        let mut mesh = join(seat, &doorbells);
        let (mut back, mut woken) = (vec![Box::<Item>::default()], 0);
        let ended = until_over(span, || {
            for _ in 0..TRIPS {
                if let Some(mut item) = back.pop() {
                    black_box(item.touch());
                    let asked = mesh.ask(1, item);
                    debug_assert!(asked.is_ok(), "there was room");
                }
                woken += mesh.publish().woken;
                while mesh.take_back(1, &mut back) == 0 {
                    spin_loop();
                }
            }
            TRIPS
        });
        drop(mesh);
        let woken = woken + server.join().unwrap_or_default();
        (ns_each(ended), woken)
    })
}

fn batches(cpus: (usize, usize), span: Duration, touch: fn(&mut Item) -> u64) -> f64 {
    let ([seat, other], doorbells) = two_seats();
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(cpus.1);
            serve(join(other, &doorbells), touch)
        });
        pin(cpus.0);
        let mut mesh = join(seat, &doorbells);
        let mut spare: Vec<Box<Item>> = (0..2 * CAPACITY).map(|_| Box::default()).collect();
        let ended = until_over(span, || {
            mesh.take_back(1, &mut spare);
            let mut count = 0;
            while count < BATCH as u64
                && mesh.has_room(1)
                && let Some(mut item) = spare.pop()
            {
                black_box(touch(&mut item));
                let asked = mesh.ask(1, item);
                debug_assert!(asked.is_ok(), "there was room");
                count += 1;
            }
            mesh.publish();
            count
        });
        million_per_s(ended)
    })
}
