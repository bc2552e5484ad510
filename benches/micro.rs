//! What the steps of one message cost on one core, each alone and without I/O: a line per step.
//!
//! `cargo bench --bench micro` measures, `-- --quick` gives a first look, `-- header` runs only
//! those whose name holds `header`. Times are per operation, and for `outbox 64 at a time` per 64
//! messages. Payloads in the outbox are 64 B. Names have at most 23 characters: criterion breaks
//! the line of a longer one.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use corelane::codec::{self, Decoder};
use corelane::metrics::Recorder;
use corelane::wire::{Codec, HandlerKey, Header, Kind, Outbox};
use criterion::{Criterion, criterion_group, criterion_main};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Recorded in turn: latencies that differ touch the histogram in different places, as real ones
/// do. A power of two, so that taking the next one costs a mask.
const LATENCIES: usize = 1 << 10;

criterion_group! {
    name = micro;
    // Eleven lines in under a minute.
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = header, outbox, codecs, recorder
}
criterion_main!(micro);

fn header(criterion: &mut Criterion) {
    let header = request();
    let frame = header.encode();
    criterion.bench_function("header encode", |bencher| {
        bencher.iter(|| black_box(&header).encode());
    });
    criterion.bench_function("header decode", |bencher| {
        bencher.iter(|| Header::decode(black_box(&frame)));
    });
}

fn outbox(criterion: &mut Criterion) {
    for (name, messages) in [("outbox push and drain", 1), ("outbox 64 at a time", 64)] {
        criterion.bench_function(name, |bencher| {
            let (header, payload) = (request(), [7; 64]);
            let mut outbox = Outbox::new(1_000, 4 << 20);
            bencher.iter(|| {
                for _ in 0..messages {
                    let pushed = outbox.push(black_box(&header), black_box(&payload));
                    pushed.expect("the outbox is drained each time");
                }
                // As an engine does that hands out frames; the native one takes bytes at once.
                while let Some(frames) = outbox.front() {
                    black_box(frames);
                    outbox.pop_front();
                }
            });
        });
    }
}

/// What the demonstration handler `sum` is sent: 13 bytes as JSON, 2 as postcard.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Sum {
    a: i64,
    b: i64,
}

fn codecs(criterion: &mut Criterion) {
    let sum = Sum { a: 1, b: 2 };
    for (name, codec) in [("json", Codec::Json), ("postcard", Codec::Postcard)] {
        let mut encoded = Vec::new();
        codec::encode(codec, &sum, &mut encoded).expect("two integers can be encoded");
        criterion.bench_function(&format!("{name} encode"), |bencher| {
            let mut out = Vec::new();
            bencher.iter(|| {
                out.clear();
                codec::encode(codec, black_box(&sum), &mut out)
            });
        });
        criterion.bench_function(&format!("{name} decode"), |bencher| {
            let mut decoder = Decoder::new();
            let mut payload = encoded.clone();
            bencher.iter(|| {
                // Decoding scrambles it; copying it anew is the engine's own copy out of a socket.
                payload.copy_from_slice(&encoded);
                decoder.decode::<Sum>(codec, black_box(&mut payload))
            });
        });
    }
}

fn recorder(criterion: &mut Criterion) {
    let mut rng = SmallRng::seed_from_u64(0x5eed_0020);
    let latencies_ns: [u64; LATENCIES] = std::array::from_fn(|_| rng.random_range(500..50_000));
    let names: Arc<[String]> = Arc::from(["echo".to_owned()]);
    criterion.bench_function("record in handler", |bencher| {
        let mut recorder = Recorder::new(names.clone());
        let mut nth = 0;
        bencher.iter(|| {
            nth = (nth + 1) % LATENCIES;
            recorder.record_in_handler(black_box(0), latencies_ns[nth]);
        });
    });
    // One handler called again and again, and sixteen in turn: the best and the worst for what the
    // recorder remembers of the last call.
    for (name, keys) in [("record round trip", 1), ("record trips to 16", 16)] {
        criterion.bench_function(name, |bencher| {
            let mut recorder = Recorder::new(names.clone());
            let called: Vec<_> = (0..keys)
                .map(|nth| HandlerKey::of(&format!("handler {nth}")).get())
                .collect();
            let mut nth = 0;
            bencher.iter(|| {
                nth = (nth + 1) % LATENCIES;
                recorder.record_round_trip(called[nth & (keys - 1)], latencies_ns[nth]);
            });
        });
    }
}

fn request() -> Header {
    let mut header = Header::new(Kind::Request, 0x0123_4567_89ab_cdef);
    header.codec = Codec::Json;
    header.handler = HandlerKey::of("sum");
    header.deadline_us = 30_000_000;
    header
}
