//! A seccomp filter of one thread, and of those that it starts, that asks another thread of this
//! process what becomes of its system calls. The kernel is the real one, and so are the sockets;
//! and since both threads share memory and descriptors, the supervisor can make a call itself, with
//! less to read or write than it was asked for.
#![allow(unsafe_code)]

use std::{
    io,
    mem::{MaybeUninit, zeroed},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::mpsc,
    thread,
};

use libc::{c_int, c_long, c_ulong};

/// A call that is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Socket,
    Connect,
    Accept,
    Receive,
    Send,
    SendMessage,
    SocketOption,
    Control,
    Wait,
    Poll,
    // What a start needs, too.
    Bind,
    Listen,
    MakePoller,
    MakeEvent,
    MakeRing,
    Thread,
    Affinity,
}

impl Call {
    /// Those of connections that every machine makes: of a wait and a poll it may be either.
    pub(crate) const ALL: [Call; 8] = [
        Call::Socket,
        Call::Connect,
        Call::Accept,
        Call::Receive,
        Call::Send,
        Call::SendMessage,
        Call::SocketOption,
        Call::Control,
    ];
}

/// What becomes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// The kernel does what it was asked for.
    Continue,
    /// It fails with this, and nothing is done.
    Fail(c_int),
    /// It is done, and fails with this all the same.
    FailAfter(c_int),
    /// It is done with so many bytes at most: a receive, or either send.
    Short(usize),
}

#[cfg(target_arch = "x86_64")]
const OLD_WAITS: [(c_long, Call); 2] = [
    (libc::SYS_epoll_wait, Call::Wait),
    (libc::SYS_poll, Call::Poll),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_WAITS: [(c_long, Call); 0] = [];

const CALLS: [(c_long, Call); 18] = [
    (libc::SYS_socket, Call::Socket),
    (libc::SYS_connect, Call::Connect),
    (libc::SYS_accept4, Call::Accept),
    (libc::SYS_recvfrom, Call::Receive),
    (libc::SYS_sendto, Call::Send),
    (libc::SYS_sendmsg, Call::SendMessage),
    (libc::SYS_getsockopt, Call::SocketOption),
    (libc::SYS_epoll_ctl, Call::Control),
    (libc::SYS_epoll_pwait, Call::Wait),
    (libc::SYS_epoll_pwait2, Call::Wait),
    (libc::SYS_ppoll, Call::Poll),
    (libc::SYS_bind, Call::Bind),
    (libc::SYS_listen, Call::Listen),
    (libc::SYS_epoll_create1, Call::MakePoller),
    (libc::SYS_eventfd2, Call::MakeEvent),
    (libc::SYS_io_uring_setup, Call::MakeRing),
    (libc::SYS_clone3, Call::Thread),
    (libc::SYS_sched_setaffinity, Call::Affinity),
];

fn calls() -> impl Iterator<Item = (c_long, Call)> {
    CALLS.into_iter().chain(OLD_WAITS)
}

/// A call as it was made.
pub(crate) struct Asked {
    pub(crate) call: Call,
    number: c_long,
    pub(crate) arguments: [u64; 6],
}

/// Runs `work` in a thread whose calls, and those of all threads that it starts, are asked about.
/// Returns what it returns, while `decide` goes on for as long as any of those threads lives. An
/// error: the kernel does not allow a filter.
pub(crate) fn supervised<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    mut decide: impl FnMut(&Asked) -> Verdict + Send + 'static,
) -> io::Result<T> {
    let (tell, told) = mpsc::channel::<OwnedFd>();
    // Started first, so that it is not filtered itself.
    thread::spawn(move || {
        if let Ok(listener) = told.recv() {
            supervise(&listener, &mut decide);
        }
    });
    let worker = thread::spawn(move || {
        tell.send(install()?).expect("the supervisor waits");
        Ok(work())
    });
    worker.join().expect("the work does not panic")
}

