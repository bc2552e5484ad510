//! libzmq as its users have it: a DEALER and a ROUTER in one thread each, messages of two frames.

use std::{
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    thread,
    time::{Duration, Instant},
};

use zmq::{DONTWAIT, Error, Message, SNDMORE, Socket, SocketType};

use crate::{
    Setup,
    axes::{Axis, SMALL, Waits, Work},
    meter::{Measured, Meter, Schedule, Span},
    raw::wait,
    wire::{PATIENCE, Patience},
};

/// As long as corelane's.
const HEADER: [u8; 40] = [3; 40];
/// How soon a blocking server sees that it is to stop.
const STOP: Duration = Duration::from_millis(20);

/// A socket, and how its owner waits for it.
struct End {
    socket: Socket,
    waits: Waits,
}

pub(crate) fn run(
    setup: &Setup,
    axis: &Axis,
    span: Span,
    endpoint: &str,
    waits: Waits,
) -> Result<Measured, String> {
    // Made here, where no CPU is pinned: libzmq's I/O threads inherit the mask.
    let server = End::new(SocketType::ROUTER, waits, STOP).map_err(failed)?;
    server.socket.bind(endpoint).map_err(failed)?;
    let bound = server.socket.get_last_endpoint().map_err(failed)?;
    let client = End::new(SocketType::DEALER, waits, PATIENCE).map_err(failed)?;
    client
        .socket
        .connect(&bound.map_err(|_| "an endpoint that is no text")?)
        .map_err(failed)?;
    let (stop, received) = (&AtomicBool::new(false), &AtomicU64::new(0));
    thread::scope(|scope| {
        let far_end = scope.spawn(move || {
            setup.pin_server();
            match axis.work {
                Work::Stream => server.count(stop, received),
                _ => server.echo(stop),
            }
        });
        let near_end = scope.spawn(move || {
            setup.pin_client();
            match axis.work {
                Work::Ping { bytes, pause } => client.ping(bytes, pause, span),
                Work::Window { outstanding } => client.window(outstanding, span),
                Work::Stream => client.stream(received, span),
                Work::OpenLoop { per_second } => client.open_loop(per_second, span),
            }
        });
        let measured = near_end.join().expect("a bench does not panic");
        stop.store(true, Release);
        let served = far_end.join().expect("a bench does not panic");
        match served {
            Ok(()) => measured,
            Err(error) => measured.and(Err(format!("the server failed: {error}"))),
        }
    })
}

impl End {
    fn new(kind: SocketType, waits: Waits, timeout: Duration) -> zmq::Result<Self> {
        // A context each, with its own I/O thread: as in two processes.
        let socket = zmq::Context::new().socket(kind)?;
        socket.set_linger(0)?;
        socket.set_rcvtimeo(timeout.as_millis() as i32)?;
        socket.set_sndtimeo(PATIENCE.as_millis() as i32)?;
        if kind == SocketType::ROUTER {
            // It drops what a full queue does not take.
            socket.set_sndhwm(0)?;
        }
        Ok(Self { socket, waits })
    }

    fn flags(&self) -> i32 {
        match self.waits {
            Waits::Spin => DONTWAIT,
            Waits::Park => 0,
        }
    }

