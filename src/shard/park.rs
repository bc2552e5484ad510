//! The loop around the reactor: spin, yield, park.
//!
//! While nothing but the engine, the doorbell and timers of its own can bring a shard work, it
//! parks in one system call ([`Bell`]). Tasks that wait for something else need glommio's
//! executor, and then the shard parks as one of its tasks ([`Parking`]).
//!
//! glommio 0.9 has no way to await an arbitrary descriptor. But a stream made from one arms a
//! readiness poll as it is made, and reading it once returns when the descriptor is readable; the
//! read itself then fails, which is ignored. So a duplicate of the engine's epoll descriptor,
//! dressed as a stream, wakes a parked shard.
#![allow(unsafe_code)]

use std::{
    future::{Future, poll_fn},
    hint,
    os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_lite::{AsyncRead, future::yield_now};
use glommio::{
    channels::shared_channel::{self, SharedSender},
    net::TcpStream,
    timer::Timer,
};
use quanta::Instant;
use rustix::{
    event::{EventfdFlags, eventfd},
    time::Timespec,
};

use super::{Core, Shard, Spawner, turn::nanos};
use crate::{config::Idle, engine::Engine, error::StartError};

/// Memory that a process must be allowed to lock: glommio refuses to start below this.
pub const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// While tasks live, the executor runs at least this often what is ready, whether or not the shard
/// knows of it: tasks that its tasks have spawned.
const EXECUTOR_INTERVAL: Duration = Duration::from_micros(50);

/// While tasks wait for something that the shard does not know, glommio looks at least this often
/// what its timers, its I/O and other threads have for them. A look takes 6 µs.
const LOOK_INTERVAL_IDLE: Duration = Duration::from_micros(200);
const LOOK_INTERVAL_BUSY: Duration = Duration::from_millis(1);

/// Of a shard's time, looks take no more than one such part: one takes 100 ms if a task that the
/// shard does not know is ready again whenever it has run.
const LOOK_SHARE: u32 = 10;

/// glommio sleeps no longer than this. Its preemption timer may expire, if the thread stands still
/// for 100 ms there, between its last look at its rings and its first at what is ready: then it
/// sleeps beside a shard that is.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// What a process and each of its shards open before the first connection: counted 20 and 14 with
/// libzmq, and doubled.
const DESCRIPTORS: u64 = 40;
const DESCRIPTORS_PER_SHARD: u64 = 28;

/// Looks whether this process may have what so many shards need, and what glommio or libzmq would
/// panic, abort or exit without. Leaves nothing behind.
pub fn are_possible(shards: usize) -> Result<(), StartError> {
    check_memlock()?;
    check_descriptors(shards)?;
    check_io_uring()
}

fn check_memlock() -> Result<(), StartError> {
    let memlock = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    if let Some(bytes) = memlock.filter(|&bytes| bytes < MEMLOCK_BYTES_MIN) {
        return Err(StartError::Memlock {
            bytes,
            bytes_min: MEMLOCK_BYTES_MIN,
        });
    }
    Ok(())
}

fn check_descriptors(shards: usize) -> Result<(), StartError> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
    let needed = descriptors_needed(shards);
    match limit.map(|limit| limit.saturating_sub(open)) {
        Some(left) if left < needed => Err(StartError::Descriptors { left, needed }),
        _ => Ok(()),
    }
}

/// Descriptors that a process of so many shards may take before the first connection.
pub fn descriptors_needed(shards: usize) -> u64 {
    DESCRIPTORS + DESCRIPTORS_PER_SHARD * shards as u64
}

/// Looks whether the kernel gives this process an io_uring that shards can park on. Leaves nothing
/// behind. Errors: [`StartError::IoUring`] and [`StartError::OldKernel`].
pub fn check_io_uring() -> Result<(), StartError> {
    let refused = |error: std::io::Error| StartError::IoUring(error.into());
    let ring = io_uring::IoUring::new(2).map_err(refused)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(refused)?;
    let needed = [
        io_uring::opcode::PollAdd::CODE,
        io_uring::opcode::Timeout::CODE,
        io_uring::opcode::AsyncCancel::CODE,
        io_uring::opcode::Read::CODE,
        io_uring::opcode::OpenAt::CODE,
        io_uring::opcode::Statx::CODE,
    ];
    match needed.iter().all(|&opcode| probe.is_supported(opcode)) {
        true => Ok(()),
        false => Err(StartError::OldKernel),
    }
}

/// Spawns on the glommio executor of the calling thread.
pub fn spawner() -> Spawner {
    Box::new(|future| drop(glommio::spawn_local(future).detach()))
}

