//! Tags: what a line of a dump is about, as `metric/handler`.
//!
//! The log format forbids comma, space and line ends in a tag, and its readers disagree about
//! character sets. So a handler's name is percent-encoded, byte by byte of its UTF-8: whatever is
//! not a visible ASCII character, the comma and the percent sign become `%XX`, two upper-case hex
//! digits. A metric has no slash, so the first slash ends it and the handler's name may have more.

use std::fmt::Write as _;

use serde::Serialize;

/// What a histogram measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Serving side: from the handler's call to its return.
    InHandler,
    /// Serving side: from the message's bytes read to its reply standing in the write buffer.
    ReadToReply,
    /// Calling side: from the send to the answer, by called handler.
    RoundTrip,
    /// By shard: from the beginning of a turn that found something to do, or let tasks run, to its
    /// end. For so long a shard looks at nothing new.
    Turn,
}

impl Metric {
    /// The name in tags and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Metric::InHandler => "in_handler",
            Metric::ReadToReply => "read_to_reply",
            Metric::RoundTrip => "round_trip",
            Metric::Turn => "turn",
        }
    }
}

pub(super) fn encode(metric: Metric, handler: &str) -> String {
    let mut tag = format!("{}/", metric.as_str());
    for byte in handler.bytes() {
        if byte.is_ascii_graphic() && byte != b',' && byte != b'%' {
            tag.push(char::from(byte));
        } else {
            let _ = write!(tag, "%{byte:02X}"); // a String takes what it is given
        }
    }
    tag
}

/// Metric and handler of a tag. Made for foreign tags too: without a slash all is metric, and what
/// is no escape stays as it is.
pub(super) fn decode(tag: &str) -> (String, String) {
    let (metric, handler) = tag.split_once('/').unwrap_or((tag, ""));
    (metric.to_owned(), unescape(handler))
}

fn unescape(escaped: &str) -> String {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let [first, tail @ ..] = rest {
        let byte = match tail {
            [high, low, ..] if *first == b'%' => hex(*high).zip(hex(*low)).map(|(h, l)| h << 4 | l),
            _ => None,
        };
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_whatever_they_hold() {
        for name in [
            "echo",
            "",
            "a/b",
            "a b,c\r\n",
            "100%",
            "%2C",
            "größe",
            "日本",
            "\0\u{7f}",
            "*",
        ] {
            let tag = encode(Metric::ReadToReply, name);
            assert!(
                tag.bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b','),
                "{tag}"
            );
            assert_eq!(decode(&tag), ("read_to_reply".to_owned(), name.to_owned()));
        }
    }

    #[test]
    fn a_plain_name_is_readable_in_the_log() {
        assert_eq!(
            encode(Metric::InHandler, "count.read"),
            "in_handler/count.read"
        );
        assert_eq!(encode(Metric::RoundTrip, "a b,c"), "round_trip/a%20b%2Cc");
    }

    #[test]
    fn foreign_tags_are_kept() {
        assert_eq!(decode("plain"), ("plain".to_owned(), String::new()));
        assert_eq!(decode("a/%"), ("a".to_owned(), "%".to_owned()));
        assert_eq!(decode("a/%4"), ("a".to_owned(), "%4".to_owned()));
        assert_eq!(decode("a/%+1é"), ("a".to_owned(), "%+1é".to_owned()));
        assert_eq!(decode("a/%ff"), ("a".to_owned(), "\u{fffd}".to_owned()));
    }
}
