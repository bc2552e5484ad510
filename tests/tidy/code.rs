//! Rules about what code may call, and where.

use crate::source::{Finding, Source, is_word};

/// The reactor reads the clock once per turn; the edges, which no shard runs, read it for
/// themselves: the runtime's own threads, a foreign thread that starts a call, the command.
const CLOCK_READERS: [&str; 6] = [
    "src/shard/",
    "src/runtime.rs",
    "src/runtime/",
    "src/client/submit.rs",
    "src/handler/timers.rs",
    "src/bin/",
];
/// A `now()` of anything but a clock hands on what the reactor read.
const CLOCK: [&str; 8] = [
    "Instant::now",
    "Instant::recent",
    "SystemTime::now",
    "Clock::now",
    "clock.now()",
    "clock().now()",
    ".elapsed()",
    "clock_gettime",
];

pub(crate) fn check_clock(source: &Source) -> Vec<Finding> {
    let remedy = "take `now` as an argument: only the reactor and the edges read the clock";
    outside(source, &CLOCK_READERS, &CLOCK, remedy)
}

/// Where the wall clock stands: at the beginning and end of an interval that is dumped. It jumps,
/// so that nothing else may depend on it.
const WALL_CLOCK_READERS: [&str; 4] = [
    "src/runtime/start.rs",
    "src/runtime/collector.rs",
    "src/metrics/dump.rs",
    "src/bin/",
];
const WALL_CLOCK: [&str; 4] = [
    "SystemTime",
    "UNIX_EPOCH",
    "CLOCK_REALTIME",
    "ClockId::Realtime",
];

pub(crate) fn check_wall_clock(source: &Source) -> Vec<Finding> {
    let remedy = "count time by the shard's clock: the wall clock jumps";
    outside(source, &WALL_CLOCK_READERS, &WALL_CLOCK, remedy)
}

const THREAD_STARTERS: [&str; 2] = ["src/runtime.rs", "src/runtime/"];
const THREADS: [&str; 3] = ["thread::spawn", "thread::Builder", "thread::scope"];

pub(crate) fn check_threads(source: &Source) -> Vec<Finding> {
    let remedy = "let `runtime` start the thread: it places, names and joins them all";
    outside(source, &THREAD_STARTERS, &THREADS, remedy)
}

const RECORDERS: [&str; 5] = [
    "src/shard/",
    "src/runtime.rs",
    "src/runtime/",
    "src/metrics/",
    "src/bin/",
];
const RECORDS: [&str; 3] = [".record_", ".record(", "counters."];

pub(crate) fn check_metrics(source: &Source) -> Vec<Finding> {
    let remedy = "return what happened and let the shard record it: its recorders are its own";
    outside(source, &RECORDERS, &RECORDS, remedy)
}

/// glommio's, whichever way they are imported; each ends in a call or in `::<`.
const SPAWNS: [&str; 2] = ["spawn_local", "spawn_scoped_local"];

/// Over all sources at once: one call below `src/shard/`, so that "no task per inline message" is
/// a statement about one line.
pub(crate) fn check_spawns(tree: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut places = 0;
    for source in tree.iter().filter(|source| source.is_under(&["src/"])) {
        for (line, code) in numbered(&source.shipped) {
            let calls = SPAWNS.iter().any(|name| calls(code, name));
            let here = source.is_under(&["src/shard/"]);
            places += usize::from(calls && here);
            if calls && (!here || places > 1) {
                let remedy = "spawn through the one place in `src/shard/`, which bounds and counts";
                findings.push(source.finding(line, remedy));
            }
        }
    }
    findings
}

/// Where a system call or FFI forces it. Each line needs its reason beside it.
const UNSAFE_FILES: [&str; 7] = [
    "src/engine/libzmq/descriptor.rs", // borrows a descriptor that libzmq owns
    "src/placement/memory.rs",         // set_mempolicy, which only libc's `syscall` makes
    "src/shard/park.rs",               /* adopts a duplicated descriptor, which std and glommio
                                        * call unsafe */
    "tests/counts.rs",              // an allocator that counts is an unsafe trait
    "tests/directory.rs",           // the same
    "tests/faults/supervisor.rs",   // a seccomp filter, and calls made for another thread
    "tests/metrics_allocations.rs", // the same
];

