//! The import table: which module of the library may name which.
//!
//! A path counts wherever it stands, in a `use`, a type or a call: `crate::x`, `super::x` as far up
//! as it goes, and every branch of `{…}`. The crate root's re-exports are for users; inside, a path
//! names the module, or the table would say nothing.

use crate::source::{Finding, Source, is_word};

/// From the bottom up: a module, and the modules that it may name beside itself.
///
/// `error` names the wire's plain numbers (a codec, a reason), for a nack is an error; `codec` is
/// chosen by a number of the wire's header; a handler's context lends it the shard's client; a
/// client holds the ports of the shards.
const TABLE: [(&str, &[&str]); 14] = [
    ("error", &["wire"]),
    ("config", &["error"]),
    ("metrics", &["error"]),
    ("placement", &["config", "error"]),
    ("wire", &["error"]),
    ("codec", &["wire", "error"]),
    ("route", &["config", "error"]),
    ("peers", &["wire", "error"]),
    ("events", &["error"]),
    ("engine", &["wire", "config", "error"]),
    ("handler", &["client", "wire", "codec", "config", "error"]),
    (
        "client",
        &[
            "wire", "codec", "route", "peers", "events", "config", "error",
        ],
    ),
    (
        "shard",
        &[
            "error",
            "config",
            "metrics",
            "placement",
            "wire",
            "codec",
            "route",
            "peers",
            "events",
            "engine",
            "handler",
            "client",
        ],
    ),
    (
        "runtime",
        &[
            "error",
            "config",
            "metrics",
            "placement",
            "wire",
            "route",
            "events",
            "engine",
            "handler",
            "client",
            "shard",
        ],
    ),
];

pub(crate) fn check(source: &Source) -> Vec<Finding> {
    let Some(path) = module_path(&source.path) else {
        return Vec::new();
    };
    let Some(own) = path.first() else {
        return Vec::new();
    }; // lib.rs names all modules
    let Some((_, allowed)) = TABLE.iter().find(|(name, _)| name == own) else {
        let what = format!(
            "module `{own}` is not in the import table: add its row, in {}",
            file!()
        );
        return vec![source.finding(1, what)];
    };
    let mut findings = Vec::new();
    for (line, name) in root_names(&source.shipped, path.len()) {
        let what = if name == *own || allowed.contains(&name.as_str()) {
            continue;
        } else if TABLE.iter().any(|(module, _)| *module == name) {
            format!(
                "`{own}` may not import `{name}`, only {allowed:?}: pass it in, or move the code"
            )
        } else {
            format!("`crate::{name}` is no module: name the module that defines it")
        };
        findings.push(source.finding(line, what));
    }
    findings
}

/// `src/a/b.rs` and `src/a/b/mod.rs` are `[a, b]`, `src/lib.rs` is `[]`; no module of the library:
/// `None`.
fn module_path(path: &str) -> Option<Vec<&str>> {
    let inside = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    if inside.starts_with("bin/") {
        return None;
    }
    let mut path: Vec<&str> = inside.split('/').collect();
    if matches!(path.last(), Some(&("mod" | "lib"))) {
        path.pop();
    }
    Some(path)
}

/// Each name that the code looks up in the crate root, with its line. `depth` is how far below the
/// root the file's module lies.
fn root_names(code: &str, depth: usize) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let text = |at: usize| tokens.get(at).map_or("", |token| token.1);
    let mut names = Vec::new();
    let mut braces = 0_usize;
    let mut inline_modules = Vec::new(); // the brace depth inside of each
    let mut at = 0;
    while at < tokens.len() {
        match text(at) {
            "{" => {
                braces += 1;
                if at >= 2 && text(at - 2) == "mod" {
                    inline_modules.push(braces);
                }
            }
            "}" => {
                inline_modules.retain(|inside| *inside < braces);
                braces = braces.saturating_sub(1);
            }
            "crate" if text(at + 1) == "::" => branches(&tokens, at + 2, &mut names),
            "crate" if text(at + 1) == "as" => names.push((tokens[at].0, "as".into())),
            "super" => {
                let mut up = 1;
                while text(at + 1) == "::" && text(at + 2) == "super" {
                    at += 2;
                    up += 1;
                }
                if up >= depth + inline_modules.len() && text(at + 1) == "::" {
                    branches(&tokens, at + 2, &mut names);
                }
            }
            _ => {}
        }
        at += 1;
    }
    names
}

