//! What is wrong with a configuration, an endpoint or a placement.

/// Where in a configuration something stands: `corelane.toml:12: limits.ring_capacity`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigPlace {
    /// The file's path as it was given, `<text>` for a string, or `<program>` for a value that
    /// the program has set and no file holds.
    pub file: String,
    /// Counted from 1; `None` where the key stands in no text.
    pub line: Option<usize>,
    /// Dotted path of the key, such as `listen.endpoints[1]`; `None` where no key can be named.
    pub key: Option<String>,
}

impl std::fmt::Display for ConfigPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        match &self.key {
            Some(key) => write!(f, ": {key}"),
            None => Ok(()),
        }
    }
}

/// What is wrong with a configuration. All of it is found before any thread starts; each text
/// names the place, the reason and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error(
        "{file}: the configuration cannot be read: {cause}; check the path and its permissions"
    )]
    Read {
        /// The path as it was given.
        file: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The text is no TOML.
    #[error("{at}: this is not TOML: {why}; correct the line, examples/corelane.toml shows how")]
    Syntax {
        /// Where; its key is `None` when the text could not be read that far.
        at: ConfigPlace,
        /// What the parser says.
        why: String,
    },
    /// No such key or section.
    #[error("{at}: there is no such key; {remedy}")]
    UnknownKey {
        /// Where.
        at: ConfigPlace,
        /// The nearest known key, or all of its section's.
        remedy: String,
    },
    /// The value has the wrong type, or is not one of the words that the key takes.
    #[error("{at}: {why}; {remedy}")]
    WrongValue {
        /// Where.
        at: ConfigPlace,
        /// What was expected, and what stands there.
        why: String,
        /// What to write instead.
        remedy: String,
    },
    /// The value is smaller or larger than can work.
    #[error("{at}: {why}; {remedy}")]
    OutOfRange {
        /// Where.
        at: ConfigPlace,
        /// The bound, and the value.
        why: String,
        /// What to write instead.
        remedy: String,
    },
    /// Each of two values is possible, but not both together.
    #[error("{at}: {why}; {remedy}")]
    Contradiction {
        /// Where the one of them stands that is in the text, the later one if both are.
        at: ConfigPlace,
        /// Both keys with their values.
        why: String,
        /// Which one to change.
        remedy: String,
    },
    /// An endpoint cannot be listened on.
    #[error("{at}: {cause}")]
    Endpoint {
        /// Where.
        at: ConfigPlace,
        /// Why, and what to do.
        cause: EndpointError,
    },
    /// An endpoint can be reached from other hosts, which is not allowed by default: whoever
    /// reaches it may call every handler.
    #[error(
        "{at}: {endpoint} can be reached from other hosts, and peers are not authenticated; \
         listen on 127.0.0.1, [::1] or ipc://, or set listen.allow_insecure_remote = true on a \
         network that you trust"
    )]
    InsecureRemote {
        /// Where.
        at: ConfigPlace,
        /// The endpoint as it was resolved.
        endpoint: String,
    },
    /// The CPUs asked for cannot be had.
    #[error("{at}: {cause}")]
    Placement {
        /// Where.
        at: ConfigPlace,
        /// Why, and what to do.
        cause: PlacementError,
    },
}

impl ConfigError {
    /// Where the error stands; `None` when the file could not be read at all.
    pub fn place(&self) -> Option<&ConfigPlace> {
        match self {
            Self::Read { .. } => None,
            Self::Syntax { at, .. }
            | Self::UnknownKey { at, .. }
            | Self::WrongValue { at, .. }
            | Self::OutOfRange { at, .. }
            | Self::Contradiction { at, .. }
            | Self::Endpoint { at, .. }
            | Self::InsecureRemote { at, .. }
            | Self::Placement { at, .. } => Some(at),
        }
    }

    /// The file's path as it was given, `<text>` or `<program>`.
    pub fn file(&self) -> &str {
        match self {
            Self::Read { file, .. } => file,
            other => other.place().map_or("", |at| &at.file),
        }
    }

