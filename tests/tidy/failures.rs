//! `docs/failures.md`: every failure has a test, and every test that it names is there.

use crate::source::{Finding, Source};

/// Each row of a table names its failure first, and last the tests that inject it: paths with `::`
/// and the function.
pub(crate) fn check(page: &Source, tree: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, cells) in rows(&page.text) {
        let named = cells.last().map_or("", |cell| cell.trim());
        let tests: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        if cells.len() != 3 || tests.is_empty() {
            let what = "a row takes a failure, what becomes of it, and the tests that inject it";
            findings.push(page.finding(line, what));
        }
        for test in tests.into_iter().filter(|test| !is_there(test, tree)) {
            let what = format!("no test `{test}`: name the one that injects this failure");
            findings.push(page.finding(line, what));
        }
    }
    findings
}

/// The rows of all tables of failures, without their heads and rules.
fn rows(text: &str) -> impl Iterator<Item = (usize, Vec<&str>)> {
    let mut is_in_table = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_head = line.starts_with("| failure |");
        is_in_table = is_head || is_in_table && line.starts_with('|');
        let row = line.strip_prefix('|')?.strip_suffix('|')?;
        // The rule below the head has no words.
        let is_row = is_in_table && !is_head && row.contains(char::is_alphabetic);
        let row = Some(row).filter(|_| is_row)?;
        Some((index + 1, row.split('|').collect()))
    })
}

/// A function of that name that its file, or the list of a suite, makes a test.
fn is_there(test: &str, tree: &[Source]) -> bool {
    let Some((path, function)) = test.split_once("::") else {
        return false;
    };
    let file = tree.iter().find(|source| source.path == path);
    file.is_some_and(|file| {
        let head = format!("fn {function}(");
        let Some(at) = file.code.find(&head) else {
            return false;
        };
        let above = file.code[..at].rsplit('\n').nth(1);
        let is_own = above.is_some_and(|line| line.trim() == "#[test]");
        is_own || is_listed(function, path, tree)
    })
}

/// In the suite of all engines: `tests/embedding/x.rs` is listed in `tests/embedding.rs`.
fn is_listed(function: &str, path: &str, tree: &[Source]) -> bool {
    let Some((folder, _)) = path.rsplit_once('/') else {
        return false;
    };
    let suite = tree
        .iter()
        .find(|source| source.path == format!("{folder}.rs"));
    suite.is_some_and(|suite| {
        let mut lines = suite.code.lines();
        lines.any(|line| line.trim().trim_end_matches(';') == function)
    })
}

#[test]
fn a_row_without_a_test_and_a_test_that_is_not_there_are_found() {
    let tree = [
        Source::new("tests/a.rs", "#[test]\nfn one() {}\nfn helper() {}\n"),
        Source::new("tests/suite.rs", "cases! {\n    two;\n}\n"),
        Source::new("tests/suite/b.rs", "pub(crate) fn two(setup: &Setup) {}\n"),
    ];
    let lines = |row: &str| {
        let page = format!("| failure | what | by |\n|---|---|---|\n{row}\n");
        let findings = check(&Source::new("docs/failures.md", &page), &tree);
        findings.iter().map(|it| it.line).collect::<Vec<_>>()
    };
    assert!(lines("| a | b | `tests/a.rs::one`, `tests/suite/b.rs::two` |").is_empty());
    for row in [
        "| a | b | none yet |",
        "| a | `tests/a.rs::one` |",
        "| a | b | `tests/a.rs::gone` |",
        "| a | b | `tests/a.rs::helper` |",
        "| a | b | `tests/gone.rs::one` |",
        "| a | b | `tests/a.rs` |",
    ] {
        assert_eq!(lines(row), [3], "{row}");
    }
}
