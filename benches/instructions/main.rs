//! How many instructions each step of a message takes, counted by callgrind: repeatable where
//! seconds are not.
//!
//! `cargo bench --bench instructions` runs each workload twice under `valgrind --tool=callgrind`, a
//! process each, with fewer and with more messages, and divides the difference, so that start and
//! warm-up cancel. It compares with `recorded.toml` beside this file, and fails if a figure has
//! grown by more than 5%; `-- --record` writes the figures there instead. Figures of another
//! architecture, family of processors or minor version of rustc are not compared.
//!
//! Without valgrind it says so and ends well, unless it is given `-- --require`. What it always
//! does is run each workload here and see that all its messages were done.

mod figures;
mod memory;
mod valgrind;
mod workloads;
mod world;

use std::process::ExitCode;

use self::{
    figures::{Figures, MadeBy, Recorded},
    workloads::{WORKLOADS, Workload},
};

const USAGE: &str = "\
cargo bench --bench instructions -- [OPTIONS] [NAME]...
  NAME        only workloads whose names hold this
  --record    write the figures to recorded.toml instead of comparing with it
  --require   fail where there is no valgrind";

#[derive(Default)]
struct Args {
    names: Vec<String>,
    is_recording: bool,
    is_required: bool,
}

impl Args {
    /// The error is a text for people.
    fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self::default();
        for word in words {
            match word.as_str() {
                "--record" => args.is_recording = true,
                "--require" => args.is_required = true,
                "--bench" => {} // cargo's own
                "--help" | "-h" => return Err(USAGE.into()),
                _ if word.starts_with('-') => {
                    return Err(format!("unknown argument {word:?}\n\n{USAGE}"));
                }
                _ => args.names.push(word),
            }
        }
        match args.is_recording && !args.names.is_empty() {
            true => Err("all workloads are recorded, or none".into()),
            false => Ok(args),
        }
    }

    fn workloads(&self) -> impl Iterator<Item = &'static Workload> {
        WORKLOADS.iter().filter(|workload| {
            let mut names = self.names.iter();
            self.names.is_empty() || names.any(|name| workload.name.contains(name.as_str()))
        })
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let first = words.next();
    if first.as_deref() == Some(valgrind::CHILD) {
        valgrind::be_counted(words);
        return ExitCode::SUCCESS;
    }
    let outcome = Args::parse(first.into_iter().chain(words)).and_then(|args| measure(&args));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

/// The error is a text for people.
fn measure(args: &Args) -> Result<(), String> {
    figures::check_rules();
    for workload in args.workloads() {
        valgrind::run_here(workload);
    }
    println!("each workload does all its messages");
    let Some(version) = valgrind::version() else {
        let text = "SKIPPED: there is no valgrind here, and nothing was counted";
        if args.is_required {
            return Err(text.into());
        }
        println!("{text}");
        return Ok(());
    };
    let mut measured = Figures::new();
    for workload in args.workloads() {
        let figure = valgrind::instructions(workload)?;
        measured.insert(workload.name.to_owned(), figure);
    }
    let made_by = MadeBy::here()?;
    println!("{version}, {made_by}");
    let mut findings = figures::unscaled(&measured);
    match args.is_recording {
        true => record(made_by, measured)?,
        false => findings.extend(compare(&made_by, &measured)?),
    }
    match findings.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "FAILED by more than 5%:\n  {}\n\
             Make it cheaper, or say in the commit why it costs more and record it there: --record",
            findings.join("\n  ")
        )),
    }
}

fn record(made_by: MadeBy, instructions: Figures) -> Result<(), String> {
    let before = Recorded::read()?;
    let before = before.filter(|it| it.made_by == made_by);
    let before = before.map(|it| it.instructions);
    print!("{}", figures::table(before.as_ref(), &instructions));
    let recorded = Recorded {
        made_by,
        instructions,
    };
    recorded.write()?;
    println!("recorded");
    Ok(())
}

/// What has grown.
fn compare(made_by: &MadeBy, measured: &Figures) -> Result<Vec<String>, String> {
    let recorded = Recorded::read()?.ok_or("nothing is recorded yet: --record")?;
    if recorded.made_by != *made_by {
        print!("{}", figures::table(None, measured));
        println!("NOT COMPARED: recorded with {}", recorded.made_by);
        return Ok(Vec::new());
    }
    let recorded = recorded.instructions;
    print!("{}", figures::table(Some(&recorded), measured));
    for text in figures::shrunk(&recorded, measured) {
        println!("{text}: record it, so that it stays so");
    }
    Ok(figures::grown(&recorded, measured))
}