    /// The line, from 1, if the value at fault stands in a text.
    pub fn line(&self) -> Option<usize> {
        self.place()?.line
    }

    /// The dotted key, if one can be named.
    pub fn key(&self) -> Option<&str> {
        self.place()?.key.as_deref()
    }
}

/// Why a text is no endpoint, or an endpoint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Neither `tcp://` nor `ipc://`.
    #[error("\"{text}\" is not an endpoint: write tcp://host:port or ipc:///path")]
    NoScheme {
        /// What was given.
        text: String,
    },
    /// A transport that exists in ZeroMQ or elsewhere, but not here.
    #[error("\"{text}\": the transport \"{scheme}\" is not supported: use tcp:// or ipc://")]
    Scheme {
        /// What was given.
        text: String,
        /// Its transport.
        scheme: String,
    },
    /// `tcp://` without a port.
    #[error(
        "\"{text}\" has no port: write tcp://host:port, with port 0 for any free one and \
         brackets around IPv6"
    )]
    NoPort {
        /// What was given.
        text: String,
    },
    /// The port is no number from 0 to 65535.
    #[error("\"{text}\": the port \"{port}\" is not a number from 0 (any free one) to 65535")]
    Port {
        /// What was given.
        text: String,
        /// Its port.
        port: String,
    },
    /// The host is neither an address, nor `*`, nor possible as a name.
    #[error(
        "\"{text}\": \"{host}\" is not a host: write an IPv4 address, an IPv6 address in \
         brackets, a host name, or *"
    )]
    Host {
        /// What was given.
        text: String,
        /// Its host.
        host: String,
    },
    /// The name has no address now.
    #[error(
        "{endpoint}: the host name cannot be resolved: {why}; correct it, or write its address"
    )]
    Unresolved {
        /// The endpoint.
        endpoint: String,
        /// What the resolver said.
        why: String,
    },
    /// Shard k listens on port + k, and that is over 65535.
    #[error(
        "{endpoint}: shard {shard} would listen on port {port}, over 65535; use a port of at \
         most {port_max}, or 0 for any free ones"
    )]
    PortsExhausted {
        /// The endpoint.
        endpoint: String,
        /// The shard.
        shard: usize,
        /// Port + k.
        port: usize,
        /// The highest port that leaves room for this shard.
        port_max: usize,
    },
    /// Linux's abstract sockets.
    #[error(
        "\"{text}\" is an abstract socket, which any user of the machine may connect to, since \
         it has no file whose permissions could forbid it; use a path in a directory of mode \
         0700"
    )]
    Abstract {
        /// What was given.
        text: String,
    },
    /// The path does not begin with `/`.
    #[error(
        "\"{text}\" has a relative path, which would depend on the directory that each process \
         was started in; write ipc:///absolute/path, with three slashes"
    )]
    RelativePath {
        /// What was given.
        text: String,
    },
    /// The path cannot name a socket.
    #[error("\"{text}\": the path cannot name a socket: {why}; write ipc:///path/of/the/socket")]
    BadPath {
        /// What was given.
        text: String,
        /// Why not.
        why: &'static str,
    },
    /// The kernel's `sun_path` does not hold the path.
    #[error(
        "{endpoint}: the path of shard {shard}'s socket has {bytes} bytes, and the system allows \
         {bytes_max}; use a shorter path"
    )]
    PathTooLong {
        /// The endpoint.
        endpoint: String,
        /// The shard: its suffix `.k` counts.
        shard: usize,
        /// The path's length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Shard k listens on port + k or `path.k`, and another entry of the list has that already.
    #[error(
        "{endpoint}, where shard {shard} would listen, is taken by another entry of the list; \
         leave as many ports between two entries as there are shards, and give each its own path"
    )]
    TakenTwice {
        /// The endpoint of that shard.
        endpoint: String,
        /// The shard.
        shard: usize,
    },
}

