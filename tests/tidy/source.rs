//! The files that the rules read, and the three views of each: its text, its code without comments
//! and literals, and that code without what only tests compile.

use std::fmt;
use std::fs;
use std::path::Path;

/// The top-level folders of the package; each is read whole.
pub(crate) const FOLDERS: [&str; 8] = [
    ".ci", "benches", "docs", "examples", "fuzz", "src", "tests", "tuning",
];

/// Files beside those folders that people write.
const ROOT_FILES: [&str; 4] = [
    "CHANGELOG.md",
    "Cargo.toml",
    "README.md",
    "examples/corelane.toml",
];

/// Folders that tools fill.
const GENERATED: [&str; 4] = ["target", "corpus", "artifacts", "__pycache__"];

/// One file. Lines of all views carry the same numbers.
pub(crate) struct Source {
    /// Relative to the package, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// Comments and the insides of literals are blanks. Empty unless the file is Rust.
    pub(crate) code: String,
    /// `code` without the items behind `#[cfg(test)]` and `#[cfg(loom)]`.
    pub(crate) shipped: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Source {
        let code = if path.ends_with(".rs") {
            blank_literals(text)
        } else {
            String::new()
        };
        let shipped = if is_test_file(path) {
            String::new()
        } else {
            blank_test_items(&code)
        };
        Source {
            path: path.into(),
            text: text.into(),
            code,
            shipped,
        }
    }

    pub(crate) fn is_under(&self, prefixes: &[&str]) -> bool {
        prefixes.iter().any(|prefix| self.path.starts_with(prefix))
    }

    /// `line` counts from 1.
    pub(crate) fn finding(&self, line: usize, what: impl Into<String>) -> Finding {
        Finding {
            path: self.path.clone(),
            line,
            what: what.into(),
        }
    }
}

/// A violation: where it stands, what it is, and what to do instead.
#[derive(Debug)]
pub(crate) struct Finding {
    path: String,
    pub(crate) line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Every text file of the package.
pub(crate) fn tree() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in FOLDERS {
        walk(root, &root.join(folder), &mut found);
    }
    for name in ROOT_FILES {
        let known = found.iter().any(|source| source.path == name);
        if !known && root.join(name).is_file() {
            found.push(read(name));
        }
    }
    found
}

/// A file of the package by its name; empty if it is not there or not text.
pub(crate) fn read(name: &str) -> Source {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    Source::new(name, &fs::read_to_string(path).unwrap_or_default())
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if !GENERATED.iter().any(|generated| name == *generated) {
                walk(root, &path, found);
            }
        } else if let (Ok(text), Ok(relative)) =
            (fs::read_to_string(&path), path.strip_prefix(root))
        {
            found.push(Source::new(&relative.to_string_lossy(), &text));
        }
    }
}

/// Modules that their parent compiles for tests only live in files of these names.
fn is_test_file(path: &str) -> bool {
    let in_src = path.starts_with("src/");
    in_src && (path.ends_with("/tests.rs") || path.contains("/tests/") || path.contains("/loom_"))
}

/// Replaces comments, and what stands inside strings and characters, by blanks; keeps every line
/// break and, for ASCII, every column.
fn blank_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        let blank = |c: &char| if *c == '\n' { '\n' } else { ' ' };
        out.extend(chars[at..end.min(chars.len())].iter().map(blank));
        at = end;
    }
    out
}

/// Where the comment or literal that starts at `at` ends; `at` if none starts there.
fn literal_end(chars: &[char], at: usize) -> usize {
    let next = |ahead: usize| chars.get(at + ahead).copied();
    let in_word = at > 0 && is_word(chars[at - 1]);
    match (chars[at], next(1)) {
        ('/', Some('/')) => find(chars, at, |c| c == '\n'),
        ('/', Some('*')) => block_comment_end(chars, at),
        ('"', _) => quoted_end(chars, at + 1, '"'),
        ('r', Some('"' | '#')) if !in_word || matches!(chars[at - 1], 'b' | 'c') => {
            raw_string_end(chars, at)
        }
        // A lifetime is a quote, a name and no quote; anything else is a character.
        ('\'', Some('\\')) => quoted_end(chars, at + 1, '\''),
        ('\'', Some(_)) if next(2) == Some('\'') => at + 3,
        _ => at,
    }
}

