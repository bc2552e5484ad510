//! Who takes part in which axis.

use std::fmt;

use corelane::config::EngineKind;

use crate::{
    Setup,
    axes::{Axis, FRAME, Waits, Work},
    lane::{self, Payload},
    libzmq,
    meter::{Measured, Span},
    raw,
    wire::{is_congestion_allowed, tcp_pair, unix_pair},
};

/// The engines that corelane is measured with. One line each:
const ENGINES: &[(&str, EngineKind)] = &[
    ("native", EngineKind::Native),
    ("libzmq", EngineKind::Libzmq),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Ipc,
}

#[derive(Clone, Debug)]
pub(crate) struct Contestant {
    pub(crate) name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// With this congestion control, or the machine's default.
    Raw(Option<&'static str>),
    Libzmq(Waits),
    Corelane(EngineKind, Payload),
}

impl Transport {
    pub(crate) const ALL: [Self; 2] = [Self::Tcp, Self::Ipc];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Ipc => "ipc",
        })
    }
}

/// Those for whom the axis makes sense, the floors first.
pub(crate) fn field(
    axis: &Axis,
    transport: Transport,
    default_congestion: &str,
) -> Vec<Contestant> {
    let mut field = floors(transport, default_congestion);
    // What blocks cannot keep a schedule, and what spins is not compared with what parks.
    let is_open_loop = matches!(axis.work, Work::OpenLoop { .. });
    if !is_open_loop {
        field.push(Contestant::new(
            "libzmq blocking",
            Kind::Libzmq(Waits::Park),
        ));
    }
    if axis.waits == Waits::Spin {
        field.push(Contestant::new(
            "libzmq spinning",
            Kind::Libzmq(Waits::Spin),
        ));
    }
    for &(engine, kind) in ENGINES {
        let name = format!("corelane/{engine}");
        if is_small_request(axis) {
            field.push(Contestant::new(&name, Kind::Corelane(kind, Payload::Typed)));
        }
        let in_bytes = Kind::Corelane(kind, Payload::Bytes);
        field.push(Contestant::new(&format!("{name} bytes"), in_bytes));
    }
    field
}

/// What may be typed: the rest is about bytes.
fn is_small_request(axis: &Axis) -> bool {
    match axis.work {
        Work::Ping { .. } => axis.payload_bytes() < FRAME,
        Work::Window { .. } | Work::OpenLoop { .. } => true,
        Work::Stream => false,
    }
}

/// Over tcp with the machine's congestion control, and with the one that loopback does best with.
fn floors(transport: Transport, default_congestion: &str) -> Vec<Contestant> {
    if transport == Transport::Ipc {
        return vec![Contestant::new("raw", Kind::Raw(None))];
    }
    let name = format!("raw, {default_congestion}");
    let mut floors = vec![Contestant::new(&name, Kind::Raw(None))];
    let best = ["cubic", "reno"]
        .into_iter()
        .find(|name| is_congestion_allowed(name));
    if let Some(best) = best.filter(|best| *best != default_congestion) {
        floors.push(Contestant::new(
            &format!("raw, {best}"),
            Kind::Raw(Some(best)),
        ));
    }
    floors
}

impl Contestant {
    fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
        }
    }

    pub(crate) fn is_floor(&self) -> bool {
        matches!(self.kind, Kind::Raw(_))
    }

    /// Whether the bar is for it.
    pub(crate) fn is_corelane(&self) -> bool {
        matches!(self.kind, Kind::Corelane(..))
    }

    /// Its threads have ended when this returns.
    pub(crate) fn run(
        &self,
        setup: &Setup,
        axis: &Axis,
        transport: Transport,
        span: Span,
    ) -> Result<Measured, String> {
        match self.kind {
            Kind::Raw(congestion) => {
                let pair = match transport {
                    Transport::Tcp => tcp_pair(congestion, axis.waits),
                    Transport::Ipc => unix_pair(axis.waits),
                };
                raw::run(setup, axis, span, pair.map_err(|error| error.to_string())?)
            }
            Kind::Libzmq(waits) => {
                let endpoint = setup.endpoint(transport, "*");
                libzmq::run(setup, axis, span, &endpoint, waits)
            }
            Kind::Corelane(engine, payload) => {
                let endpoint = setup.endpoint(transport, "0");
                lane::run(setup, axis, span, &endpoint, (engine, payload))
            }
        }
    }
}
