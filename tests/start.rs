//! A start that fails names its cause and leaves nothing behind: no thread, no descriptor, no file.
//!
//! One test in a file of its own: it counts the threads and descriptors of the whole process.

use std::{
    fs,
    net::TcpListener,
    os::unix::net::UnixListener,
    path::Path,
    time::{Duration, Instant},
};

use corelane::{
    Config, Runtime,
    config::{Cpus, IdleStrategy},
    handler::{Context, Handler, blocking, inline, inline_with},
};
use rustix::thread::{CpuSet, sched_setaffinity};

fn double() -> Handler {
    inline("double", |n: u64, _| Ok(2 * n))
}

fn waits() -> Handler {
    blocking("waits", |n: u64, _| Ok(n))
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").expect("is there").count()
}

/// What the open descriptors are, sorted; and how many of them are eventfds, of which glommio 0.9
/// leaks one with each executor.
fn descriptors() -> (Vec<String>, usize) {
    let entries = fs::read_dir("/proc/self/fd").expect("is there");
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let mut found: Vec<String> = links.map(|link| link.display().to_string()).collect();
    found.sort();
    let all = found.len();
    found.retain(|link| link != "anon_inode:[eventfd]");
    let eventfds = all - found.len();
    (found, eventfds)
}

/// Everything below the directory, but what the test itself has put there.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.push(path.display().to_string());
    }
    found.retain(|path| !path.ends_with("mine"));
    found
}

/// Narrows the affinity mask of this thread, and of those that it starts, to one CPU; gives that
/// CPU, and another one of the mask before.
fn narrow_to_one_cpu() -> (usize, Option<usize>) {
    let usable = corelane::placement::probe().unwrap().usable_ids();
    let mut one = CpuSet::new();
    one.set(usable[0]);
    sched_setaffinity(None, &one).unwrap();
    (usable[0], usable.get(1).copied())
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let (cpu, outside) = narrow_to_one_cpu();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = format!("tcp://{}", listener.local_addr().unwrap());
    let _socket = UnixListener::bind(path("mine")).unwrap();
    let config = || {
        Config::default()
            .with_shards(1)
            .with_idle(IdleStrategy::Park)
            .with_listen(["tcp://127.0.0.1:0"])
            .with_dump_dir(path("dumps"))
    };
    let ipc = |name: &str| format!("ipc://{}", path(name));
    let panics = inline_with("panics", |_| -> fn((), &mut Context<'_>) -> Result<(), _> {
        std::panic::resume_unwind(Box::new("no state to be had"))
    });
    let mut cases: Vec<(Config, Vec<Handler>, &str)> = vec![
        (config(), vec![double(), double()], "registered twice"),
        (
            config().with_cpus(Cpus::List(vec![4095])),
            vec![],
            "CPU 4095 does not exist",
        ),
        (
            config().with_cpus(Cpus::List(vec![cpu, cpu])),
            vec![],
            "is named twice",
        ),
        (
            config().with_shards(2),
            vec![],
            "2 shards need as many CPUs",
        ),
        (
            config().with_listen(["tcp://0.0.0.0:0"]),
            vec![],
            "allow_insecure_remote",
        ),
        (config().with_listen([in_use.clone()]), vec![], "is in use"),
        (
            config().with_listen([in_use.clone()]),
            vec![waits()],
            "is in use",
        ),
        (
            config().with_blocking(|it| it.threads = 0),
            vec![double(), waits()],
            "<program>: blocking.threads: is 0, and handler \"waits\" is blocking",
        ),
        // The second fails when the first is bound already.
        (
            config().with_listen([ipc("a"), in_use.clone()]),
            vec![],
            "is in use",
        ),
        (config().with_listen([ipc("mine")]), vec![], "is in use"),
        (
            config().with_listen([ipc(&"x".repeat(200))]),
            vec![],
            "bytes",
        ),
        (
            config().with_dump_dir("/proc/nothing/can/be/made/here"),
            vec![],
            "/proc/nothing",
        ),
        (config().with_listen([ipc("b")]), vec![panics], "shard 0"),
    ];
    match outside {
        Some(outside) => {
            let config = config().with_cpus(Cpus::List(vec![outside]));
            cases.push((config, vec![], "is outside the affinity mask"));
        }
        None => eprintln!("SKIPPED: a CPU outside the affinity mask takes a second CPU"),
    }

    // What the first start leaves for the process' life is no leak of the others.
    drop(Runtime::builder(config()).start().unwrap());
    fs::remove_dir_all(path("dumps")).unwrap();
    let (threads_before, (before, mut eventfds)) = (threads(), descriptors());

    for (config, handlers, says) in cases {
        let begun = Instant::now();
        let started = Runtime::builder(config).handlers(handlers).start();
        let error = started.expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{says}");
        // Threads that were joined may take a moment to vanish from /proc.
        let deadline = Instant::now() + Duration::from_secs(5);
        while threads() > threads_before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(threads(), threads_before, "threads after: {error}");
        let (after, eventfds_after) = descriptors();
        assert_eq!(after, before, "descriptors after: {error}");
        eventfds += 1;
        assert!(eventfds_after <= eventfds, "eventfds after: {error}");
        assert_eq!(
            files(directory.path()),
            Vec::<String>::new(),
            "files after: {error}"
        );
    }
    // Threads for blocking handlers are there if any is registered.
    let running = |handlers| {
        let config = config().with_blocking(|it| it.threads = 3);
        let started = Runtime::builder(config).handlers(handlers).start();
        let runtime = started.unwrap();
        let threads = threads();
        drop(runtime);
        threads
    };
    let without = running(vec![double()]);
    assert_eq!(running(vec![double(), waits()]), without + 3);
    fs::remove_dir_all(path("dumps")).unwrap();
    // And nothing stands in the way of the next one.
    let runtime = Runtime::builder(config().with_listen([ipc("a")]))
        .start()
        .unwrap();
    assert_eq!(runtime.endpoints(), [ipc("a")]);
    drop(runtime);
    assert_eq!(descriptors().0, before, "descriptors after a life");
    assert_eq!(threads(), threads_before, "threads after a life");
}