    /// `None` once the server is to stop.
    fn recv_until(&self, message: &mut Message, stop: &AtomicBool) -> zmq::Result<Option<()>> {
        loop {
            match self.socket.recv(message, self.flags()) {
                Ok(()) => return Ok(Some(())),
                Err(Error::EAGAIN) if stop.load(Acquire) => return Ok(None),
                Err(Error::EAGAIN) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A frame of a message whose first one is here, or was accepted, does not wait.
    fn send_frame(&self, frame: Message, flags: i32) -> zmq::Result<()> {
        self.socket.send(frame, flags | DONTWAIT)
    }

    fn echo(&self, stop: &AtomicBool) -> zmq::Result<()> {
        loop {
            let [mut identity, mut header, mut payload] = [(); 3].map(|()| Message::new());
            if self.recv_until(&mut identity, stop)?.is_none() {
                return Ok(());
            }
            self.socket.recv(&mut header, 0)?;
            self.socket.recv(&mut payload, 0)?;
            self.send_frame(identity, SNDMORE)?;
            self.send_frame(header, SNDMORE)?;
            self.send_frame(payload, 0)?;
        }
    }

    fn count(&self, stop: &AtomicBool, received: &AtomicU64) -> zmq::Result<()> {
        let mut frame = Message::new();
        let mut total = 0;
        while self.recv_until(&mut frame, stop)?.is_some() {
            self.socket.recv(&mut frame, 0)?;
            self.socket.recv(&mut frame, 0)?;
            total += 1;
            received.store(total, Relaxed);
        }
        Ok(())
    }

    /// Whether the queue took it.
    fn try_send(&self, payload: &mut Option<Message>) -> Result<bool, String> {
        match self.socket.send(&HEADER[..], SNDMORE | self.flags()) {
            Ok(()) => {}
            Err(Error::EAGAIN) if self.waits == Waits::Spin => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
        let payload = payload.take().expect("given with each call");
        self.send_frame(payload, 0).map_err(failed)?;
        Ok(true)
    }

    fn send(&self, payload: Message) -> Result<(), String> {
        let mut payload = Some(payload);
        let mut patience = Patience::default();
        while !self.try_send(&mut payload)? {
            patience.miss().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn try_recv(&self, payload: &mut Message) -> Result<bool, String> {
        match self.socket.recv(payload, self.flags()) {
            Ok(()) => {}
            Err(Error::EAGAIN) if self.waits == Waits::Spin => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
        self.socket.recv(payload, 0).map_err(failed)?;
        Ok(true)
    }

    fn recv(&self, payload: &mut Message) -> Result<(), String> {
        let mut patience = Patience::default();
        while !self.try_recv(payload)? {
            patience.miss().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn ping(&self, bytes: usize, pause: Duration, span: Span) -> Result<Measured, String> {
        let mut payload = Message::from(vec![7; bytes]);
        let mut meter = Meter::start(span);
        while meter.goes_on() {
            wait(pause, self.waits);
            let sent_at = Instant::now();
            // The answer's own message goes out again: nothing is copied.
            self.send(payload)?;
            payload = Message::new();
            self.recv(&mut payload)?;
            meter.record(sent_at);
        }
        meter.finish()
    }

    fn window(&self, outstanding: usize, span: Span) -> Result<Measured, String> {
        let mut payload = Message::new();
        let mut meter = Meter::start(span);
        for _ in 0..outstanding {
            self.send(small())?;
        }
        while meter.goes_on() {
            self.recv(&mut payload)?;
            self.send(small())?;
            meter.add(1);
        }
        meter.finish()
    }

    fn stream(&self, received: &AtomicU64, span: Span) -> Result<Measured, String> {
        let mut sent = 0;
        let mut stream_for = |duration| {
            let before = sent;
            let until = Instant::now() + duration;
            while Instant::now() < until {
                for _ in 0..64 {
                    self.send(small())?;
                }
                sent += 64;
            }
            while received.load(Relaxed) < sent {
                if until.elapsed() > PATIENCE {
                    return Err("messages were not read".to_owned());
                }
                // Its I/O threads have no CPU of their own.
                thread::yield_now();
            }
            Ok(sent - before)
        };
        stream_for(span.warm_up)?;
        let start = Instant::now();
        let messages = stream_for(span.measured)?;
        Ok(Measured::rate(messages, start.elapsed()))
    }

    fn open_loop(&self, per_second: u64, span: Span) -> Result<Measured, String> {
        let mut payload = Message::new();
        let mut meter = Meter::start(span);
        let mut schedule = Schedule::new(per_second, span);
        let mut patience = Patience::default();
        let (mut answered, mut has_ended) = (0, false);
        while !schedule.is_over() || answered < schedule.next {
            let now = Instant::now();
            if schedule.due(now) > 0 && self.try_send(&mut Some(small()))? {
                schedule.next += 1;
            }
            if self.try_recv(&mut payload)? {
                patience = Patience::default();
                meter.record(schedule.due_at(answered));
                answered += 1;
            } else {
                patience.miss().map_err(|error| error.to_string())?;
            }
            if !has_ended && now >= meter.end() {
                has_ended = true;
                schedule.check_kept_up(answered)?;
            }
        }
        meter.finish()
    }
}

fn small() -> Message {
    Message::from(&[7; SMALL][..])
}

fn failed(error: Error) -> String {
    format!("libzmq: {error}")
}
