//! The configuration as people meet it: the example shows everything, and everything wrong has an
//! error with file, key, line and remedy.

#[path = "config/mistakes.rs"]
mod mistakes;

use std::io::Write;
use std::time::Duration;

use corelane::config::{
    Config, Cpus, Engine, EngineKind, Idle, IdleStrategy, Limits, MemoryPolicy, Order,
};
use corelane::error::ConfigError;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const EXAMPLE: &str = include_str!("../examples/corelane.toml");

fn error_of(text: &str) -> ConfigError {
    match Config::from_toml(text).and_then(Config::check) {
        Err(error) => error,
        Ok(_) => panic!("accepted:\n{text}"),
    }
}

/// The example with its optional keys set: lines such as `# shards = 2`.
fn example_with_optional_keys() -> String {
    let uncomment = |line: &str| {
        let inner = line.strip_prefix("# ").filter(|inner| {
            inner
                .split_once(" = ")
                .is_some_and(|(key, _)| key.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()))
        });
        inner.unwrap_or(line).to_owned()
    };
    EXAMPLE
        .lines()
        .map(uncomment)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_example_is_the_default() {
    let example = Config::from_toml(EXAMPLE).expect("the example");
    assert_eq!(example, Config::default());
    let settings = example.check().expect("the defaults");
    assert_eq!(*settings.limits(), Limits::default());
}

#[test]
fn the_example_shows_every_key() {
    let shown: toml::Table = example_with_optional_keys().parse().expect("the example");
    // A config with every optional key set serializes with all the keys that there are.
    let full = Config::default()
        .with_shards(2)
        .with_dump_dir("/var/log/corelane");
    let all = toml::Table::try_from(&full).expect("a table");
    assert_eq!(shown, all);
    assert!(all["limits"].as_table().expect("a section").len() >= 21);
}

#[test]
fn each_key_of_the_example_has_a_comment_before_it() {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for (before, line) in lines.iter().zip(&lines[1..]) {
        let is_key = line
            .trim_start_matches("# ")
            .split_once(" = ")
            .is_some_and(|(key, _)| !key.contains(' '));
        assert!(!is_key || before.starts_with("# "), "{line}");
    }
}

#[test]
fn the_path_of_the_last_shard_counts() {
    // 106 bytes for shard 0, and two more for shard 1.
    let path = format!("/{}", "x".repeat(105));
    let listen = |shards| format!("shards = {shards}\n[listen]\nendpoints = [\"ipc://{path}\"]");
    Config::from_toml(&listen(1))
        .and_then(Config::check)
        .expect("it fits");
    let shown = error_of(&listen(2)).to_string();
    assert!(
        shown.contains("shard 1's socket has 108 bytes, and the system allows 107"),
        "{shown}"
    );

    // Without a number of shards it shows only when their number is known.
    let settings = Config::default()
        .with_listen([format!("ipc://{path}")])
        .check()
        .expect("one fits");
    assert_eq!(settings.listen_by_shard(1).expect("one fits")[0].len(), 1);
    let error = settings.listen_by_shard(2).expect_err("too long");
    assert_eq!(error.key(), Some("listen.endpoints[0]"));
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    let nested = format!("x = {}", "[".repeat(100_000));
    for (text, line) in [
        (nested.as_str(), 1),
        ("shards = 1\nshards = 2", 2),
        ("a\n=", 1),
        ("[limits\n", 1),
        ("\n\nx = [1,", 3),
    ] {
        let error = error_of(text);
        assert!(matches!(error, ConfigError::Syntax { .. }), "{error:?}");
        assert_eq!(error.line(), Some(line), "{error}");
        assert!(
            error.to_string().contains("examples/corelane.toml"),
            "{error}"
        );
    }
}

#[test]
fn files_are_named_in_errors() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    write!(file, "[limits]\nring_capacity = 0\n").expect("written");
    let error = Config::from_file(file.path())
        .expect("TOML")
        .check()
        .expect_err("0");
    assert_eq!(
        error.to_string(),
        format!(
            "{}:2: limits.ring_capacity: must be at least 1, is 0; remove the line to use 1024",
            file.path().display()
        )
    );

    let error = Config::from_file("/no/such/file.toml").expect_err("no file");
    assert!(
        error.to_string().starts_with("/no/such/file.toml: "),
        "{error}"
    );
    assert!(error.to_string().contains("check the path"), "{error}");
    let error = Config::from_file("/dev/zero").expect_err("endless");
    assert!(error.to_string().contains("over 1 MiB"), "{error}");
}

#[test]
fn a_value_that_the_program_set_is_not_blamed_on_a_line() {
    let text = "shards = 1\n[limits]\nring_capacity = 8\ninbox_capacity = 0";
    let config = Config::from_toml(text).expect("TOML");
    let error = config
        .clone()
        .with_limits(|limits| limits.ring_capacity = 0)
        .check()
        .expect_err("0");
    assert_eq!((error.file(), error.line()), ("<program>", None), "{error}");
    // The values beside it still are.
    let error = config.check().expect_err("0");
    assert_eq!((error.file(), error.line()), ("<text>", Some(4)), "{error}");

    let error = Config::default()
        .with_limits(|limits| limits.drain_ms = u64::MAX)
        .check()
        .expect_err("too long");
    assert_eq!(
        error.to_string(),
        format!(
            "<program>: limits.drain_ms: must be at most 3600000, is {}; \
             remove the line to use 5000",
            u64::MAX
        )
    );
}