/// Runs a shard until it is drained, as one task of the calling thread's glommio executor.
pub async fn run<E: Engine>(mut shard: Shard<E>, idle: Idle) {
    let clock = shard.core.clock.clone();
    let mut parking = Parking::new();
    let bell = Bell::new();
    let mut idle_since = None;
    let mut executor_ran_at = clock.now();
    let mut looked_at = executor_ran_at;
    let mut look_took = Duration::ZERO;
    // When the turn began that is to be recorded; one read of the clock ends it, and begins the
    // next.
    let mut began = None;
    loop {
        let now = clock.now();
        shard.core.record_turn(began.take(), now);
        let turn = shard.turn(now);
        if turn.is_over {
            return;
        }
        began = turn.worked.then_some(now);
        if shard.core.tasks.live() > 0 {
            if shard.core.tasks.has_ready() {
                began = Some(now);
            }
            if now.saturating_duration_since(executor_ran_at) >= EXECUTOR_INTERVAL {
                executor_ran_at = now;
                let interval = match turn.worked {
                    true => LOOK_INTERVAL_BUSY,
                    false => LOOK_INTERVAL_IDLE,
                };
                let interval = interval.max(LOOK_SHARE * look_took);
                let is_due = now.saturating_duration_since(looked_at) >= interval;
                if is_due && shard.awaits_executor() {
                    parking.look(&shard).await;
                    looked_at = clock.now();
                    look_took = looked_at.saturating_duration_since(now);
                }
                // What the look has woken is ready only now.
                yield_now().await;
            } else if shard.core.tasks.take_ready() {
                yield_now().await;
            }
        }
        // A shard that parks at once does so after work, too: whatever is there by then ends the
        // parking as it begins, and looking for it first would cost as much as parking.
        if turn.worked && idle != Idle::Park {
            idle_since = None;
            continue;
        }
        let since = *idle_since.get_or_insert(now);
        match step(idle, now.saturating_duration_since(since)) {
            Step::Spin => hint::spin_loop(),
            Step::Yield => std::thread::yield_now(),
            // A task that wakes itself: the executor comes first.
            Step::Park if shard.core.tasks.has_ready() => {}
            Step::Park => {
                if began.is_some() {
                    // The sleep is no part of the turn.
                    shard.core.record_turn(began.take(), clock.now());
                }
                let until = shard.next_wake(now);
                if let Some(bell) = &bell {
                    bell.quieten();
                }
                match &bell {
                    Some(bell) if shard.waits_for_nothing_else() => {
                        bell.park(&mut shard, now, until);
                        executor_ran_at = clock.now();
                    }
                    _ => parking.park(&mut shard, now, until).await,
                }
            }
        }
    }
}

enum Step {
    Spin,
    Yield,
    Park,
}

/// What to do after so long without work.
fn step(idle: Idle, idle_for: Duration) -> Step {
    match idle {
        Idle::Spin => Step::Spin,
        Idle::Park => Step::Park,
        Idle::Adaptive { spin, .. } if idle_for < spin => Step::Spin,
        Idle::Adaptive { spin, yielding } if idle_for < spin + yielding => Step::Yield,
        Idle::Adaptive { .. } => Step::Park,
    }
}

/// Parking without the executor: the engine waits, for its sockets and for a descriptor of ours
/// that the doorbell writes to. Half the CPU of going through glommio's rings, and 15 µs sooner
/// awake; but the executor stands still meanwhile, so only while it has nothing to do.
struct Bell {
    rung: Arc<Rung>,
    waker: Waker,
}

/// Readable from when it was written to until it is read.
struct Rung {
    descriptor: OwnedFd,
    was_written: AtomicBool,
}

impl Bell {
    /// `None`: out of descriptors. Then the executor parks.
    fn new() -> Option<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let rung = Arc::new(Rung {
            descriptor: eventfd(0, flags).ok()?,
            was_written: AtomicBool::new(false),
        });
        let waker = rung.clone().into();
        Some(Self { rung, waker })
    }

    /// Is not readable any more. Before every parking, of either kind: the engine watches it, and
    /// would let nobody sleep. Whoever was just writing is noticed the next time.
    fn quieten(&self) {
        if self.rung.was_written.swap(false, Ordering::Acquire) {
            let _ = rustix::io::read(&self.rung.descriptor, &mut [0; 8]);
        }
    }

    /// Sleeps until something arrives, a writer rings or the time comes.
    fn park<E: Engine>(&self, shard: &mut Shard<E>, now: Instant, until: Option<Instant>) {
        shard.core.doorbell.prepare_to_park(&self.waker);
        if shard.may_park() {
            shard.core.shedder.rest();
            let remaining = until.map(|until| until.saturating_duration_since(now));
            // A time that no timespec holds is none.
            let remaining = remaining.and_then(|it| Timespec::try_from(it).ok());
            shard.engine.wait(self.rung.descriptor.as_fd(), remaining);
        }
        shard.core.leave_parking();
    }
}

