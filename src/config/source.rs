//! Where a value was written: turns what is wrong with it into an error with file, key and line.

use std::fs::File;
use std::io::{self, Read};
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::sync::Arc;

use serde::de::value::Error as PlainError;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use toml::de::{DeTable, DeValue};

use super::{
    BlockingConfig, Config, EngineConfig, IdleConfig, LibzmqConfig, LimitsConfig, ListenConfig,
    MetricsConfig, PlacementConfig,
};
use crate::error::{ConfigError, ConfigPlace};

/// No configuration that people write comes near; `/dev/zero` does.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The text of a configuration and its name; neither for one that a program made.
#[derive(Debug, Clone, Default)]
pub(super) struct Source(Option<Arc<Written>>);

#[derive(Debug)]
struct Written {
    name: String,
    text: String,
}

/// Reads a file whole.
pub(super) fn read(path: &Path) -> Result<Source, ConfigError> {
    let name = path.display().to_string();
    let read = || {
        let mut text = String::new();
        File::open(path)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)?;
        match text.len() as u64 <= FILE_BYTES_MAX {
            true => Ok(text),
            false => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it is over 1 MiB",
            )),
        }
    };
    match read() {
        Ok(text) => Ok(Source::text(&name, &text)),
        Err(cause) => Err(ConfigError::Read { file: name, cause }),
    }
}

impl Source {
    pub(super) fn text(name: &str, text: &str) -> Self {
        Self(Some(Arc::new(Written {
            name: name.to_owned(),
            text: text.to_owned(),
        })))
    }

    pub(super) fn parse(self) -> Result<Config, ConfigError> {
        let text = self.0.as_ref().map_or("", |written| &written.text);
        match toml::from_str::<Config>(text) {
            Ok(config) => Ok(Config {
                source: self,
                ..config
            }),
            Err(error) => Err(self.refuse(&error)),
        }
    }

    /// Names the key that the parser stumbled on.
    fn refuse(&self, error: &toml::de::Error) -> ConfigError {
        let (name, text) = match &self.0 {
            Some(written) => (written.name.as_str(), written.text.as_str()),
            None => (PROGRAM, ""),
        };
        let why = one_line(error.message());
        let offset = error.span().map(|span| span.start);
        let line = offset.map(|offset| line_of(text, offset));
        let place = |key| ConfigPlace {
            file: name.to_owned(),
            line,
            key,
        };
        let Ok(table) = DeTable::parse(text) else {
            return ConfigError::Syntax {
                at: place(None),
                why,
            };
        };
        let Some(path) = offset.and_then(|offset| path_at(table.get_ref(), offset)) else {
            return ConfigError::Syntax {
                at: place(None),
                why,
            };
        };
        let at = place(Some(path.join(".")));
        match unknown_key(&path) {
            Some(remedy) => ConfigError::UnknownKey { at, remedy },
            None => ConfigError::WrongValue {
                at,
                why,
                remedy: remedy_for(&path),
            },
        }
    }
}

/// Finds the place of a value that turned out to be wrong after parsing.
///
/// The text is parsed again only then: the spans of thousands of values that are right would be
/// kept for nothing.
pub(super) struct Blame<'a> {
    config: &'a Config,
}

/// What errors call a value that no text holds.
const PROGRAM: &str = "<program>";

impl<'a> Blame<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        Self { config }
    }

    /// The place of `key`, a dotted path that may end in `[i]`.
    pub(super) fn place(&self, key: &str) -> ConfigPlace {
        let key_alone = key.split('[').next().unwrap_or(key);
        let (file, line) = match &self.config.source.0 {
            Some(written) if !self.was_changed(&written.text, key_alone) => {
                (written.name.clone(), key_line(&written.text, key))
            }
            _ => (PROGRAM.to_owned(), None),
        };
        ConfigPlace {
            file,
            line,
            key: Some(key.to_owned()),
        }
    }

    /// The place of the first of two keys, unless only the second stands in the text.
    pub(super) fn either(&self, first: &str, second: &str) -> ConfigPlace {
        let (at_first, at_second) = (self.place(first), self.place(second));
        let changed = |at: &ConfigPlace| at.file == PROGRAM;
        match at_first.line.is_none()
            && !changed(&at_first)
            && (at_second.line.is_some() || changed(&at_second))
        {
            true => at_second,
            false => at_first,
        }
    }

    /// Refuses a number outside `range`.
    pub(super) fn check_range(
        &self,
        key: &str,
        value: u64,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> Result<(), ConfigError> {
        let (min, max) = range.into_inner();
        let why = if value < min {
            format!("must be at least {min}, is {value}")
        } else if value > max {
            format!("must be at most {max}, is {value}")
        } else {
            return Ok(());
        };
        let remedy = format!("remove the line to use {default}");
        Err(ConfigError::OutOfRange {
            at: self.place(key),
            why,
            remedy,
        })
    }

    /// Whether the program has set another value than the text holds: then no line is at fault.
    fn was_changed(&self, text: &str, key: &str) -> bool {
        let Ok(written) = toml::from_str::<Config>(text) else {
            return true;
        };
        let value_of = |config: &Config| {
            // What TOML cannot hold, such as a number over 2^63, no text can have given.
            let table = toml::Table::try_from(config).ok()?;
            Some(lookup(&toml::Value::Table(table), key).cloned())
        };
        match value_of(self.config) {
            Some(value) => value_of(&written) != Some(value),
            None => true,
        }
    }
}