/// An `unsafe fn` does nothing unsafe by itself: edition 2024 asks for a block in its body.
pub(crate) fn check_unsafe(source: &Source) -> Vec<Finding> {
    let lines: Vec<&str> = source.text.lines().collect();
    let allows = ["allow(unsafe_code", "expect(unsafe_code"];
    let is_allowed = allows.iter().any(|allow| source.code.contains(allow));
    let mut findings = Vec::new();
    for (line, code) in numbered(&source.code).filter(|(_, code)| has(code, "unsafe")) {
        let what = if !UNSAFE_FILES.contains(&source.path.as_str()) {
            "`unsafe` outside the files listed in tests/tidy/code.rs: find a safe call, or add the \
             file there with its reason"
        } else if !is_allowed {
            "`unsafe` in a file without `#![allow(unsafe_code)]`: add it, with the reason"
        } else if !code.contains("unsafe fn") && !is_explained(&lines, line) {
            "`unsafe` without a `SAFETY:` comment right above: say why it is sound"
        } else {
            continue;
        };
        findings.push(source.finding(line, what));
    }
    findings
}

/// Without the lint, the list above would be a habit and no rule.
pub(crate) fn check_unsafe_lint(manifest: &Source) -> Vec<Finding> {
    if manifest
        .text
        .lines()
        .any(|line| line.trim() == "unsafe_code = \"deny\"")
    {
        return Vec::new();
    }
    vec![manifest.finding(1, "put `unsafe_code = \"deny\"` back under `[lints.rust]`")]
}

/// `SAFETY:` within the three lines above `line`, or in the comment block that ends right above.
fn is_explained(lines: &[&str], line: usize) -> bool {
    let above = lines[..line - 1].iter().rev();
    let explains = |line: &&&str| line.contains("SAFETY:");
    let mut block = above
        .clone()
        .take_while(|line| line.trim_start().starts_with("//"));
    above.take(3).any(|line| explains(&line)) || block.any(|line| explains(&line))
}

const UNFINISHED: [&str; 4] = ["todo!", "unimplemented!", "dbg!", "#[ignore"];

/// In tests, benches and examples too.
pub(crate) fn check_unfinished(source: &Source) -> Vec<Finding> {
    let remedy = "finish it, or leave it out: nothing half-done is merged";
    named(source, &source.code, &UNFINISHED, remedy)
}

/// Finds `needles` in the library's shipped code, but for `allowed` paths.
fn outside(source: &Source, allowed: &[&str], needles: &[&str], remedy: &str) -> Vec<Finding> {
    if !source.is_under(&["src/"]) || source.is_under(allowed) {
        return Vec::new();
    }
    named(source, &source.shipped, needles, remedy)
}

fn named(source: &Source, view: &str, needles: &[&str], remedy: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, code) in numbered(view) {
        if let Some(needle) = needles.iter().find(|needle| has(code, needle)) {
            findings.push(source.finding(line, format!("`{needle}`: {remedy}")));
        }
    }
    findings
}

fn numbered(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

/// Whether `needle` stands in `code` and is not the end or the start of a longer word.
fn has(code: &str, needle: &str) -> bool {
    let opens = needle.starts_with(is_word);
    let closes = needle.ends_with(|c| is_word(c) && c != '_');
    code.match_indices(needle).any(|(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(is_word);
        let after = code[at + needle.len()..]
            .chars()
            .next()
            .is_some_and(is_word);
        !(opens && before || closes && after)
    })
}

fn calls(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let rest = code[at..].trim_start_matches(is_word);
        rest.starts_with('(') || rest.starts_with("::<")
    })
}

/// Asserts that `check` finds `text` at `path`, at its second line, and not where it is allowed.
#[track_caller]
fn assert_found(check: fn(&Source) -> Vec<Finding>, path: &str, text: &str, allowed_at: &str) {
    let text = format!("// first line\n{text}\n");
    let findings = check(&Source::new(path, &text));
    assert_eq!(
        findings.iter().map(|found| found.line).collect::<Vec<_>>(),
        [2],
        "{path}: {text}"
    );
    assert!(
        check(&Source::new(allowed_at, &text)).is_empty(),
        "{allowed_at}: {text}"
    );
}

#[test]
fn a_clock_read_below_the_reactor_is_found() {
    for read in [
        "let now = quanta::Instant::now();",
        "let start = SystemTime::now();",
        "call(self.clock.now())",
        "let taken = start.elapsed();",
        "map(Instant::now)",
    ] {
        assert_found(
            check_clock,
            "src/handler/dispatch.rs",
            read,
            "src/shard/turn.rs",
        );
        assert_found(
            check_clock,
            "src/client/local.rs",
            read,
            "src/client/submit.rs",
        );
    }
    let test = "#[cfg(test)]\nmod tests { fn f() { Instant::now(); } }";
    assert!(check_clock(&Source::new("src/wire/mod.rs", test)).is_empty());
    assert!(check_clock(&Source::new("src/wire/mod.rs", "turn.now()")).is_empty());
}