/// The first names of the path, or of each branch of the group, that starts at `at`.
fn branches(tokens: &[(usize, &str)], at: usize, names: &mut Vec<(usize, String)>) {
    let Some(&(line, first)) = tokens.get(at) else {
        return;
    };
    if first != "{" {
        names.push((line, first.into()));
        return;
    }
    let mut depth = 0;
    let mut starts_branch = false;
    for &(line, token) in &tokens[at..] {
        match token {
            "{" => (depth, starts_branch) = (depth + 1, depth == 0),
            "}" if depth == 1 => return,
            "}" => depth -= 1,
            "," => starts_branch = depth == 1,
            _ if starts_branch => {
                names.push((line, token.into()));
                starts_branch = false;
            }
            _ => {}
        }
    }
}

/// Words, `::` and single marks, each with its line.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let length = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                word => word,
            };
            tokens.push((index + 1, &rest[..length]));
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

#[test]
fn a_forbidden_import_is_found_in_every_spelling() {
    for (path, text) in [
        ("src/wire/header.rs", "use crate::engine::Engine;"),
        (
            "src/wire/header.rs",
            "\nuse crate::{\n    error::DecodeError,\n    engine::{Engine, libzmq},\n};",
        ),
        (
            "src/wire/mod.rs",
            "fn f(engine: &dyn super::engine::Engine) {}",
        ),
        (
            "src/wire/zmtp/frame.rs",
            "use super::super::super::{self as root, engine};",
        ),
        ("src/wire/mod.rs", "mod inner { use super::super::engine; }"),
        ("src/codec.rs", "use super::engine::Engine;"),
        ("src/codec.rs", "pub use crate::Client;"),
        ("src/codec.rs", "use crate::*;"),
        ("src/codec.rs", "use crate as root;"),
        (
            "src/error.rs",
            "macro_rules! m { () => { $crate::config::Config } }",
        ),
        ("src/runtime.rs", "use crate::peers::PeerId;"),
        ("src/helpers.rs", "fn unknown_module() {}"),
    ] {
        assert!(
            !check(&Source::new(path, text)).is_empty(),
            "{path}: {text}"
        );
    }
    let text = "use crate::{\n    error::DecodeError,\n    engine::Engine,\n};";
    assert_eq!(check(&Source::new("src/wire/mod.rs", text))[0].line, 3);
}

#[test]
fn what_the_table_allows_is_not_found() {
    for (path, text) in [
        (
            "src/wire/mod.rs",
            "use crate::error::DecodeError; use super::error; use crate::wire::Kind;",
        ),
        (
            "src/wire/zmtp/frame.rs",
            "use super::Limits; use super::super::header; pub(crate) fn f() {}",
        ),
        ("src/wire/mod.rs", "mod inner { use super::engine; }"),
        (
            "src/wire/mod.rs",
            "//! See [`crate::engine`].\nconst NAME: &str = \"crate::engine\";",
        ),
        (
            "src/wire/mod.rs",
            "#[cfg(test)]\nmod tests { use crate::shard::Shard; }",
        ),
        (
            "src/shard/turn.rs",
            "use crate::{client, engine::{Engine, sim}, metrics};",
        ),
        ("src/lib.rs", "pub use crate::runtime::Runtime;"),
        ("src/bin/corelane/main.rs", "use crate::anything;"),
    ] {
        let findings = check(&Source::new(path, text));
        assert!(findings.is_empty(), "{path}: {text}: {findings:?}");
    }
}