fn lookup<'v>(value: &'v toml::Value, key: &str) -> Option<&'v toml::Value> {
    key.split('.')
        .try_fold(value, |value, part| value.get(part))
}

/// The line of a dotted key, which may end in `[i]`; `None` if the text does not have it.
fn key_line(text: &str, key: &str) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let (path, index) = match key.split_once('[') {
        Some((path, index)) => (path, index.trim_end_matches(']').parse::<usize>().ok()),
        None => (key, None),
    };
    let mut parts = path.split('.');
    let mut entry = table.get_ref().get_key_value(parts.next()?)?;
    for part in parts {
        entry = entry.1.get_ref().as_table()?.get_key_value(part)?;
    }
    let element = index.and_then(|index| entry.1.get_ref().as_array()?.get(index));
    let span = element.map_or(entry.0.span(), |element| element.span());
    Some(line_of(text, span.start))
}

/// The path of the innermost key whose name or value covers `offset`.
fn path_at(table: &DeTable<'_>, offset: usize) -> Option<Vec<String>> {
    let covers =
        |span: Range<usize>| span.contains(&offset) || (span.is_empty() && span.start == offset);
    for (key, value) in table {
        let name = key.get_ref().to_string();
        let inner = match value.get_ref() {
            DeValue::Table(inner) => path_at(inner, offset),
            _ => None,
        };
        if let Some(inner) = inner {
            return Some([vec![name], inner].concat());
        }
        if covers(key.span()) || covers(value.span()) {
            return Some(vec![name]);
        }
    }
    None
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&b| b == b'\n').count() + 1
}

/// Parsers quote a whole excerpt of the text over several lines; errors here are one line.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What to write instead of the last key of `path`, if there is no such key.
fn unknown_key(path: &[String]) -> Option<String> {
    let (name, section) = path.split_last()?;
    let known = known_keys(&section.join("."))?;
    if known.contains(&name.as_str()) {
        return None;
    }
    let near = known.iter().map(|key| (distance(name, key), key)).min()?;
    // Further apart than a third of its letters, it is another word.
    Some(match near.0 <= near.1.len().div_ceil(3) {
        true => format!("did you mean {}?", near.1),
        false => format!("known here: {}", known.join(", ")),
    })
}

fn remedy_for(path: &[String]) -> String {
    let key = path.join(".");
    let defaults = toml::Table::try_from(Config::default()).unwrap_or_default();
    match lookup(&toml::Value::Table(defaults), &key) {
        Some(toml::Value::Table(_)) => format!("write it as a section, [{key}]"),
        Some(default) => format!("remove the line to use {default}"),
        None => "remove the line to leave it unset".to_owned(),
    }
}

/// The keys of a section, as its struct declares them; `None` if there is no such section.
pub(super) fn known_keys(section: &str) -> Option<&'static [&'static str]> {
    match section {
        "" => fields_of::<Config>(),
        "placement" => fields_of::<PlacementConfig>(),
        "listen" => fields_of::<ListenConfig>(),
        "engine" => fields_of::<EngineConfig>(),
        "engine.libzmq" => fields_of::<LibzmqConfig>(),
        "idle" => fields_of::<IdleConfig>(),
        "blocking" => fields_of::<BlockingConfig>(),
        "limits" => fields_of::<LimitsConfig>(),
        "metrics" => fields_of::<MetricsConfig>(),
        _ => None,
    }
}

/// Asks a struct's own `Deserialize` for the names of its fields, so that no second list of them
/// can fall behind.
fn fields_of<'de, T: Deserialize<'de>>() -> Option<&'static [&'static str]> {
    struct Asker<'a>(&'a mut Option<&'static [&'static str]>);

    impl<'de> Deserializer<'de> for Asker<'_> {
        type Error = PlainError;

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            _visitor: V,
        ) -> Result<V::Value, PlainError> {
            *self.0 = Some(fields);
            Err(PlainError::custom("only the names were wanted"))
        }

        fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, PlainError> {
            Err(PlainError::custom("not a struct"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
            ignored_any
        }
    }

    let mut fields = None;
    let _ = T::deserialize(Asker(&mut fields));
    fields
}

/// Levenshtein's distance: single characters inserted, removed or replaced.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("é", "e", 2),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn sections_know_their_keys() {
        assert_eq!(
            known_keys("idle"),
            Some(&["strategy", "spin_us", "yield_us"][..])
        );
        assert_eq!(known_keys("idle.strategy"), None);
        let top = known_keys("").expect("the top level");
        assert!(
            top.contains(&"shards") && !top.contains(&"source"),
            "{top:?}"
        );
    }
}
