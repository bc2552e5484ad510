//! How typed payloads become bytes and back: JSON and postcard.
//!
//! An encoder writes straight into the buffer that leaves, a decoder reads from the buffer that
//! arrived. Neither allocates anything of its own, except for large JSON: up to
//! [`SIMD_JSON_BYTES_MIN`] serde_json parses it, and from there on simd-json, which is faster on
//! large texts, and builds an index of them first.

use std::io;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{error::CodecError, wire::Codec};

/// Encodes a value at the end of `out`.
///
/// Fails on [`Codec::Raw`] and unknown codecs, which have no types, and on values that the codec
/// cannot express; `out` then holds a part of it.
pub fn encode<T: Serialize + ?Sized>(
    codec: Codec,
    value: &T,
    out: impl io::Write,
) -> Result<(), CodecError> {
    let failed = |text: String| CodecError::Encode { codec, text };
    match codec {
        Codec::Json => {
            simd_json::serde::to_writer(out, value).map_err(|error| failed(error.to_string()))
        }
        Codec::Postcard => postcard::to_io(value, out)
            .map(drop)
            .map_err(|error| failed(error.to_string())),
        Codec::Raw | Codec::Unknown(_) => Err(CodecError::Untyped { codec }),
    }
}

/// JSON texts of at least so many bytes are parsed by simd-json. Below, its index costs more than
/// it saves: `{"a":1,"b":2}` takes it 150 ns and an allocation, and serde_json a third and none.
pub const SIMD_JSON_BYTES_MIN: usize = 1024;

/// Decodes payloads, and keeps the memory that this takes for the next one. One per shard.
#[derive(Default)]
pub struct Decoder {
    json: simd_json::Buffers,
}

impl Decoder {
    /// A decoder with no memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes a payload in place: large JSON text is scrambled afterwards.
    pub fn decode<T: DeserializeOwned>(
        &mut self,
        codec: Codec,
        payload: &mut [u8],
    ) -> Result<T, CodecError> {
        let failed = |text: String| CodecError::Decode { codec, text };
        match codec {
            Codec::Json if payload.len() >= SIMD_JSON_BYTES_MIN => {
                simd_json::serde::from_slice_with_buffers(payload, &mut self.json)
                    .map_err(|error| failed(error.to_string()))
            }
            codec => decode_unscrambled(codec, payload),
        }
    }
}

impl Decoder {
    /// Decodes a payload that others may hold too. JSON text that would be scrambled is copied
    /// first, unless nobody does.
    pub fn decode_shared<T: DeserializeOwned>(
        &mut self,
        codec: Codec,
        payload: Bytes,
    ) -> Result<T, CodecError> {
        if codec != Codec::Json || payload.len() < SIMD_JSON_BYTES_MIN {
            return decode_unscrambled(codec, &payload);
        }
        match payload.try_into_mut() {
            Ok(mut own) => self.decode(codec, &mut own),
            Err(shared) => self.decode(codec, &mut shared.to_vec()),
        }
    }
}

fn decode_unscrambled<T: DeserializeOwned>(codec: Codec, payload: &[u8]) -> Result<T, CodecError> {
    let failed = |text: String| CodecError::Decode { codec, text };
    match codec {
        Codec::Json => serde_json::from_slice(payload).map_err(|error| failed(error.to_string())),
        Codec::Postcard => postcard::from_bytes(payload).map_err(|error| failed(error.to_string())),
        Codec::Raw | Codec::Unknown(_) => Err(CodecError::Untyped { codec }),
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Sum {
        a: i64,
        b: i64,
    }

    #[test]
    fn decode_undoes_encode() {
        for codec in [Codec::Json, Codec::Postcard] {
            let mut bytes = Vec::new();
            encode(codec, &Sum { a: 1, b: -2 }, &mut bytes).unwrap();
            let sum: Sum = Decoder::new().decode(codec, &mut bytes).unwrap();
            assert_eq!(sum, Sum { a: 1, b: -2 });
        }
    }

    #[test]
    fn large_json_is_decoded_too_also_where_others_hold_it() {
        let sums = vec![Sum { a: 1, b: -2 }; SIMD_JSON_BYTES_MIN];
        let mut bytes = Vec::new();
        encode(Codec::Json, &sums, &mut bytes).unwrap();
        let shared = Bytes::from(bytes.clone());
        let mut decoder = Decoder::new();
        for payload in [shared.clone(), shared.slice(..), bytes.clone().into()] {
            let decoded: Vec<Sum> = decoder.decode_shared(Codec::Json, payload).unwrap();
            assert_eq!(decoded, sums);
        }
        assert_eq!(shared, bytes, "what others hold is left as it is");
    }

    #[test]
    fn json_is_minimal() {
        let mut bytes = Vec::new();
        encode(Codec::Json, &Sum { a: 1, b: 2 }, &mut bytes).unwrap();
        assert_eq!(bytes, br#"{"a":1,"b":2}"#);
    }

    #[test]
    fn bad_payloads_are_errors() {
        let deep = [br#"{"a":1,"b":2,"c":"#.as_slice(), &[b'['; 200_000]].concat();
        for text in [
            b"".as_slice(),
            b"{",
            b"\xff\xfe",
            br#"{"a":1}"#,
            br#"{"a":"x","b":1}"#,
            &deep,
        ] {
            let error = Decoder::new()
                .decode::<Sum>(Codec::Json, &mut text.to_vec())
                .unwrap_err();
            assert!(matches!(
                error,
                CodecError::Decode {
                    codec: Codec::Json,
                    ..
                }
            ));
        }
        assert!(
            Decoder::new()
                .decode::<Sum>(Codec::Postcard, &mut [])
                .is_err()
        );
    }

    #[test]
    fn raw_payloads_have_no_type() {
        let error = Decoder::new()
            .decode::<Sum>(Codec::Raw, &mut b"{}".to_vec())
            .unwrap_err();
        assert!(matches!(error, CodecError::Untyped { codec: Codec::Raw }));
        assert!(encode(Codec::Unknown(9), &1, Vec::new()).is_err());
    }
}
