//! The floors: two pinned threads, two sockets, and no more work than the bytes need.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use rustix::io::{Errno, Result};

use crate::{
    Setup,
    axes::{Axis, FRAME, OVERHEAD, Waits, Work},
    meter::{Measured, Meter, Schedule, Span},
    wire::{PATIENCE, Patience, Wire},
};

/// Of a read, and of a write of the stream.
const BUFFER: usize = 64 << 10;

pub(crate) fn run(
    setup: &Setup,
    axis: &Axis,
    span: Span,
    (client, server): (Wire, Wire),
) -> std::result::Result<Measured, String> {
    let received = AtomicU64::new(0);
    let (received, client, server) = (&received, &client, &server);
    thread::scope(|scope| {
        let far_end = scope.spawn(move || {
            setup.pin_server();
            let served = match axis.work {
                Work::Ping { bytes, .. } => echo(server, bytes + OVERHEAD),
                Work::Window { .. } | Work::OpenLoop { .. } => echo_frames(server),
                Work::Stream => count(server, received),
            };
            server.end();
            served
        });
        let near_end = scope.spawn(move || {
            setup.pin_client();
            let measured = match axis.work {
                Work::Ping { bytes, pause } => ping(client, bytes + OVERHEAD, pause, span),
                Work::Window { outstanding } => window(client, outstanding, span),
                Work::Stream => stream(client, received, span),
                Work::OpenLoop { per_second } => open_loop(client, per_second, span),
            };
            client.end();
            measured
        });
        let measured = near_end.join().expect("a floor does not panic");
        match far_end.join().expect("a floor does not panic") {
            // A client that is done does not wait for what is under way.
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => measured,
            Err(error) => measured.and(Err(format!("the server failed: {error}"))),
        }
    })
}

/// Reads a whole message, then writes it back.
fn echo(wire: &Wire, bytes: usize) -> Result<()> {
    let mut message = vec![0; bytes];
    while wire.recv_all(&mut message)? {
        wire.send_all(&message)?;
    }
    Ok(())
}

/// Writes back all whole frames that one read has brought, with one write.
fn echo_frames(wire: &Wire) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut filled = 0;
    loop {
        match wire.recv(&mut buffer[filled..])? {
            0 => return Ok(()),
            bytes => filled += bytes,
        }
        let whole = filled - filled % FRAME;
        wire.send_all(&buffer[..whole])?;
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

fn count(wire: &Wire, received: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        match wire.recv(&mut buffer)? {
            0 => return Ok(()),
            bytes => total += bytes as u64,
        }
        received.store(total, Relaxed);
    }
}

fn ping(
    wire: &Wire,
    bytes: usize,
    pause: Duration,
    span: Span,
) -> std::result::Result<Measured, String> {
    let message = vec![7; bytes];
    let mut answer = vec![0; bytes];
    let mut meter = Meter::start(span);
    while meter.goes_on() {
        wait(pause, wire.waits());
        let sent_at = Instant::now();
        wire.send_all(&message).map_err(failed)?;
        if !wire.recv_all(&mut answer).map_err(failed)? {
            return Err("the server hung up".into());
        }
        meter.record(sent_at);
    }
    meter.finish()
}

/// Between two messages.
pub(crate) fn wait(pause: Duration, waits: Waits) {
    match waits {
        _ if pause.is_zero() => {}
        Waits::Park => thread::sleep(pause),
        Waits::Spin => {
            let until = Instant::now() + pause;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        }
    }
}

/// Answers every whole frame of a read with a new request, all with one write. Begins with two
/// halves: as one batch, all would go to and fro as one, and one end always wait for the other. On
/// two CPUs that made 5.6 million a second of 8.8.
fn window(wire: &Wire, outstanding: usize, span: Span) -> std::result::Result<Measured, String> {
    let requests = vec![7; outstanding * FRAME];
    let mut buffer = vec![0; BUFFER];
    let mut meter = Meter::start(span);
    let mut partial = 0;
    for half in requests.chunks(outstanding.div_ceil(2) * FRAME) {
        wire.send_all(half).map_err(failed)?;
        wait(Duration::from_micros(2), Waits::Spin);
    }
    while meter.goes_on() {
        let bytes = partial + wire.recv(&mut buffer).map_err(failed)?;
        let answers = bytes / FRAME;
        partial = bytes % FRAME;
        wire.send_all(&requests[..answers * FRAME])
            .map_err(failed)?;
        meter.add(answers as u64);
    }
    meter.finish()
}

/// Counts from an acknowledged byte to an acknowledged byte, as a stream of messages does that ends
/// with a confirmed one.
fn stream(wire: &Wire, received: &AtomicU64, span: Span) -> std::result::Result<Measured, String> {
    let bytes = vec![7; BUFFER];
    let mut sent = 0;
    let mut stream_for = |duration| {
        let before = sent;
        let until = Instant::now() + duration;
        while Instant::now() < until {
            wire.send_all(&bytes).map_err(failed)?;
            sent += bytes.len() as u64;
        }
        while received.load(Relaxed) < sent {
            if until.elapsed() > PATIENCE {
                return Err("bytes were not read".to_owned());
            }
        }
        Ok((sent - before) / FRAME as u64)
    };
    stream_for(span.warm_up)?;
    let start = Instant::now();
    let messages = stream_for(span.measured)?;
    Ok(Measured::rate(messages, start.elapsed()))
}

/// Writes what is due with one write, however much that is, and never waits with reading.
fn open_loop(wire: &Wire, per_second: u64, span: Span) -> std::result::Result<Measured, String> {
    let requests = vec![7; BUFFER / FRAME * FRAME];
    let mut buffer = vec![0; BUFFER];
    let (mut unsent, mut partial, mut answered) = (0, 0, 0);
    let mut meter = Meter::start(span);
    let mut schedule = Schedule::new(per_second, span);
    let mut patience = Patience::default();
    let mut has_ended = false;
    while !schedule.is_over() || answered < schedule.next {
        let now = Instant::now();
        let due = schedule.due(now);
        schedule.next += due;
        unsent += due as usize * FRAME;
        if unsent > 0 {
            // The first byte of what is unsent may be any of a frame's; they are all alike.
            let bytes = unsent.min(requests.len());
            unsent -= wire.try_send(&requests[..bytes]).map_err(failed)?;
        }
        match wire.try_recv(&mut buffer).map_err(failed)? {
            None => patience.miss().map_err(failed)?,
            Some(0) => return Err("the server hung up".into()),
            Some(bytes) => {
                patience = Patience::default();
                for _ in 0..(partial + bytes) / FRAME {
                    meter.record(schedule.due_at(answered));
                    answered += 1;
                }
                partial = (partial + bytes) % FRAME;
            }
        }
        if !has_ended && now >= meter.end() {
            has_ended = true;
            schedule.check_kept_up(answered)?;
        }
    }
    meter.finish()
}

fn failed(error: Errno) -> String {
    format!("the client failed: {error}")
}
