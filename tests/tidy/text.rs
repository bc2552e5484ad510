//! Rules about files as text: their size, their place, and what they must not name.

use crate::source::{FOLDERS, Finding, Source};

const LINES_MAX: usize = 500;
const COLUMNS_MAX: usize = 100;

/// Manifests are left to cargo's own habits, and prose may be as long as it must.
pub(crate) fn check_size(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_code = [".rs", ".py", ".sh", ".ci/run"]
        .iter()
        .any(|end| source.path.ends_with(end));
    if !is_code && !source.path.ends_with(".md") {
        return findings;
    }
    let lines = source.text.lines().count();
    if is_code && lines > LINES_MAX {
        let what = format!("{lines} lines, over {LINES_MAX}: split the file by what it does");
        findings.push(source.finding(lines, what));
    }
    for (index, line) in source.text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX && !is_table(line) && !line.contains("https://") {
            let what = format!("{columns} columns, over {COLUMNS_MAX}: break the line");
            findings.push(source.finding(index + 1, what));
        }
        if line.contains('\t') {
            findings.push(source.finding(index + 1, "a tab: indent by spaces"));
        }
    }
    findings
}

/// A row of a Markdown table, in a page or in a doc comment, cannot be broken.
fn is_table(line: &str) -> bool {
    line.trim_start()
        .trim_start_matches(['/', '!', '#'])
        .trim_start()
        .starts_with('|')
}

/// In two pieces each, so that this file does not find itself.
const MACHINE: [&str; 8] = [
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/Us", "ers/"),
    concat!("/wo", "rk/"),
    concat!("index", "-url"),
    concat!("find", "-links"),
    concat!("--re", "gistry"),
    concat!("replace", "-with"),
];

/// A path that exists on one machine, or a mirror that one network has.
pub(crate) fn check_machine(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        if let Some(needle) = MACHINE.iter().find(|needle| names(line, needle)) {
            let what = format!("`{needle}`: write it so that it holds on every machine");
            findings.push(source.finding(index + 1, what));
        }
    }
    findings
}

/// A path counts where it starts at its root: `docs/home/` does not.
fn names(line: &str, needle: &str) -> bool {
    line.match_indices(needle).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !needle.starts_with('/')
            || !before.is_some_and(|c| c.is_alphanumeric() || ".-_".contains(c))
    })
}

const CRATES_IO: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";

/// Every dependency comes from where everybody can fetch it.
pub(crate) fn check_lock(lock: &Source) -> Vec<Finding> {
    let sources = lock
        .text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with("source = "));
    let foreign = sources.filter(|(_, line)| *line != CRATES_IO);
    foreign
        .map(|(index, _)| lock.finding(index + 1, "not crates.io: depend on a release"))
        .collect()
}

/// `paths` are those that git tracks.
pub(crate) fn check_folders<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<Finding> {
    let mut unknown: Vec<&str> = paths
        .filter_map(|path| path.split_once('/'))
        .map(|(folder, _)| folder)
        .filter(|folder| !FOLDERS.contains(folder))
        .collect();
    unknown.dedup();
    let what = format!("not in the layout: move it into one of {FOLDERS:?}");
    unknown
        .iter()
        .map(|folder| Source::new(folder, "").finding(1, what.clone()))
        .collect()
}

#[test]
fn long_files_long_lines_and_tabs_are_found() {
    let lines = |path: &str, text: &str| -> Vec<usize> {
        check_size(&Source::new(path, text))
            .iter()
            .map(|found| found.line)
            .collect()
    };
    assert_eq!(lines("src/a.rs", &"a\n".repeat(501)), [501]);
    assert!(lines("src/a.rs", &"a\n".repeat(500)).is_empty());
    assert!(lines("CHANGELOG.md", &"a\n".repeat(501)).is_empty());
    assert_eq!(
        lines("README.md", &format!("a\n{}\n", "é".repeat(101))),
        [2]
    );
    assert!(lines("README.md", &"é".repeat(100)).is_empty());
    assert!(lines("src/a.rs", &format!("/// | {} |", "a".repeat(100))).is_empty());
    assert!(lines("src/a.rs", &format!("// https://{}", "a".repeat(100))).is_empty());
    assert_eq!(lines(".ci/run", "a\n\tb\n"), [2]);
}

#[test]
fn paths_and_hosts_of_one_machine_are_found() {
    for needle in MACHINE {
        let planted = Source::new("README.md", &format!("first\nsee {needle}x\n"));
        assert_eq!(check_machine(&planted)[0].line, 2, "{needle}");
    }
    let inside = format!("docs{}page", MACHINE[0]);
    assert!(check_machine(&Source::new("README.md", &inside)).is_empty());

    let mirror = "[[package]]\nsource = \"registry+https://mirror.example/index\"\n";
    assert_eq!(check_lock(&Source::new("Cargo.lock", mirror))[0].line, 2);
    assert!(check_lock(&Source::new("Cargo.lock", CRATES_IO)).is_empty());
}

#[test]
fn a_folder_outside_the_layout_is_found() {
    let tracked = [
        "Cargo.toml",
        "src/lib.rs",
        "scripts/a.sh",
        "scripts/b.sh",
        ".ci/run",
    ];
    let findings = check_folders(tracked.into_iter());
    assert_eq!(findings.len(), 1);
    assert!(
        findings[0].to_string().starts_with("scripts:"),
        "{findings:?}"
    );
}
