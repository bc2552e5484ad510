//! The command `corelane`: serves demonstration handlers, calls any peer, measures or watches one,
//! reads dumps, and looks whether a host is fit for it.
//!
//! What scripts read goes to stdout; errors, notes and the log (`RUST_LOG`, by default `warn`) go
//! to stderr. An error is one line, `corelane: …`, and exit code 2.

mod args;
mod bench;
mod call;
mod demo;
mod doctor;
mod hist;
mod serve;
mod top;

use std::{error::Error, io, process::ExitCode};

use clap::{Parser, error::ErrorKind};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use self::{
    bench::BenchArgs, call::CallArgs, doctor::DoctorArgs, hist::HistArgs, serve::ServeArgs,
    top::TopArgs,
};

/// For whatever keeps the command from doing what it was asked.
const FAILED: u8 = 2;

/// Active messages over ZeroMQ, from the command line.
#[derive(Parser, Debug)]
#[command(name = "corelane", version)]
enum Command {
    Serve(ServeArgs),
    Call(CallArgs),
    Bench(BenchArgs),
    Hist(HistArgs),
    Doctor(DoctorArgs),
    Top(TopArgs),
}

fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => return refuse_usage(&error),
    };
    match run(&command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("corelane: {}", one_line(&error.to_string()));
            ExitCode::from(FAILED)
        }
    }
}

fn run(command: &Command) -> Result<ExitCode, Box<dyn Error>> {
    log_to_stderr()?;
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Call(args) => call::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Hist(args) => hist::run(args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => doctor::run(args),
        Command::Top(args) => top::run(args),
    }
}

fn log_to_stderr() -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .from_env()
        .map_err(|error| format!("RUST_LOG: {error}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    Ok(())
}

/// Help and version go out as clap writes them; of an error only what is wrong and its tips, on one
/// line.
fn refuse_usage(error: &clap::Error) -> ExitCode {
    let wants_help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if wants_help {
        // A closed pipe: nobody reads on.
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(FAILED));
    }
    let text = error.to_string();
    let is_useful = |part: &&str| !part.starts_with("Usage:") && !part.starts_with("For more");
    let parts: Vec<&str> = text
        .split("\n\n")
        .map(str::trim)
        .filter(is_useful)
        .collect();
    let text = parts.join("; ");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    eprintln!("corelane: {}; --help says more", one_line(text));
    ExitCode::from(FAILED)
}

/// What a peer, a file or the system said, without what would break the line or steer the terminal.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    words.join(" ").chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn foreign_text_stays_on_its_line() {
        assert_eq!(one_line("a\r\nb\t \u{1b}[2Jc é"), "a b \\u{1b}[2Jc é");
    }
}
