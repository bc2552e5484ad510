//! The recorded figures, and how the measured ones are judged by them.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    fs, io,
    process::Command,
};

use serde::Deserialize;

use crate::workloads::{SCALING, WORKLOADS};

const PATH: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/benches/instructions/recorded.toml"
);
const HEAD: &str = "\
# Instructions per message, written by `cargo bench --bench instructions -- --record`. Who makes a
# figure grow by more than 5% changes it here in the same commit, and says why.
";
/// By so much a figure may differ before somebody has to say that it may.
const TOLERANCE: f64 = 0.05;

/// By the workload's name.
pub(crate) type Figures = BTreeMap<String, f64>;

/// Instructions per message, and of which code they are.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recorded {
    #[serde(flatten)]
    pub(crate) made_by: MadeBy,
    pub(crate) instructions: Figures,
}

/// What decides how many instructions the same source is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct MadeBy {
    /// Its minor version, such as `1.93`.
    pub(crate) rustc: String,
    pub(crate) architecture: String,
    /// Vendor and family: the C library copies and compares by what the processor can do.
    pub(crate) cpu: String,
}

impl MadeBy {
    /// What this bench is made by. The error is a text for people.
    pub(crate) fn here() -> Result<Self, String> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let output = Command::new(rustc).arg("--version").output();
        let output = output.map_err(|error| format!("cannot ask rustc its version: {error}"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let version = said.split(' ').nth(1).and_then(|it| it.rsplit_once('.'));
        let (minor, _) = version.ok_or(format!("rustc says of itself {said:?}"))?;
        Ok(Self {
            rustc: minor.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            cpu: cpu(),
        })
    }
}

impl fmt::Display for MadeBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rustc {}, {}, {}",
            self.rustc, self.architecture, self.cpu
        )
    }
}

/// Empty where the kernel does not say, as on ARM.
fn cpu() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let mut lines = cpuinfo.lines();
        let value = lines.find_map(|line| line.strip_prefix(name));
        value.map_or("", |value| value.trim_start_matches([' ', '\t', ':']))
    };
    let cpu = format!("{} {}", field("vendor_id"), field("cpu family"));
    cpu.trim().to_owned()
}

impl Recorded {
    /// `None`: nothing is recorded yet. The error is a text for people.
    pub(crate) fn read() -> Result<Option<Self>, String> {
        match fs::read_to_string(PATH) {
            Ok(text) => match toml::from_str(&text) {
                Ok(recorded) => Ok(Some(recorded)),
                Err(error) => Err(format!("{PATH}: {error}")),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{PATH}: {error}")),
        }
    }

    /// The error is a text for people.
    pub(crate) fn write(&self) -> Result<(), String> {
        let MadeBy {
            rustc,
            architecture,
            cpu,
        } = &self.made_by;
        let mut text = format!(
            "{HEAD}rustc = \"{rustc}\"\narchitecture = \"{architecture}\"\ncpu = \"{cpu}\"\n\n\
             [instructions]\n"
        );
        for (name, figure) in in_order(&self.instructions) {
            let _ = writeln!(text, "{name} = {figure:.1}");
        }
        fs::write(PATH, text).map_err(|error| format!("{PATH}: {error}"))
    }
}

/// As the workloads stand in their list.
fn in_order(figures: &Figures) -> impl Iterator<Item = (&'static str, f64)> {
    let known = WORKLOADS.iter();
    known.filter_map(|it| Some((it.name, *figures.get(it.name)?)))
}

/// A line per workload. What it is compared with may be missing, as a whole or in part.
pub(crate) fn table(recorded: Option<&Figures>, measured: &Figures) -> String {
    let mut text = format!(
        "{:<20} {:>9} {:>9} {:>8}   instructions per message\n",
        "", "recorded", "measured", "change"
    );
    for workload in &WORKLOADS {
        let Some(&figure) = measured.get(workload.name) else {
            continue;
        };
        let before = recorded.and_then(|it| it.get(workload.name));
        let (before, change) = match before {
            Some(before) => (
                format!("{before:.1}"),
                format!("{:+.1}%", 100.0 * growth(*before, figure)),
            ),
            None => ("-".into(), "-".into()),
        };
        let (name, what) = (workload.name, workload.what);
        let _ = writeln!(
            text,
            "{name:<20} {before:>9} {figure:>9.1} {change:>8}   {what}"
        );
    }
    text
}

fn growth(before: f64, now: f64) -> f64 {
    now / before - 1.0
}

/// What has grown, and what is not recorded; what has shrunk may stay as it is.
pub(crate) fn grown(recorded: &Figures, measured: &Figures) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, &now) in measured {
        match recorded.get(name) {
            None => findings.push(format!("{name} is not recorded")),
            Some(&before) if growth(before, now) > TOLERANCE => {
                findings.push(format!("{name} has grown from {before:.1} to {now:.1}"));
            }
            Some(_) => {}
        }
    }
    findings
}

/// What costs less than is recorded by so much that it should be recorded anew.
pub(crate) fn shrunk(recorded: &Figures, measured: &Figures) -> Vec<String> {
    let before = |name| recorded.get(name).copied();
    let shrunk = measured.iter().filter_map(|(name, &now)| {
        let before = before(name).filter(|&before| growth(before, now) < -TOLERANCE)?;
        Some(format!("{name} has shrunk from {before:.1} to {now:.1}"))
    });
    shrunk.collect()
}

/// Whether a message costs a shard the same beside others that it has nothing to do with.
pub(crate) fn unscaled(measured: &Figures) -> Vec<String> {
    let mut findings = Vec::new();
    for [alone, beside] in SCALING {
        let (Some(&one), Some(&many)) = (measured.get(alone), measured.get(beside)) else {
            continue;
        };
        if growth(one, many).abs() > TOLERANCE {
            findings.push(format!("{beside} takes {many:.1}, {alone} {one:.1}"));
        }
    }
    findings
}

/// A rule that no longer finds anything fails here before it can pass.
///
/// # Panics
///
/// If a planted figure is not found.
pub(crate) fn check_rules() {
    let figures = |figure: f64| -> Figures {
        let all = WORKLOADS.iter().map(|it| (it.name.to_owned(), figure));
        all.collect()
    };
    let recorded = figures(100.0);
    assert!(grown(&recorded, &figures(104.9)).is_empty());
    assert_eq!(grown(&recorded, &figures(105.1)).len(), WORKLOADS.len());
    assert_eq!(grown(&Figures::new(), &recorded).len(), WORKLOADS.len());
    assert!(shrunk(&recorded, &figures(95.1)).is_empty());
    assert_eq!(shrunk(&recorded, &figures(94.9)).len(), WORKLOADS.len());
    assert!(unscaled(&recorded).is_empty());
    for [_, beside] in SCALING {
        let mut planted = recorded.clone();
        planted.insert(beside.to_owned(), 105.1);
        assert_eq!(unscaled(&planted).len(), 1, "{beside}");
    }
}
