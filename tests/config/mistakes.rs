//! Everything that can be wrong with a configuration, and the error that says so.

use super::error_of;

/// Each broken text with the key and the line that its error names, and words of its remedy.
#[test]
fn each_mistake_has_its_own_error() {
    for (text, key, line, remedy) in [
        ("sharts = 2", "sharts", 1, "did you mean shards?"),
        (
            "[limit]\nframes_max = 3",
            "limit",
            1,
            "did you mean limits?",
        ),
        (
            "[limits]\n\nring_capacty = 3",
            "limits.ring_capacty",
            3,
            "did you mean ring_capacity?",
        ),
        (
            "[idle]\ncolour = 3",
            "idle.colour",
            2,
            "known here: strategy, spin_us, yield_us",
        ),
        (
            "[engine.libzmq]\nhwn = 3",
            "engine.libzmq.hwn",
            2,
            "did you mean hwm?",
        ),
        (
            "limits.frame_max = 3",
            "limits.frame_max",
            1,
            "did you mean frames_max?",
        ),
        ("limits = 3", "limits", 1, "write it as a section, [limits]"),
        (
            "shards = \"two\"",
            "shards",
            1,
            "remove the line to leave it unset",
        ),
        ("shards = -1", "shards", 1, "remove the line"),
        ("shards = 0", "shards", 1, "ask for at least 1"),
        (
            "shards = 9223372036854775807",
            "shards",
            1,
            "ask for one per CPU at most",
        ),
        (
            "# a\n[limits]\nring_capacity = 0",
            "limits.ring_capacity",
            3,
            "must be at least 1, is 0; remove the line to use 1024",
        ),
        (
            "[limits]\nring_capacity = \"1k\"",
            "limits.ring_capacity",
            2,
            "remove the line to use 1024",
        ),
        (
            "[limits]\nring_capacity = 1.5",
            "limits.ring_capacity",
            2,
            "remove the line to use 1024",
        ),
        (
            "[blocking]\nthreads = 4097",
            "blocking.threads",
            2,
            "must be at most 4096, is 4097; remove the line to use 4",
        ),
        (
            "[blocking]\nqueue_capacity = 0",
            "blocking.queue_capacity",
            2,
            "must be at least 1, is 0; remove the line to use 256",
        ),
        (
            "[blocking]\nthread = 1",
            "blocking.thread",
            2,
            "did you mean threads?",
        ),
        (
            "[limits]\nframes_max = 1",
            "limits.frames_max",
            2,
            "must be at least 2, is 1",
        ),
        (
            "[limits]\ndeadline_ms = 4294968",
            "limits.deadline_ms",
            2,
            "must be at most 4294967",
        ),
        (
            "[limits]\nmessage_bytes_max = 4294967296",
            "limits.message_bytes_max",
            2,
            "must be at most 4294967295",
        ),
        (
            "[limits]\nheartbeat_timeout_ms = 6553501",
            "limits.heartbeat_timeout_ms",
            2,
            "must be at most 6553500",
        ),
        (
            "[limits]\nheartbeat_interval_ms = 4000",
            "limits.heartbeat_interval_ms",
            2,
            "must be at most limits.heartbeat_timeout_ms = 3000; raise",
        ),
        (
            "[limits]\nheartbeat_timeout_ms = 500",
            "limits.heartbeat_timeout_ms",
            2,
            "raise the latter",
        ),
        (
            "[limits]\nreconnect_max_ms = 5\nreconnect_min_ms = 6",
            "limits.reconnect_max_ms",
            2,
            "raise the latter",
        ),
        (
            "[limits]\nmessage_bytes_max = 4194304",
            "limits.message_bytes_max",
            2,
            "64 bytes of header",
        ),
        (
            "[limits]\nbuffered_bytes_max = 1000",
            "limits.buffered_bytes_max",
            2,
            "raise the latter",
        ),
        (
            "[limits]\nhandshake_bytes_max = 131072",
            "limits.handshake_bytes_max",
            2,
            "raise the latter",
        ),
        (
            "[idle]\nspin_us = 20000000",
            "idle.spin_us",
            2,
            "must be at most 1000000",
        ),
        (
            "[idle]\nstrategy = \"busy\"",
            "idle.strategy",
            2,
            "this build knows spin, adaptive, park",
        ),
        (
            "[engine]\nname = \"zmtp\"",
            "engine.name",
            2,
            "no engine \"zmtp\": this build knows native, libzmq",
        ),
        (
            "[engine]\nname = \"libzmq\"\n[engine.libzmq]\nhwm = 0",
            "engine.libzmq.hwm",
            4,
            "remove the line to use 1000",
        ),
        (
            "[engine]\nname = \"libzmq\"\n[engine.libzmq]\nio_threads = 65",
            "engine.libzmq.io_threads",
            4,
            "must be at most 64",
        ),
        (
            "[placement]\npolicy = \"random\"",
            "placement.policy",
            2,
            "knows compact, spread",
        ),
        (
            "[placement]\ncpus = \"0-\"",
            "placement.cpus",
            2,
            "numbers and ranges such as",
        ),
        (
            "[placement]\ncpus = []",
            "placement.cpus",
            2,
            "the list of CPUs is empty",
        ),
        (
            "[placement]\ncpus = true",
            "placement.cpus",
            2,
            "or an array of CPUs",
        ),
        (
            "[placement]\ncpus = [0, 99999]",
            "placement.cpus",
            2,
            "highest number that Linux can have",
        ),
        (
            "[placement]\ncpus = [0, 1, 0]",
            "placement.cpus",
            2,
            "name it once, or set placement.oversubscribe = true",
        ),
        (
            "shards = 3\n[placement]\ncpus = \"0-1\"",
            "shards",
            1,
            "ask for at most 2 shards, give more CPUs, or set placement.oversubscribe = true",
        ),
        (
            "[listen]\nendpoints = \"tcp://127.0.0.1:1\"",
            "listen.endpoints",
            2,
            "remove the line to use []",
        ),
        (
            "[listen]\nendpoints = [\"inproc://a\"]",
            "listen.endpoints[0]",
            2,
            "use tcp:// or ipc://",
        ),
        (
            "[listen]\nendpoints = [\n\"ipc:///a\",\n\"tcp://*:1\"]",
            "listen.endpoints[1]",
            4,
            "allow_insecure_remote = true",
        ),
        (
            "[listen]\nendpoints = [\"tcp://10.0.0.7:7400\"]",
            "listen.endpoints[0]",
            2,
            "allow_insecure_remote = true",
        ),
        (
            "[listen]\nendpoints = [\"ipc://@a\"]",
            "listen.endpoints[0]",
            2,
            "a directory of mode 0700",
        ),
        (
            "[listen]\nendpoints = [\"ipc://a\"]",
            "listen.endpoints[0]",
            2,
            "three slashes",
        ),
        (
            "shards = 2\n[listen]\nendpoints = [\"tcp://127.0.0.1:65535\"]",
            "listen.endpoints[0]",
            3,
            "at most 65534",
        ),
        (
            "shards = 2\n[listen]\nendpoints = [\"tcp://127.0.0.1:70\", \"tcp://127.0.0.1:71\"]",
            "listen.endpoints[0]",
            3,
            "as many ports between",
        ),
        (
            "[listen]\nendpoints = [\"ipc:///a\", \"ipc:///a\"]",
            "listen.endpoints[1]",
            2,
            "give each its own path",
        ),
        (
            "[metrics]\ndump_interval_s = 0",
            "metrics.dump_interval_s",
            2,
            "remove the line to use 10",
        ),
        (
            "[metrics]\ndump_dir = \"\"",
            "metrics.dump_dir",
            2,
            "for the current directory",
        ),
    ] {
        let error = error_of(text);
        let shown = error.to_string();
        assert_eq!(error.key(), Some(key), "{text}\n{shown}");
        assert_eq!(error.line(), Some(line), "{text}\n{shown}");
        assert!(
            shown.starts_with(&format!("<text>:{line}: {key}: ")),
            "{text}\n{shown}"
        );
        assert!(shown.contains(remedy), "{text}\n{shown}");
        assert!(!shown.contains('\n'), "{shown}");
    }
}
