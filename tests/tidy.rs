//! Reads the sources and keeps what `docs/architecture.md` promises of them: who may import whom,
//! who may read the clock, start a thread, spawn a task, record a metric or write `unsafe`, and
//! what a file may look like.
//!
//! A finding names file, line and remedy. Each rule is a plain function over [`Source`]s, so its
//! own test plants a violation in a made-up source and sees it found; a rule that no longer finds
//! anything fails here before it can pass there.

#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/failures.rs"]
mod failures;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/text.rs"]
mod text;

use std::process::Command;

use source::{Finding, Source};

#[test]
fn modules_import_only_what_the_table_allows() {
    assert_none(each(imports::check));
}

#[test]
fn only_the_reactor_and_the_edges_read_the_clock() {
    assert_none(each(code::check_clock));
}

#[test]
fn only_dumps_know_the_wall_clock() {
    assert_none(each(code::check_wall_clock));
}

#[test]
fn unsafe_is_fenced_and_explained() {
    assert_none(each(code::check_unsafe));
    assert_none(code::check_unsafe_lint(&source::read("Cargo.toml")));
}

#[test]
fn only_the_runtime_starts_threads() {
    assert_none(each(code::check_threads));
}

#[test]
fn tasks_are_spawned_in_one_place() {
    assert_none(code::check_spawns(&source::tree()));
}

#[test]
fn only_shard_and_runtime_record_metrics() {
    assert_none(each(code::check_metrics));
}

#[test]
fn nothing_is_left_unfinished() {
    assert_none(each(code::check_unfinished));
}

#[test]
fn files_and_lines_are_short() {
    assert_none(each(text::check_size));
}

#[test]
fn nothing_names_a_machine() {
    assert_none(each(text::check_machine));
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        assert_none(text::check_lock(&source::read(lock)));
    }
}

#[test]
fn each_failure_that_is_survived_has_a_test_that_is_there() {
    let page = source::read("docs/failures.md");
    assert!(page.text.contains("| failure |"), "no table is read");
    assert_none(failures::check(&page, &source::tree()));
}

/// What git tracks, not what lies about: an editor's folder is nobody's concern. An unpacked
/// package has no git and only the folders that `Cargo.toml` put in.
#[test]
fn top_level_folders_are_the_layout() {
    let Ok(listed) = Command::new("git")
        .args(["ls-files"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
    else {
        return;
    };
    let listed = String::from_utf8_lossy(&listed.stdout);
    assert_none(text::check_folders(listed.lines()));
}

fn each(check: fn(&Source) -> Vec<Finding>) -> Vec<Finding> {
    let tree = source::tree();
    assert!(
        tree.iter().any(|source| source.path == "src/lib.rs"),
        "no sources were read: run from the package's folder"
    );
    tree.iter().flat_map(check).collect()
}

fn assert_none(findings: Vec<Finding>) {
    let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(
        lines.is_empty(),
        "{} findings\n{}\n",
        lines.len(),
        lines.join("\n")
    );
}
