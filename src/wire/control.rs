use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Codec, HandlerKey, ROUTE_MAP, VERSION};
use crate::error::HelloError;

/// What a process says of itself: the payload of `hello` and of `welcome`.
///
/// It is JSON, so that people can read it and it can grow: members that this version does not know
/// are ignored, and those that a peer leaves out are empty. Only `instance` must be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The running process; new with each start.
    pub instance: Uuid,
    /// Versions of the wire it speaks.
    #[serde(default)]
    pub versions: Vec<u8>,
    /// Names of the payload codecs it reads.
    #[serde(default)]
    pub codecs: Vec<String>,
    /// Names of what it can do beyond the version.
    #[serde(default)]
    pub features: Vec<String>,
    /// Boot id of its host: two peers with one boot id can talk over ipc.
    #[serde(default)]
    pub host: String,
    /// Where each of its shards listens, shard by shard.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// How many shards it runs; 0 if it does not say.
    #[serde(default)]
    pub shards: usize,
    /// Which of its shards says this; it is the one that this connection reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<usize>,
    /// The map from route keys to its shards, by name: [`ROUTE_MAP`] or one that this version does
    /// not know.
    #[serde(default)]
    pub route_map: String,
    /// The handlers that it serves.
    #[serde(default)]
    pub handlers: Vec<HandlerEntry>,
}

/// In a hello's `features`: whoever says it wants another welcome, with correlation 0, whenever
/// what the other end serves has changed.
pub const FEATURE_UPDATES: &str = "updates";

impl Hello {
    /// What this build says in every hello; the caller adds what its own process serves.
    pub fn of_instance(instance: Uuid) -> Self {
        Self {
            instance,
            versions: vec![VERSION],
            codecs: Codec::NAMES.map(String::from).to_vec(),
            features: vec![FEATURE_UPDATES.to_owned()],
            host: String::new(),
            endpoints: Vec::new(),
            shards: 0,
            shard: None,
            route_map: ROUTE_MAP.to_owned(),
            handlers: Vec::new(),
        }
    }

    /// Whether who says this wants to be told when the list of handlers changes.
    pub fn takes_updates(&self) -> bool {
        self.features.iter().any(|it| it == FEATURE_UPDATES)
    }

    /// The JSON that goes into the payload. Allocates.
    pub fn encode(&self) -> Vec<u8> {
        simd_json::serde::to_vec(self).expect("strings, numbers and lists are JSON")
    }

    /// Reads a payload, in place: the bytes are scrambled afterwards. Allocates. Nesting deeper
    /// than simd-json's limit (1,024) is an error and no stack overflow.
    pub fn decode(payload: &mut [u8]) -> Result<Self, HelloError> {
        simd_json::serde::from_slice(payload).map_err(|error| HelloError(error.to_string()))
    }
}

/// One handler in a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerEntry {
    /// Its name.
    pub name: String,
    /// Its key, as 16 hex digits.
    pub key: String,
    /// On which shard its messages run.
    pub affinity: Affinity,
}

impl HandlerEntry {
    /// A handler whose messages run there.
    pub fn new(name: &str, affinity: Affinity) -> Self {
        Self {
            name: name.to_owned(),
            key: HandlerKey::of(name).to_string(),
            affinity,
        }
    }
}

/// Which shard a handler's messages run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum Affinity {
    /// `local`: the one that they arrive at.
    Local,
    /// `shard:3`: that one.
    Shard(usize),
    /// `key`: the one that their route key belongs to.
    Key,
    /// One that this version does not know: any shard takes them, and routes them.
    Other(String),
}

impl From<Affinity> for String {
    fn from(affinity: Affinity) -> Self {
        match affinity {
            Affinity::Local => "local".to_owned(),
            Affinity::Shard(shard) => format!("shard:{shard}"),
            Affinity::Key => "key".to_owned(),
            Affinity::Other(text) => text,
        }
    }
}

impl From<String> for Affinity {
    fn from(text: String) -> Self {
        let shard = text.strip_prefix("shard:").and_then(|it| it.parse().ok());
        match (text.as_str(), shard) {
            ("local", _) => Affinity::Local,
            ("key", _) => Affinity::Key,
            (_, Some(shard)) => Affinity::Shard(shard),
            _ => Affinity::Other(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_undoes_encode() {
        let mut hello = Hello::of_instance(Uuid::from_u128(7));
        hello.endpoints.push("tcp://127.0.0.1:7400".to_owned());
        let other = Affinity::Other("node:1".to_owned());
        for affinity in [Affinity::Local, Affinity::Shard(3), Affinity::Key, other] {
            hello.handlers.push(HandlerEntry::new("sum", affinity));
        }
        (hello.shards, hello.shard) = (4, Some(2));
        assert_eq!(Hello::decode(&mut hello.encode()), Ok(hello));
    }

    #[test]
    fn unknown_members_are_ignored_and_missing_ones_are_empty() {
        let mut text =
            br#"{"instance":"550e8400-e29b-41d4-a716-446655440000","mood":{"good":[1]}}"#.to_vec();
        let hello = Hello::decode(&mut text).unwrap();
        assert_eq!(
            (hello.shards, hello.handlers.len(), hello.host.as_str()),
            (0, 0, "")
        );
    }

    #[test]
    fn bad_hellos_are_errors() {
        let deep = format!(r#"{{"instance":{}"#, "[".repeat(100_000));
        for text in [
            "",
            "{}",
            "[]",
            r#"{"instance":7}"#,
            r#"{"instance":"x"}"#,
            "\u{0}",
            &deep,
        ] {
            assert!(
                Hello::decode(&mut text.as_bytes().to_vec()).is_err(),
                "{:.40}",
                text
            );
        }
    }
}