impl Wake for Rung {
    fn wake(self: Arc<Self>) {
        // The counter cannot overflow before the shard reads it.
        let _ = rustix::io::write(&self.descriptor, &1_u64.to_ne_bytes());
        self.was_written.store(true, Ordering::Release);
    }
}

impl<E: Engine> Shard<E> {
    /// Whether only the engine, the doorbell and timers of its own can bring this shard work: its
    /// tasks, if it has any, wait for answers or sleep by its clock.
    fn waits_for_nothing_else(&self) -> bool {
        let tasks = &self.core.tasks;
        tasks.live() == 0 || tasks.all_wait() && !self.awaits_executor()
    }

    /// Whether a task that has run may wait for something that glommio would have to look for.
    fn awaits_executor(&self) -> bool {
        let core = &self.core;
        let tasks = &core.tasks;
        !tasks.wait_only_for(|most, is_given| {
            let calls = core.side.caller.borrow().count_wakers(most, is_given)?;
            let turns = core.registry.lines().count_wakers(is_given);
            let handlers = core.registry.board().count_wakers(is_given);
            Some(calls + core.timers.count_wakers(is_given) + turns + handlers)
        })
    }
}

impl Core {
    /// A turn that worked is over.
    #[inline]
    fn record_turn(&mut self, began: Option<Instant>, ended: Instant) {
        if let Some(began) = began {
            let took = ended.saturating_duration_since(began);
            self.recorder.record_turn(nanos(took));
        }
    }

    fn leave_parking(&mut self) {
        self.recorder.counters.woken += u64::from(self.doorbell.leave());
    }
}

struct Parking {
    /// The armed poll; one that has not fired serves the next time too.
    readiness: Option<TcpStream>,
    /// Never ready. Whoever polls it is woken by glommio's next look.
    next_look: Pin<Box<dyn Future<Output = ()>>>,
    /// The end of `next_look`'s channel that is never connected.
    _unconnected: SharedSender<()>,
}

impl Parking {
    fn new() -> Self {
        let (unconnected, receiver) = shared_channel::new_bounded(1);
        Self {
            readiness: None,
            next_look: Box::pin(async { drop(receiver.connect().await) }),
            _unconnected: unconnected,
        }
    }

    /// Has glommio look for what its timers, its I/O and other threads have for the tasks. However
    /// often the reactor yields to it, it does so only when nothing is ready, the reactor neither,
    /// or at its preemption timer: after 100 ms. So what is woken meanwhile is held, and waits for
    /// the look, too.
    async fn look<E: Engine>(&mut self, shard: &Shard<E>) {
        let mut latest = pin!(Timer::new(SLEEP_MAX));
        let mut has_waited = false;
        shard.core.tasks.hold();
        poll_fn(|cx| {
            if std::mem::replace(&mut has_waited, true) {
                return Poll::Ready(());
            }
            let _ = latest.as_mut().poll(cx);
            self.next_look.as_mut().poll(cx)
        })
        .await;
        shard.core.tasks.release();
    }

    /// Sleeps until something arrives, a writer rings, a task finishes or the time comes.
    async fn park<E: Engine>(
        &mut self,
        shard: &mut Shard<E>,
        now: Instant,
        until: Option<Instant>,
    ) {
        self.arm(shard);
        let remaining = until.map_or(SLEEP_MAX, |until| until.saturating_duration_since(now));
        let mut timer = pin!(Timer::new(remaining.min(SLEEP_MAX)));
        poll_fn(|cx| {
            shard.core.doorbell.prepare_to_park(cx.waker());
            shard.core.side.register(cx.waker());
            shard.core.tasks.register(cx.waker());
            let has_work =
                !shard.may_park() || self.is_readable(cx) || timer.as_mut().poll(cx).is_ready();
            if has_work {
                Poll::Ready(())
            } else {
                shard.core.shedder.rest();
                Poll::Pending
            }
        })
        .await;
        shard.core.leave_parking();
    }

    fn arm<E: Engine>(&mut self, shard: &Shard<E>) {
        if self.readiness.is_some() {
            return;
        }
        let Some(descriptor) = shard.engine.descriptor() else {
            return;
        };
        match descriptor.try_clone_to_owned() {
            Ok(duplicate) => {
                // SAFETY: the descriptor is open and ours alone: it was just duplicated, and
                // ownership passes to the stream.
                let stream = unsafe { TcpStream::from_raw_fd(duplicate.into_raw_fd()) };
                self.readiness = Some(stream);
            }
            // Out of descriptors: the shard wakes by its timers and its doorbell until there is
            // one.
            Err(error) => tracing::error!(%error, "cannot wait for messages; raise `ulimit -n`"),
        }
    }

    fn is_readable(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(stream) = &mut self.readiness else {
            return false;
        };
        let is_ready = Pin::new(stream).poll_read(cx, &mut [0]).is_ready();
        if is_ready {
            self.readiness = None;
        }
        is_ready
    }
}
