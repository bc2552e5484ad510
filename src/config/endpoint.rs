//! Endpoints: where a process listens, and where a client connects to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::EndpointError;

/// What `sockaddr_un.sun_path` holds on Linux: 108 bytes, and one of them ends the path.
pub const IPC_PATH_BYTES_MAX: usize = 107;

/// `tcp://host:port` or `ipc:///path`; [`Display`](fmt::Display) writes what [`FromStr`] reads,
/// and what ZeroMQ takes.
///
/// Parsing asks neither the network nor the file system; only [`resolve`](Self::resolve) does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// TCP.
    Tcp {
        /// Where.
        host: Host,
        /// 0 when listening: any free port.
        port: u16,
    },
    /// A Unix socket.
    Ipc {
        /// Absolute, valid UTF-8.
        path: PathBuf,
    },
}

/// The host of a TCP endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// `*`: every IPv4 interface of this machine.
    Any,
    /// An address; an IPv6 one stands in brackets.
    Address(IpAddr),
    /// A name, still to be resolved.
    Name(String),
}

impl Endpoint {
    /// Replaces a host name by its first address, an IPv4 one if it has any, and `*` by 0.0.0.0.
    ///
    /// Blocks for as long as the system's resolver does if the host is a name; returns at once
    /// otherwise.
    pub fn resolve(&self) -> Result<Self, EndpointError> {
        let Self::Tcp { host, port } = self else {
            return Ok(self.clone());
        };
        let address = match host {
            Host::Any => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Host::Address(address) => *address,
            Host::Name(name) => lookup(name, *port).map_err(|why| EndpointError::Unresolved {
                endpoint: self.to_string(),
                why,
            })?,
        };
        Ok(Self::Tcp {
            host: Host::Address(address),
            port: *port,
        })
    }

    /// Whether only this machine is reached there, as far as the text tells: no name is resolved.
    pub(crate) fn is_loopback(&self) -> bool {
        match self {
            Self::Ipc { .. } => true,
            Self::Tcp { host, .. } => match host {
                Host::Any => false,
                Host::Address(address) => address.is_loopback(),
                Host::Name(name) => name == "localhost",
            },
        }
    }

    /// Where shard `shard` listens when a process is told to listen here: TCP ports p, p+1, …
    /// (0 stays 0: any free port), paths `path`, `path.1`, ….
    ///
    /// Errors: a port over 65535, a path longer than [`IPC_PATH_BYTES_MAX`].
    pub fn for_shard(&self, shard: usize) -> Result<Self, EndpointError> {
        match self {
            Self::Tcp { port: 0, .. } => Ok(self.clone()),
            Self::Tcp { host, port } => Ok(Self::Tcp {
                host: host.clone(),
                port: port_of_shard(self, *port, shard)?,
            }),
            Self::Ipc { path } => Ok(Self::Ipc {
                path: path_of_shard(self, path, shard)?,
            }),
        }
    }

