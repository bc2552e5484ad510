//! `corelane call`: one message to any peer that speaks the wire.

use std::{
    error::Error,
    fs::File,
    io::{self, IsTerminal, Read, Write},
    num::NonZero,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use corelane::{
    Config, Runtime,
    client::{Addressed, Client, Peer, Raw},
    config::Endpoint,
    error::{CallError, NotSent, SendError},
};

use crate::{
    args::{Mode, route_key, within_ms},
    one_line,
};

/// Whatever the peer's limit is, the peer may say it: this only bounds what is read into memory.
const PAYLOAD_BYTES_MAX: u64 = 64 << 20;
/// A message must fit into the queue with its header and framing.
const QUEUE_BYTES_MAX: u64 = PAYLOAD_BYTES_MAX + (1 << 10);
/// How often a one-way message's account is read until it is settled.
const ACCOUNT_READ_EVERY: Duration = Duration::from_millis(1);

const NACKED: u8 = 1;
const UNANSWERED: u8 = 2;

/// Sends one message to a handler and prints the payload of its reply.
///
/// The exit code is 0 when the handler has returned (one-way: when the message was given to a
/// connection). A nack is told on stderr as `nack: Reason: text`, with exit code 1. No answer is
/// told as `indeterminate: …` (the handler ran once or not at all), and a message that never left
/// as `not sent: …` (it did not run), both with exit code 2.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct CallArgs {
    /// Where the peer listens: tcp://host:port or ipc:///path.
    endpoint: Endpoint,

    /// The handler's name.
    handler: String,

    /// The payload, as JSON; sent as it is given. Without --json and --raw the payload is empty.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    json: Option<String>,

    /// The payload, as the bytes of this file; "-" is stdin.
    #[arg(long, value_name = "FILE|-")]
    raw: Option<PathBuf>,

    /// What the message belongs to: a handler that is sharded by key runs it on this key's shard.
    #[arg(long, value_name = "N", value_parser = route_key)]
    route_key: Option<NonZero<u64>>,

    /// How it is delivered.
    #[arg(long, value_enum, default_value_t = Mode::Request)]
    mode: Mode,

    /// The time that it may take in all, connecting included.
    #[arg(long, value_name = "MS", value_parser = within_ms, default_value = "5000")]
    within: Duration,
}

/// Sends the message and tells how it ended.
pub(crate) fn run(args: &CallArgs) -> Result<ExitCode, Box<dyn Error>> {
    let raw = args.raw.as_deref().map(read).transpose()?;
    let runtime = Runtime::builder(config(args)).start()?;
    let client = runtime.client();
    let peer = client.connect(&args.endpoint.to_string())?;
    let ended = send(args, raw, client, &peer);
    if ended.is_ok() {
        // A one-way message may still be on its way out of this process.
        runtime.drain();
    }
    match ended {
        Ok(payload) => {
            print(&payload)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            // Its own words begin with `nack: `, `indeterminate: ` or `not sent: `.
            eprintln!("{}", one_line(&error.to_string()));
            Ok(ExitCode::from(match error {
                CallError::Nack { .. } => NACKED,
                _ => UNANSWERED,
            }))
        }
    }
}

fn config(args: &CallArgs) -> Config {
    let within_ms = u64::try_from(args.within.as_millis()).unwrap_or(u64::MAX);
    let config = Config::default().with_shards(1).with_prefer_ipc(false);
    config.with_limits(|limits| {
        limits.message_bytes_max = PAYLOAD_BYTES_MAX;
        limits.outgoing_bytes_max = QUEUE_BYTES_MAX;
        limits.drain_ms = limits.drain_ms.min(within_ms);
    })
}

/// Reads a payload whole.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut payload = Vec::new();
    let read = match path == Path::new("-") {
        true => read_bounded(io::stdin().lock(), &mut payload),
        false => File::open(path).and_then(|file| read_bounded(file, &mut payload)),
    };
    match read {
        Err(error) => Err(format!("{}: cannot be read: {error}", path.display())),
        Ok(()) if payload.len() as u64 > PAYLOAD_BYTES_MAX => {
            let bytes_max = PAYLOAD_BYTES_MAX;
            Err(format!(
                "{}: a payload takes {bytes_max} bytes at most",
                path.display()
            ))
        }
        Ok(()) => Ok(payload),
    }
}

/// One byte more than may be tells that there is more.
fn read_bounded(source: impl Read, payload: &mut Vec<u8>) -> io::Result<()> {
    source.take(PAYLOAD_BYTES_MAX + 1).read_to_end(payload)?;
    Ok(())
}

fn send(
    args: &CallArgs,
    raw: Option<Vec<u8>>,
    client: &Client,
    peer: &Peer,
) -> Result<Vec<u8>, CallError> {
    let route_key = args.route_key.map_or(0, NonZero::get);
    let message = client.message(&args.handler).route_key(route_key);
    let outgoing = match (&args.json, raw) {
        (Some(text), _) => message.json_text(text.clone()),
        (None, raw) => message.raw(raw.unwrap_or_default()),
    };
    let addressed = outgoing.to(peer);
    match args.mode {
        Mode::Request => {
            let reply = addressed.request().within(args.within).wait()?;
            Ok(reply.into())
        }
        Mode::Confirm => {
            addressed.confirm().within(args.within).wait()?;
            Ok(Vec::new())
        }
        Mode::OneWay => {
            send_one_way(addressed, peer, args.within)?;
            Ok(Vec::new())
        }
    }
}

/// Waits until a connection has taken the message, since nothing will answer it.
fn send_one_way(
    message: Addressed<'_, Client, Raw>,
    peer: &Peer,
    within: Duration,
) -> Result<(), SendError> {
    let lost = |why| SendError {
        why,
        payload: Default::default(),
    };
    let begun = Instant::now();
    message.one_way()?;
    while begun.elapsed() < within {
        let account = peer.account();
        if account.one_way_sent > 0 {
            return Ok(());
        }
        if account.lost > 0 {
            return Err(lost(NotSent::ConnectionLost));
        }
        thread::sleep(ACCOUNT_READ_EVERY);
    }
    Err(lost(NotSent::Deadline))
}

/// The payload's bytes alone; people at a terminal get a line end too.
fn print(payload: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(payload)?;
    if stdout.is_terminal() && !payload.is_empty() && !payload.ends_with(b"\n") {
        writeln!(stdout)?;
    }
    stdout.flush()
}
