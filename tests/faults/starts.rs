//! A start whose n-th system call fails, for every n: it says why, or goes without.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use corelane::{Runtime, handler::inline_raw};
use tempfile::TempDir;

use crate::{
    PATIENCE, config,
    supervisor::{Asked, Call, Verdict, supervised},
};

/// How a call of this kind fails.
fn ways(call: Call) -> &'static [i32] {
    match call {
        Call::Socket | Call::MakePoller | Call::MakeEvent => &[libc::EMFILE, libc::ENOMEM],
        Call::Bind => &[libc::EADDRINUSE, libc::EACCES],
        Call::Listen => &[libc::EADDRINUSE],
        Call::Control => &[libc::ENOMEM, libc::ENOSPC],
        Call::MakeRing => &[libc::EPERM, libc::ENOSYS, libc::ENOMEM, libc::EMFILE],
        Call::Thread => &[libc::EAGAIN],
        Call::Affinity => &[libc::EINVAL, libc::EPERM],
        Call::SocketOption => &[libc::ENOBUFS],
        _ => &[],
    }
}

/// How a remedy is known.
const REMEDIES: [&str; 8] = [
    "`ulimit -n`",
    "`ulimit -u`",
    "`ulimit -l`",
    "listen at another one",
    "choose a port above 1023",
    "sysctl kernel.io_uring_disabled=0",
    "use Linux 5.8 or later",
    "corelane doctor",
];

#[test]
fn a_start_of_which_any_call_fails_says_why_or_goes_without() {
    let mut said = BTreeMap::<String, Vec<String>>::new();
    for way in 0..4 {
        for nth in 0.. {
            let Some((what, error)) = start_without(nth, way) else {
                return;
            };
            let Some(what) = what else {
                assert!(nth > 2, "{nth} calls are few");
                break;
            };
            // What the machine has too little memory for, or a CPU that goes away: there is no
            // telling what helps.
            let is_plain = what.contains("Cannot allocate memory") || what.contains("Affinity");
            let names_remedy = |error: &String| REMEDIES.iter().any(|it| error.contains(it));
            let is_helpful = is_plain || error.as_ref().is_none_or(names_remedy);
            assert!(is_helpful, "{what} (call {nth}): {error:?}");
            let error = error.unwrap_or_else(|| "it runs".to_owned());
            said.entry(format!("{what}: {error}"))
                .or_default()
                .push(nth.to_string());
        }
    }
    for (what, nth) in &said {
        println!("{what} (call {})", nth.join(", "));
    }
}

/// Starts while the `nth` of the calls fails that can. `None`, and said so: no filter is allowed.
/// Else which call failed, if there were so many, and what the start said of it.
#[allow(clippy::type_complexity)]
fn start_without(nth: usize, way: usize) -> Option<(Option<String>, Option<String>)> {
    let directory = TempDir::new().unwrap();
    let endpoint = format!("ipc://{}", directory.path().join("socket").display());
    let config = config(1_000).with_listen(["tcp://127.0.0.1:0".to_owned(), endpoint]);
    let (count, is_over) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let failed = Arc::new(Mutex::new(None));
    let decide = {
        let (is_over, failed) = (is_over.clone(), failed.clone());
        move |asked: &Asked| {
            let Some(&errno) = ways(asked.call).get(way) else {
                return Verdict::Continue;
            };
            if is_over.load(SeqCst) || count.fetch_add(1, SeqCst) != nth {
                return Verdict::Continue;
            }
            let error = std::io::Error::from_raw_os_error(errno);
            *failed.lock().unwrap() = Some(format!("{:?}: {error}", asked.call));
            Verdict::Fail(errno)
        }
    };
    let start = move || {
        let echo = inline_raw("echo", |payload, reply, _| {
            reply.extend_from_slice(payload);
            Ok(())
        });
        let started = Runtime::builder(config).handler(echo).start();
        is_over.store(true, SeqCst);
        started
    };
    let started = match supervised(start, decide) {
        Ok(started) => started,
        Err(error) => {
            eprintln!("SKIPPED: the kernel allows no seccomp filter here: {error}");
            return None;
        }
    };
    let failed = failed.lock().unwrap().clone();
    let error = match started {
        Ok(runtime) => {
            assert_serves(&runtime, failed.as_deref());
            None
        }
        Err(error) => Some(error.to_string()),
    };
    Some((failed, error))
}

fn assert_serves(runtime: &Runtime, failed: Option<&str>) {
    for endpoint in runtime.endpoints() {
        let peer = runtime.client().connect(endpoint).unwrap();
        let message = runtime.client().message("echo").raw("x").to(&peer);
        let answer = message.request().within(PATIENCE).wait();
        assert_eq!(answer.as_deref(), Ok(&b"x"[..]), "{failed:?}");
    }
}
