//! The command line.

use std::{path::PathBuf, time::Duration};

use crate::{
    axes::{AXES, Axis},
    contestants::Transport,
    meter::Span,
};

const USAGE: &str = "\
cargo bench --bench floor -- [OPTIONS]
  --axis NAME            only this one; may be repeated
  --contestant NAME      only those whose name begins so, and the floors; may be repeated
  --transport tcp|ipc    only this one
  --rounds N             how often each contestant runs [default: 7; at least 5 say something]
  --seconds S            how long each time, after a fifth of it to warm up [default: 0.5]
  --patience S           on each axis, spend so long on repeating the runs that other processes
                         have disturbed [default: 30]
  --quick                3 rounds of 0.1 s, without the slow axes and without patience
  --json PATH            where to write every round's figures [default: target/floor.json]";

#[derive(Debug)]
pub(crate) struct Args {
    axes: Vec<String>,
    contestants: Vec<String>,
    pub(crate) transports: Vec<Transport>,
    rounds: Option<usize>,
    seconds: Option<f64>,
    patience: Option<f64>,
    is_quick: bool,
    pub(crate) json: PathBuf,
}

impl Args {
    /// The error is a text for people.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            axes: Vec::new(),
            contestants: Vec::new(),
            transports: Transport::ALL.to_vec(),
            rounds: None,
            seconds: None,
            patience: None,
            is_quick: false,
            json: concat!(env!("CARGO_MANIFEST_DIR"), "/target/floor.json").into(),
        };
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .ok_or(format!("{word} takes a value\n\n{USAGE}"))
            };
            match word.as_str() {
                "--axis" => args.axes.push(known_axis(value()?)?),
                "--contestant" => args.contestants.push(value()?),
                "--transport" => args.transports = vec![transport(&value()?)?],
                "--rounds" => args.rounds = Some(positive(&word, &value()?)?),
                "--seconds" => args.seconds = Some(seconds(&word, 0.01, &value()?)?),
                "--patience" => args.patience = Some(seconds(&word, 0.0, &value()?)?),
                "--quick" => args.is_quick = true,
                "--json" => args.json = value()?.into(),
                "--bench" => {} // cargo's own
                "--help" | "-h" => return Err(USAGE.into()),
                _ => return Err(format!("unknown argument {word:?}\n\n{USAGE}")),
            }
        }
        Ok(args)
    }

    pub(crate) fn axes(&self) -> impl Iterator<Item = &'static Axis> {
        AXES.iter().filter(|axis| match self.axes.is_empty() {
            true => axis.is_quick || !self.is_quick,
            false => self.axes.iter().any(|name| name == axis.name),
        })
    }

    pub(crate) fn wants(&self, contestant: &str) -> bool {
        let mut wanted = self.contestants.iter();
        self.contestants.is_empty() || wanted.any(|name| contestant.starts_with(name.as_str()))
    }

    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.is_quick { 3 } else { 7 })
    }

    /// For one axis over one transport.
    pub(crate) fn patience(&self) -> Duration {
        let seconds = self
            .patience
            .unwrap_or(if self.is_quick { 0.0 } else { 30.0 });
        Duration::from_secs_f64(seconds)
    }

    pub(crate) fn span(&self, axis: &Axis) -> Span {
        let seconds = self
            .seconds
            .unwrap_or(if self.is_quick { 0.1 } else { 0.5 });
        let measured = Duration::from_secs_f64(seconds) * axis.stretch;
        Span {
            warm_up: measured / 5,
            measured,
        }
    }
}

fn known_axis(name: String) -> Result<String, String> {
    let names: Vec<_> = AXES.iter().map(|axis| axis.name).collect();
    match names.contains(&name.as_str()) {
        true => Ok(name),
        false => Err(format!("no axis {name:?}; there are {}", names.join(", "))),
    }
}

fn transport(name: &str) -> Result<Transport, String> {
    let known = Transport::ALL
        .into_iter()
        .find(|known| known.to_string() == name);
    known.ok_or(format!("no transport {name:?}; there are tcp and ipc"))
}

fn positive(option: &str, text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{option} takes a number from 1, not {text:?}")),
        Ok(number) => Ok(number),
    }
}

fn seconds(option: &str, least: f64, text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (least..=3_600.0).contains(&seconds) => Ok(seconds),
        _ => Err(format!("{option} takes {least} to 3600, not {text:?}")),
    }
}