/// Why a text is no list of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuListError {
    /// Nothing in it.
    #[error("the list of CPUs is empty: write \"auto\", or a list such as \"0-3,8\"")]
    Empty,
    /// A part that is neither a number nor a range.
    #[error("\"{part}\" is not a CPU: write \"auto\", or numbers and ranges such as \"0-3,8\"")]
    NotACpu {
        /// The part between commas.
        part: String,
    },
    /// A range that ends before it begins.
    #[error("the range \"{part}\" ends before it begins: write the lower CPU first")]
    Backwards {
        /// The part between commas.
        part: String,
    },
    /// A number that no Linux machine has.
    #[error(
        "CPU {cpu} is over {cpu_max}, the highest number that Linux can have: name a CPU of this \
         machine"
    )]
    TooHigh {
        /// The number.
        cpu: usize,
        /// The limit.
        cpu_max: usize,
    },
}

/// A word that a key takes only from a list: an engine, an idle strategy, a placement policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no {what} \"{given}\": this build knows {known}")]
pub struct UnknownName {
    /// What was looked for: `engine`, `idle strategy`, ….
    pub what: &'static str,
    /// The word that was given.
    pub given: String,
    /// All that there are.
    pub known: String,
}

/// Why shards cannot be placed on the CPUs asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// The kernel does not tell which CPUs this process may use.
    #[error(
        "the affinity mask of this process cannot be read; if a seccomp filter forbids \
         sched_getaffinity, allow it"
    )]
    NoAffinityMask,
    /// There is no CPU that is online and allowed.
    #[error(
        "this process may use none of the machine's online CPUs ({online}); widen its cpuset or \
         its affinity mask (taskset -p)"
    )]
    NoUsableCpu {
        /// The CPUs that are online.
        online: String,
    },
    /// No such CPU.
    #[error(
        "CPU {cpu} does not exist: this machine has {present}; name CPUs among {usable}, or \
         write \"auto\""
    )]
    Absent {
        /// The CPU asked for.
        cpu: usize,
        /// The machine's CPUs.
        present: String,
        /// Those that this process may use.
        usable: String,
    },
    /// It exists, but is switched off.
    #[error(
        "CPU {cpu} is offline; name CPUs among {usable}, or switch it on (echo 1 > \
         /sys/devices/system/cpu/cpu{cpu}/online)"
    )]
    Offline {
        /// The CPU asked for.
        cpu: usize,
        /// Those that this process may use.
        usable: String,
    },
    /// Online, but outside the process's affinity mask, which a cgroup's cpuset narrows too.
    #[error(
        "CPU {cpu} is outside the affinity mask of this process; name CPUs among {usable}, or \
         widen its cpuset or its mask (taskset -p)"
    )]
    NotAllowed {
        /// The CPU asked for.
        cpu: usize,
        /// Those that this process may use.
        usable: String,
    },
    /// Named twice, without leave to share it.
    #[error(
        "CPU {cpu} is named twice, and two shards on one CPU wait for each other; name it once, or \
         set placement.oversubscribe = true"
    )]
    NamedTwice {
        /// The CPU.
        cpu: usize,
    },
    /// A runtime without a shard runs nothing.
    #[error("0 shards run nothing; ask for at least 1, or leave the number out")]
    NoShards,
    /// More shards than CPUs, without leave to share them: two on one wait for each other.
    #[error(
        "{shards} shards need as many CPUs, and there are {cpus} ({usable}); ask for at most \
         {cpus} shards, give more CPUs, or set placement.oversubscribe = true"
    )]
    TooManyShards {
        /// Shards asked for.
        shards: usize,
        /// CPUs there are for them.
        cpus: usize,
        /// Which ones.
        usable: String,
    },
}

impl PlacementError {
    /// Whether the number of shards is at fault, and not the list of CPUs.
    pub fn is_about_shards(&self) -> bool {
        matches!(self, Self::NoShards | Self::TooManyShards { .. })
    }
}