fn find(chars: &[char], from: usize, is_end: impl Fn(char) -> bool) -> usize {
    (from..chars.len())
        .find(|&at| is_end(chars[at]))
        .unwrap_or(chars.len())
}

fn quoted_end(chars: &[char], mut at: usize, quote: char) -> usize {
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn raw_string_end(chars: &[char], start: usize) -> usize {
    let open = find(chars, start + 1, |c| c != '#');
    if chars.get(open) != Some(&'"') {
        return start; // `r#type` is a name
    }
    let hashes = open - start - 1;
    let closes = |at: usize| {
        chars[at] == '"' && chars[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes
    };
    let close = (open + 1..chars.len()).find(|&at| closes(at));
    close.map_or(chars.len(), |at| at + 1 + hashes)
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (at, depth) = (at + 2, depth + 1),
            ('*', Some('/')) => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Blanks each item behind an attribute that only tests or loom's models switch on.
fn blank_test_items(code: &str) -> String {
    const ATTRIBUTE: &str = "#[cfg(";
    let mut out = code.to_owned();
    let mut from = 0;
    while let Some(found) = out[from..].find(ATTRIBUTE) {
        let start = from + found;
        let predicate_start = start + ATTRIBUTE.len();
        let predicate_end = matching(&out, predicate_start);
        from = predicate_start;
        if is_test_only(&out[predicate_start..predicate_end]) {
            let end = item_end(&out, predicate_end + 2); // past `)]`
            let blank: String = out[start..end]
                .chars()
                .map(|c| if c == '\n' { c } else { ' ' })
                .collect();
            // Blanks take one byte each: what follows keeps its line, not its byte.
            out.replace_range(start..end, &blank);
            from = start + blank.len();
        }
    }
    out
}

fn is_test_only(predicate: &str) -> bool {
    let mut predicate = predicate.trim().to_owned();
    while let Some(start) = predicate.find("not(") {
        let end = (matching(&predicate, start + 4) + 1).min(predicate.len());
        predicate.replace_range(start..end, "");
    }
    let mut words = predicate.split(|c: char| !is_word(c));
    !predicate.starts_with("any(") && words.any(|word| word == "test" || word == "loom")
}

/// The byte of the bracket that closes the one before `from`; the end if there is none.
fn matching(code: &str, from: usize) -> usize {
    let mut depth = 1;
    for (at, c) in code.bytes().enumerate().skip(from) {
        depth += i32::from(b"([{".contains(&c)) - i32::from(b")]}".contains(&c));
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

/// The byte after the item that starts at `from`: after its `;` or its braces.
fn item_end(code: &str, from: usize) -> usize {
    let mut depth = 0;
    for (at, c) in code.bytes().enumerate().skip(from) {
        match c {
            b'{' if depth == 0 => return (matching(code, at + 1) + 1).min(code.len()),
            b';' if depth == 0 => return at + 1,
            b'}' if depth == 0 => return at,
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[test]
fn comments_and_literals_are_blank_and_code_is_not() {
    let source = Source::new(
        "src/a.rs",
        "a(\"x \\\" y\"); // x\n/* x /* x */ x */ \
         b('x', '\\'', br#\"x\"x\"#, r\"x\\\"); c::<'x>();\n",
    );
    let xs = source.code.matches('x').count();
    assert_eq!(xs, 1, "only the lifetime is code: {}", source.code);
    for kept in ["a(", "b(", "c::<'x>()"] {
        assert!(source.code.contains(kept), "{kept} in {}", source.code);
    }
    assert_eq!(source.code.lines().count(), 2);
}

#[test]
fn test_items_are_not_shipped_and_their_neighbours_are() {
    let source = Source::new(
        "src/a.rs",
        "before();\n#[cfg(test)]\n#[allow(x)]\nmod tests { fn f([u8; 2]) { é } }\nafter();\n\
         #[cfg(all(loom, not(windows)))]\nuse gone::{a};\n#[cfg(not(test))]\nkept();\n\
         #[cfg(any(test, unix))]\nboth();\n",
    );
    for kept in ["before()", "after()", "kept()", "both()"] {
        assert!(
            source.shipped.contains(kept),
            "{kept} in {}",
            source.shipped
        );
    }
    assert!(!source.shipped.contains("mod tests") && !source.shipped.contains("gone"));
    assert_eq!(source.shipped.lines().count(), source.text.lines().count());
}