    /// Whether only this host can reach it. A name counts as remote until it is resolved.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Ipc { .. } => true,
            Self::Tcp {
                host: Host::Address(address),
                ..
            } => address.to_canonical().is_loopback(),
            Self::Tcp { .. } => false,
        }
    }

    /// The address to bind or connect to: `None` for ipc, and for a host that is not resolved.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp {
                host: Host::Address(address),
                port,
            } => Some(SocketAddr::new(*address, *port)),
            _ => None,
        }
    }

    /// The path of a Unix socket: `None` for TCP.
    pub fn ipc_path(&self) -> Option<&Path> {
        match self {
            Self::Ipc { path } => Some(path),
            Self::Tcp { .. } => None,
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once("://") {
            Some(("tcp", rest)) => parse_tcp(text, rest),
            Some(("ipc", rest)) => parse_ipc(text, rest),
            Some((scheme, _)) if !scheme.is_empty() => Err(EndpointError::Scheme {
                text: text.to_owned(),
                scheme: scheme.to_owned(),
            }),
            _ => Err(EndpointError::NoScheme {
                text: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Ipc { path } => write!(f, "ipc://{}", path.display()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

fn parse_tcp(text: &str, rest: &str) -> Result<Endpoint, EndpointError> {
    // The last colon: those of an IPv6 address stand before it, in brackets.
    let Some((host, port)) = rest
        .rsplit_once(':')
        .filter(|(_, port)| !port.ends_with(']'))
    else {
        return Err(EndpointError::NoPort {
            text: text.to_owned(),
        });
    };
    let host = parse_host(host).ok_or_else(|| EndpointError::Host {
        text: text.to_owned(),
        host: host.to_owned(),
    })?;
    let port = parse_port(port).ok_or_else(|| EndpointError::Port {
        text: text.to_owned(),
        port: port.to_owned(),
    })?;
    Ok(Endpoint::Tcp { host, port })
}

fn parse_host(host: &str) -> Option<Host> {
    if host == "*" {
        return Some(Host::Any);
    }
    if let Some(inner) = host.strip_prefix('[') {
        let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(Host::Address(address.into()));
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Some(Host::Address(address.into()));
    }
    is_host_name(host).then(|| Host::Name(host.to_owned()))
}

/// RFC 1123 as people use it: underscores too. Digits and dots alone are a mistyped address, which
/// resolvers read in surprising ways (`10.1` as 10.0.0.1).
fn is_host_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let absolute = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253
        && absolute.split('.').all(is_label)
        && host.bytes().any(|b| b.is_ascii_alphabetic())
}

fn parse_port(port: &str) -> Option<u16> {
    // `u16::from_str` takes a leading `+`.
    port.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| port.parse().ok())?
}

fn parse_ipc(text: &str, path: &str) -> Result<Endpoint, EndpointError> {
    let bad_path = |why| EndpointError::BadPath {
        text: text.to_owned(),
        why,
    };
    if path.starts_with('@') {
        return Err(EndpointError::Abstract {
            text: text.to_owned(),
        });
    }
    if path.is_empty() {
        return Err(bad_path("it is empty"));
    }
    if !path.starts_with('/') {
        return Err(EndpointError::RelativePath {
            text: text.to_owned(),
        });
    }
    if path.bytes().any(|b| b == 0) {
        return Err(bad_path("it contains a NUL byte"));
    }
    if path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..") {
        return Err(bad_path("it names a directory"));
    }
    let endpoint = Endpoint::Ipc {
        path: PathBuf::from(path),
    };
    endpoint.for_shard(0)
}

fn lookup(name: &str, port: u16) -> Result<IpAddr, String> {
    let addresses: Vec<SocketAddr> = (name, port)
        .to_socket_addrs()
        .map_err(|error| error.to_string())?
        .collect();
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    let first = v4.or(addresses.first()).ok_or("it has no address")?;
    Ok(first.ip())
}

fn port_of_shard(endpoint: &Endpoint, port: u16, shard: usize) -> Result<u16, EndpointError> {
    let wanted = usize::from(port).saturating_add(shard);
    u16::try_from(wanted).map_err(|_| EndpointError::PortsExhausted {
        endpoint: endpoint.to_string(),
        shard,
        port: wanted,
        port_max: usize::from(u16::MAX).saturating_sub(shard),
    })
}

fn path_of_shard(endpoint: &Endpoint, path: &Path, shard: usize) -> Result<PathBuf, EndpointError> {
    let mut of_shard = path.as_os_str().to_owned();
    if shard > 0 {
        of_shard.push(format!(".{shard}"));
    }
    match of_shard.len() {
        0..=IPC_PATH_BYTES_MAX => Ok(of_shard.into()),
        bytes => Err(EndpointError::PathTooLong {
            endpoint: endpoint.to_string(),
            shard,
            bytes,
            bytes_max: IPC_PATH_BYTES_MAX,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn loopback_is_told_from_elsewhere() {
        let is_loopback = |text: &str| text.parse::<Endpoint>().unwrap().is_loopback();
        let here = [
            "tcp://127.0.0.1:7400",
            "tcp://[::1]:7400",
            "tcp://localhost:7400",
        ];
        assert!(here.into_iter().all(is_loopback));
        let elsewhere = ["tcp://10.0.0.1:7400", "tcp://example.org:7400"];
        assert!(!elsewhere.into_iter().any(is_loopback));
    }

    #[test]
    fn what_is_parsed_is_written_again() {
        for text in [
            "tcp://127.0.0.1:7400",
            "tcp://[::1]:0",
            "tcp://*:65535",
            "tcp://localhost:1",
            "tcp://node-1.example_net.org.:80",
            "ipc:///run/corelane/a b.sock",
        ] {
            assert_eq!(endpoint(text).to_string(), text);
            let json = serde_json::to_string(&endpoint(text)).expect("a string");
            assert_eq!(
                serde_json::from_str::<Endpoint>(&json).expect(&json),
                endpoint(text)
            );
        }
    }

    #[test]
    fn each_bad_endpoint_says_what_to_do() {
        for (text, remedy) in [
            ("", "write tcp://host:port"),
            ("127.0.0.1:7400", "write tcp://host:port"),
            ("://x", "write tcp://host:port"),
            ("inproc://x", "use tcp:// or ipc://"),
            ("udp://127.0.0.1:1", "use tcp:// or ipc://"),
            ("TCP://127.0.0.1:1", "use tcp:// or ipc://"),
            ("tcp://127.0.0.1", "with port 0 for any free one"),
            ("tcp://[::1]", "with port 0 for any free one"),
            ("tcp://127.0.0.1:", "from 0 (any free one) to 65535"),
            ("tcp://127.0.0.1:+1", "from 0 (any free one) to 65535"),
            ("tcp://127.0.0.1:65536", "from 0 (any free one) to 65535"),
            ("tcp://127.0.0.1:*", "from 0 (any free one) to 65535"),
            ("tcp://::1:7400", "an IPv6 address in brackets"),
            ("tcp://:7400", "write an IPv4 address"),
            ("tcp://10.1:7400", "write an IPv4 address"),
            ("tcp://256.0.0.1:7400", "write an IPv4 address"),
            ("tcp://a..b:7400", "write an IPv4 address"),
            ("tcp://user@host:7400", "write an IPv4 address"),
            ("ipc://@corelane", "a directory of mode 0700"),
            ("ipc://run/a.sock", "three slashes"),
            ("ipc://", "it is empty"),
            ("ipc:///run/", "it names a directory"),
            ("ipc:///run/a\0b", "a NUL byte"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text).to_string();
            assert!(error.contains(remedy), "{text:?}: {error}");
        }
    }

    #[test]
    fn each_shard_has_its_own() {
        assert_eq!(
            endpoint("tcp://[::1]:7400").for_shard(3),
            Ok(endpoint("tcp://[::1]:7403"))
        );
        assert_eq!(
            endpoint("tcp://*:0").for_shard(3),
            Ok(endpoint("tcp://*:0"))
        );
        assert_eq!(endpoint("ipc:///a").for_shard(0), Ok(endpoint("ipc:///a")));
        assert_eq!(
            endpoint("ipc:///a").for_shard(12),
            Ok(endpoint("ipc:///a.12"))
        );
        assert_eq!(
            endpoint("tcp://h:65535").for_shard(0),
            Ok(endpoint("tcp://h:65535"))
        );
        let error = endpoint("tcp://h:65535")
            .for_shard(1)
            .expect_err("no such port")
            .to_string();
        assert!(
            error.contains("port 65536") && error.contains("at most 65534"),
            "{error}"
        );
        assert!(endpoint("tcp://h:1").for_shard(usize::MAX).is_err());
    }

    #[test]
    fn the_last_shards_suffix_counts_in_the_paths_length() {
        let path = format!("ipc:///{}", "x".repeat(IPC_PATH_BYTES_MAX - 3));
        assert!(endpoint(&path).for_shard(9).is_ok());
        let error = endpoint(&path)
            .for_shard(10)
            .expect_err("108 bytes")
            .to_string();
        assert!(
            error.contains("108 bytes") && error.contains("allows 107"),
            "{error}"
        );
        assert!(format!("{path}xx").parse::<Endpoint>().is_ok());
        assert!(format!("{path}xxx").parse::<Endpoint>().is_err());
    }

    #[test]
    fn only_loopback_and_ipc_are_local() {
        for text in [
            "tcp://127.0.0.1:1",
            "tcp://127.9.9.9:1",
            "tcp://[::1]:1",
            "ipc:///a",
        ] {
            assert!(endpoint(text).is_local(), "{text}");
        }
        assert!(endpoint("tcp://[::ffff:127.0.0.1]:1").is_local());
        for text in [
            "tcp://*:1",
            "tcp://0.0.0.0:1",
            "tcp://[::]:1",
            "tcp://10.0.0.7:1",
        ] {
            assert!(!endpoint(text).resolve().expect(text).is_local(), "{text}");
        }
    }

    #[test]
    fn a_name_resolves_to_an_address() {
        let local = endpoint("tcp://localhost:7400")
            .resolve()
            .expect("localhost");
        assert!(local.is_local());
        assert_eq!(
            local.socket_addr().map(|address| address.port()),
            Some(7400)
        );
        let error = endpoint("tcp://no-such-host.invalid:1")
            .resolve()
            .expect_err("reserved name");
        assert!(error.to_string().contains("write its address"), "{error}");
    }
}