#[test]
fn settings_hold_what_was_set() {
    let settings = Config::default()
        .with_shards(2)
        .with_cpus("3,1".parse().expect("a list"))
        .with_policy(Order::Spread)
        .with_oversubscribe(true)
        .with_memory(MemoryPolicy::Bind)
        .with_engine(EngineKind::Libzmq)
        .with_idle(IdleStrategy::Park)
        .with_listen(["tcp://localhost:7400", "ipc:///run/a.sock", "tcp://[::1]:0"])
        .with_blocking(|blocking| blocking.threads = 0)
        .with_limits(|limits| limits.inline_budget_us = 7)
        .with_dump_dir("/var/log/corelane")
        .with_dump_interval_s(3)
        .check()
        .expect("all of it");
    assert_eq!(settings.policy().shards, Some(2));
    assert_eq!(settings.policy().cpus, Cpus::List(vec![3, 1]));
    assert_eq!(settings.policy().order, Order::Spread);
    assert!(settings.policy().oversubscribe);
    assert_eq!(settings.policy().memory, MemoryPolicy::Bind);
    assert_eq!(settings.idle(), Idle::Park);
    let blocking = settings.blocking();
    assert_eq!((blocking.threads, blocking.queue_capacity), (0, 256));
    assert_eq!(settings.limits().inline_budget, Duration::from_micros(7));
    assert_eq!(settings.metrics().dump_interval, Duration::from_secs(3));
    assert!(
        settings.listen()[0]
            .socket_addr()
            .is_some_and(|address| address.ip().is_loopback())
    );
    let Engine::Libzmq(libzmq) = settings.engine() else {
        panic!("{:?}", settings.engine())
    };
    assert_eq!((libzmq.io_threads, libzmq.hwm), (1, 1_000));

    let by_shard = settings.listen_by_shard(2).expect("two shards");
    let of_shard_1: Vec<String> = by_shard[1].iter().map(ToString::to_string).collect();
    assert!(of_shard_1[0].ends_with(":7401"), "{of_shard_1:?}");
    assert_eq!(of_shard_1[1..], ["ipc:///run/a.sock.1", "tcp://[::1]:0"]);
}

#[test]
fn a_remote_endpoint_needs_the_word_of_the_user() {
    for endpoint in ["tcp://*:7400", "tcp://0.0.0.0:7400", "tcp://[::]:7400"] {
        let config = Config::default().with_listen([endpoint]);
        let refused = config.clone().check();
        assert!(
            matches!(refused, Err(ConfigError::InsecureRemote { .. })),
            "{refused:?}"
        );
        config.with_insecure_remote(true).check().expect(endpoint);
    }
}

/// Texts near the example, cut, doubled and filled with what breaks parsers: always a value or an
/// error of one line.
#[test]
fn mutated_texts_never_panic() {
    const PIECES: &[&str] = &[
        "=",
        "[",
        "]",
        "\"",
        "'",
        "\n",
        "#",
        ".",
        ",",
        "-",
        "{",
        "}",
        "\u{0}",
        "é",
        "0",
        "-1",
        "1e9",
        "nan",
        "true",
        "18446744073709551616",
        "[[limits]]",
        "limits.x.y = 1",
        "ipc://",
        "tcp://[",
        "\"0-8191,0-8191\"",
        "1979-05-27",
        "\r",
    ];
    let seed = 0x636f_7265;
    let mut rng = SmallRng::seed_from_u64(seed);
    let whole = example_with_optional_keys();
    let lines: Vec<&str> = whole
        .lines()
        .filter(|line| !line.starts_with("# "))
        .collect();
    let mut refused = 0;
    for round in 0..2_000 {
        let mut text: Vec<char> = (0..rng.random_range(1..12))
            .flat_map(|_| {
                format!("{}\n", lines.choose(&mut rng).expect("lines"))
                    .chars()
                    .collect::<Vec<_>>()
            })
            .collect();
        for _ in 0..rng.random_range(0..4) {
            let at = rng.random_range(0..=text.len());
            let end = rng.random_range(at..=text.len().min(at + 6));
            text.splice(at..end, PIECES.choose(&mut rng).expect("pieces").chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = Config::from_toml(&text).and_then(Config::check) {
            refused += 1;
            let shown = error.to_string();
            let context = format!("seed {seed} round {round}: {shown}\n{text}");
            assert!(!shown.contains('\n'), "{context}");
            assert!(
                error.file() == "<text>" && error.line().is_some(),
                "{context}"
            );
        }
    }
    assert!((1..2_000).contains(&refused), "{refused} of 2000 refused");
}
