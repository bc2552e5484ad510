//! Arguments that several commands take.

use std::{num::NonZero, str::FromStr, time::Duration};

use clap::{
    ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use corelane::{
    Config,
    config::{Cpus, EngineKind, IdleStrategy},
    error::UnknownName,
};
use serde::Serialize;

/// The wire counts a deadline in 32 bits of microseconds.
const WITHIN_MS_MAX: u64 = u32::MAX as u64 / 1_000;
/// A run of a year is a slip of the unit.
const SECONDS_MAX: f64 = 86_400.0 * 365.0;

/// How the shards of this process run, as the configuration has it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ShardArgs {
    /// CPUs for the shards, such as 0-3,8: shard k runs on the k-th. "auto": any that the process
    /// may use.
    #[arg(long, value_name = "LIST|auto")]
    cpus: Option<Cpus>,

    /// What moves the messages.
    #[arg(long, value_name = "NAME", value_parser = word::<EngineKind>(EngineKind::WORDS))]
    engine: Option<EngineKind>,

    /// What a shard does when it has nothing to do: spin (lowest latency, a whole CPU), park (no
    /// CPU while idle), or adaptive (spin, yield, then park).
    #[arg(long, value_name = "STRATEGY", value_parser = word::<IdleStrategy>(IdleStrategy::WORDS))]
    idle: Option<IdleStrategy>,
}

impl ShardArgs {
    /// Whether the CPUs are listed, so that there is a shard for each of them.
    pub(crate) fn lists_cpus(&self) -> bool {
        matches!(self.cpus, Some(Cpus::List(_)))
    }

    /// What is given here goes before what the configuration says.
    pub(crate) fn apply(&self, mut config: Config) -> Config {
        if let Some(cpus) = &self.cpus {
            config = config.with_cpus(cpus.clone());
        }
        if let Some(engine) = self.engine {
            config = config.with_engine(engine);
        }
        if let Some(idle) = self.idle {
            config = config.with_idle(idle);
        }
        config
    }
}

/// How a message is delivered.
#[derive(ValueEnum, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Answered by a reply.
    Request,
    /// Answered once the handler has returned.
    Confirm,
    /// Not answered.
    OneWay,
}

impl Mode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Mode::Request => "request",
            Mode::Confirm => "confirm",
            Mode::OneWay => "one-way",
        }
    }
}

/// Parses a deadline in milliseconds.
pub(crate) fn within_ms(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(ms @ 1..=WITHIN_MS_MAX) => Ok(Duration::from_millis(ms)),
        _ => Err(format!(
            "a number of milliseconds from 1 to {WITHIN_MS_MAX} is expected"
        )),
    }
}

/// Parses a route key.
pub(crate) fn route_key(text: &str) -> Result<NonZero<u64>, String> {
    match text.parse::<u64>().map(NonZero::new) {
        Ok(Some(key)) => Ok(key),
        Ok(None) => Err("0 means no route key; leave the option out, or give another".to_owned()),
        Err(_) => Err(format!("a number from 1 to {} is expected", u64::MAX)),
    }
}

/// Parses seconds, fractions included.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err("a number of seconds such as 2 or 0.5 is expected".to_owned()),
    }
}

/// A parser for a word of the configuration, whose help shows all of them.
fn word<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = UnknownName> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| word.parse::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_bounds() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for text in ["-1", "NaN", "inf", "1e300", "1s", ""] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert_eq!(within_ms("5000"), Ok(Duration::from_secs(5)));
        for text in ["0", "-1", "4294968", "1.5", ""] {
            assert!(within_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_route_key_is_any_number_but_none() {
        for key in [1, u64::MAX] {
            assert_eq!(route_key(&key.to_string()), Ok(NonZero::new(key).unwrap()));
        }
        assert!(route_key("0").unwrap_err().contains("no route key"));
        for text in ["-1", "18446744073709551616", "1.5", "0x7", ""] {
            assert!(route_key(text).is_err(), "{text}");
        }
    }

    #[test]
    fn modes_are_written_as_they_are_given() {
        for mode in Mode::value_variants() {
            let given = mode.to_possible_value().expect("no mode is hidden");
            assert_eq!(given.get_name(), mode.as_str());
            let json = serde_json::to_string(mode).expect("a string");
            assert_eq!(json, format!("{:?}", mode.as_str()));
        }
    }
}
