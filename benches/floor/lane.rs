//! corelane: two runtimes of one shard each, and a task on the client's shard that sends, as who
//! wants the lowest latency would.

mod sender;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
    mpsc::{self, RecvTimeoutError},
};

use bytes::Bytes;
use corelane::{
    Config, Runtime,
    config::{Cpus, EngineKind, IdleStrategy},
    handler::{Handler, inline, inline_in_place, inline_raw},
};
use serde::{Deserialize, Serialize};

use self::sender::{InBytes, Sender, Typed};
use crate::{
    Setup,
    axes::{Axis, Waits},
    meter::{Measured, Span},
    wire::PATIENCE,
};

/// What the payload is to both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// A value, in postcard: encoded and decoded at both ends.
    Typed,
    /// As it is.
    Bytes,
}

/// 64 bytes in postcard too.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Quote {
    prices: [f64; 8],
}

const QUOTE: Quote = Quote { prices: [1.5; 8] };

pub(crate) fn run(
    setup: &Setup,
    axis: &Axis,
    span: Span,
    endpoint: &str,
    (engine, kind): (EngineKind, Payload),
) -> Result<Measured, String> {
    let handled = Arc::new(AtomicU64::new(0));
    let server = config(axis, engine, setup.server_cpu()).with_listen([endpoint]);
    let server = Runtime::builder(server)
        .handlers(handlers(&handled))
        .start()
        .map_err(|error| error.to_string())?;
    let client = Runtime::builder(config(axis, engine, setup.client_cpu()))
        .start()
        .map_err(|error| error.to_string())?;
    let peer = client.client().connect(&server.endpoints()[0]);
    let peer = peer.map_err(|error| error.to_string())?;
    let (work, payload) = (axis.work, Bytes::from(vec![7; axis.payload_bytes()]));
    let (done, ended) = mpsc::channel();
    drop(client.run_on(0, move |cx| async move {
        let sender = Sender { cx, peer, payload };
        let measured = match kind {
            Payload::Typed => sender.work(&Typed, work, span, &handled).await,
            Payload::Bytes => sender.work(&InBytes, work, span, &handled).await,
        };
        drop(done.send(measured));
    }));
    let measured = ended.recv_timeout(span.warm_up + span.measured + 3 * PATIENCE);
    // The one that calls first, so that nothing is under way when the other stops.
    drop(client);
    drop(server);
    measured.map_err(|error| match error {
        RecvTimeoutError::Disconnected => "the client's task panicked",
        RecvTimeoutError::Timeout => "hangs, and may spin beside all that follows",
    })?
}

fn config(axis: &Axis, engine: EngineKind, cpu: usize) -> Config {
    let idle = match axis.waits {
        Waits::Spin => IdleStrategy::Spin,
        Waits::Park => IdleStrategy::Park,
    };
    Config::default()
        .with_engine(engine)
        .with_shards(1)
        .with_cpus(Cpus::List(vec![cpu]))
        .with_idle(idle)
        .with_limits(|limits| {
            limits.message_bytes_max = 2 << 20;
            limits.deadline_ms = PATIENCE.as_millis() as u64;
        })
}

fn handlers(handled: &Arc<AtomicU64>) -> [Handler; 4] {
    let handled = handled.clone();
    [
        inline("quote", |quote: Quote, _| Ok(quote)),
        inline_raw("echo", |payload, reply, _| {
            reply.extend_from_slice(payload);
            Ok(())
        }),
        inline_in_place("large", |payload, _| Ok(payload.len())),
        inline_raw("count", move |_, _, _| {
            // Written by one thread alone.
            handled.store(handled.load(Relaxed) + 1, Relaxed);
            Ok(())
        }),
    ]
}