/// Filters this thread from now on.
fn install() -> io::Result<OwnedFd> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The call's number comes first in `seccomp_data`.
    let mut program = vec![step(LOAD, 0, 0, 0)];
    for (number, _) in calls() {
        program.push(step(IF_EQUAL, 0, 1, number as u32));
        program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: no pointers.
    let forbidden = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if forbidden != 0 {
        return Err(io::Error::last_os_error());
    }
    let mode = c_long::from(libc::SECCOMP_SET_MODE_FILTER);
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: `filter` and the program that it points to outlive the call, which copies both.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &filter) };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as c_int) })
}

/// Until the last filtered thread has ended.
fn supervise(listener: &OwnedFd, decide: &mut impl FnMut(&Asked) -> Verdict) {
    loop {
        // SAFETY: numbers alone; the kernel wants them zeroed.
        let mut notification: libc::seccomp_notif = unsafe { zeroed() };
        if !ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &mut notification) {
            // One that was killed in the middle of its call; or there is nobody left.
            if is_abandoned(listener) {
                return;
            }
            continue;
        }
        let number = c_long::from(notification.data.nr);
        let call = calls().find(|&(asked, _)| asked == number);
        let asked = Asked {
            call: call.expect("is filtered").1,
            number,
            arguments: notification.data.args,
        };
        let mut response = libc::seccomp_notif_resp {
            id: notification.id,
            val: 0,
            error: 0,
            flags: 0,
        };
        match decide(&asked) {
            Verdict::Continue => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Verdict::Fail(errno) => response.error = -errno,
            Verdict::FailAfter(errno) => {
                let _ = asked.make(asked.arguments);
                response.error = -errno;
            }
            Verdict::Short(bytes) => match asked.make_short(bytes) {
                Ok(value) => response.val = value,
                Err(errno) => response.error = -errno,
            },
        }
        ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &mut response);
    }
}

impl Asked {
    /// Makes the call here.
    fn make(&self, with: [u64; 6]) -> Result<i64, c_int> {
        let [a, b, c, d, e, f] = with.map(|argument| argument as c_long);
        // SAFETY: the arguments are those of a thread of this process, which waits in this very
        // call, so that its memory stays as it is; `with` asks for no more than it has room for.
        let value = unsafe { libc::syscall(self.number, a, b, c, d, e, f) };
        match value {
            -1 => Err(io::Error::last_os_error().raw_os_error().expect("errno")),
            value => Ok(value),
        }
    }

    fn make_short(&self, bytes: usize) -> Result<i64, c_int> {
        let mut with = self.arguments;
        if self.call != Call::SendMessage {
            with[2] = with[2].min(bytes as u64);
            return self.make(with);
        }
        // SAFETY: it is the message of a thread that waits in this very call.
        let mut message = unsafe { (with[1] as *const libc::msghdr).read() };
        // SAFETY: likewise, and it has one piece at least.
        let mut first = unsafe { message.msg_iov.read() };
        first.iov_len = first.iov_len.min(bytes);
        (message.msg_iov, message.msg_iovlen) = (&raw mut first, 1);
        with[1] = (&raw const message) as u64;
        self.make(with)
    }
}

fn ioctl<T>(listener: &OwnedFd, request: libc::Ioctl, argument: &mut T) -> bool {
    // SAFETY: each request is made with the struct that it is defined with.
    unsafe { libc::ioctl(listener.as_raw_fd(), request as c_ulong as _, argument) == 0 }
}

fn is_abandoned(listener: &OwnedFd) -> bool {
    let mut poll = MaybeUninit::new(libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: one initialized entry.
    let ready = unsafe { libc::poll(poll.as_mut_ptr(), 1, 0) };
    // SAFETY: it was initialized above.
    let revents = unsafe { poll.assume_init() }.revents;
    ready < 0 || revents & libc::POLLHUP != 0
}
