//! `corelane hist`: merges dumps and prints a row per tag.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use corelane::metrics::{self, Percentiles, TagRow};
use serde::Serialize;

/// Merges HDR histogram dumps and prints the percentiles of each tag, in microseconds.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct HistArgs {
    /// Interval logs, such as corelane writes into its dump directory.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// Prints one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Reads the files and prints to stdout.
pub(crate) fn run(args: &HistArgs) -> Result<(), Box<dyn Error>> {
    let mut rows = io::stdout().lock();
    print(args, &mut rows)?;
    rows.flush()?;
    Ok(())
}

/// Reads the files and prints to `out`.
pub(crate) fn print(args: &HistArgs, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let rows = metrics::read(&args.files)?;
    if args.json {
        let tags = rows.iter().map(Tag::from).collect();
        serde_json::to_writer(&mut *out, &Tags { tags })?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", table(&rows))?;
    }
    Ok(())
}

fn table(rows: &[TagRow]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header(
        ["metric", "handler", "count"]
            .iter()
            .chain(&Percentiles::HEADS),
    );
    for row in rows {
        let percentiles = Percentiles::from(&row.histogram);
        // A name comes from a file: what would steer the terminal is shown escaped.
        let names = [&row.metric, &row.handler].map(|name| name.escape_debug().to_string());
        let cells = names.into_iter().chain([percentiles.samples.to_string()]);
        table.add_row(cells.chain(percentiles.cells()));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[derive(Serialize)]
struct Tags<'a> {
    tags: Vec<Tag<'a>>,
}

#[derive(Serialize)]
struct Tag<'a> {
    metric: &'a str,
    handler: &'a str,
    samples: u64,
    latency_us: Percentiles,
}

impl<'a> From<&'a TagRow> for Tag<'a> {
    fn from(row: &'a TagRow) -> Self {
        let latency_us = Percentiles::from(&row.histogram);
        Tag {
            metric: &row.metric,
            handler: &row.handler,
            samples: latency_us.samples,
            latency_us,
        }
    }
}