#[test]
fn the_wall_clock_outside_the_dumps_is_found() {
    for text in [
        "use std::time::{Duration, SystemTime};",
        "let at = SystemTime::now();",
        "let began = std::time::UNIX_EPOCH;",
        "clock_gettime(ClockId::Realtime);",
        "libc::clock_gettime(libc::CLOCK_REALTIME, &mut at);",
    ] {
        for path in [
            "src/shard/turn.rs",
            "src/client/submit.rs",
            "src/runtime/pool.rs",
        ] {
            assert_found(check_wall_clock, path, text, "src/runtime/collector.rs");
        }
    }
}

#[test]
fn a_thread_outside_the_runtime_is_found() {
    assert_found(
        check_threads,
        "src/shard/mod.rs",
        "std::thread::spawn(f);",
        "src/runtime.rs",
    );
    let builder = "thread::Builder::new().spawn(f)";
    assert_found(
        check_threads,
        "src/metrics/dump.rs",
        builder,
        "src/runtime/threads.rs",
    );
}

#[test]
fn a_metric_recorded_outside_the_shard_is_found() {
    let recorded = "self.metrics.record_handled(nanos);";
    assert_found(
        check_metrics,
        "src/handler/mod.rs",
        recorded,
        "src/shard/turn.rs",
    );
    let counted = "counters.nacked += 1;";
    assert_found(
        check_metrics,
        "src/client/mod.rs",
        counted,
        "src/runtime.rs",
    );
}

#[test]
fn a_second_spawn_and_one_elsewhere_are_found() {
    let one = || {
        Source::new(
            "src/shard/tasks.rs",
            "use glommio::spawn_local;\nspawn_local(f);",
        )
    };
    assert!(check_spawns(&[one()]).is_empty());
    let second = Source::new(
        "src/shard/turn.rs",
        "\nglommio::spawn_local_into(f, queue);",
    );
    assert_eq!(check_spawns(&[one(), second]).len(), 1);
    let elsewhere = Source::new("src/handler/mod.rs", "\nglommio::spawn_local::<T>(f);");
    assert_eq!(check_spawns(&[one(), elsewhere])[0].line, 2);
}

#[test]
fn unsafe_that_is_unlisted_unfenced_or_unexplained_is_found() {
    let fenced = "#![allow(unsafe_code)]\n// SAFETY: the descriptor is ours.\nunsafe { f() };";
    let parked = |text: &str| check_unsafe(&Source::new("src/shard/park.rs", text));
    assert!(parked(fenced).is_empty());
    let long = "#![allow(unsafe_code)]\n// SAFETY: a\n// b\n// c\n// d\nunsafe { f() };";
    assert!(parked(long).is_empty());

    assert_eq!(
        check_unsafe(&Source::new("src/wire/mod.rs", fenced))[0].line,
        3
    );
    assert_eq!(parked("// SAFETY: ours.\nunsafe { f() };").len(), 1);
    assert_eq!(parked("#![allow(unsafe_code)]\nunsafe { f() };").len(), 1);
    let far = "#![allow(unsafe_code)]\n// SAFETY: a\na();\nb();\nc();\nunsafe { f() };";
    assert_eq!(parked(far).len(), 1);

    let declared = "#![allow(unsafe_code)]\nunsafe fn f() { unsafe { g() } }";
    assert!(parked(declared).is_empty() && parked(&declared.replace("{ u", "{\nu")).len() == 1);
    assert!(parked("// unsafe in a comment\n#![deny(unsafe_code)]").is_empty());
    assert_eq!(
        check_unsafe_lint(&Source::new("Cargo.toml", "[lints.rust]")).len(),
        1
    );
}

#[test]
fn unfinished_code_is_found_and_talk_of_it_is_not() {
    for left in [
        "todo!()",
        "unimplemented!(\"later\")",
        "dbg!(x);",
        "#[ignore = \"slow\"]",
    ] {
        assert_found(check_unfinished, "tests/a.rs", left, "tests/a.md");
    }
    let talk = "// todo!() is found\nlet name = \"dbg!\";";
    assert!(check_unfinished(&Source::new("src/a.rs", talk)).is_empty());
}
