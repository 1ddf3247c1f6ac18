//! House rules that the compiler does not enforce: which room may import which, how long a file may be,
//! that every file has a header, that documents name files that exist.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;

/// What each room of `src/` may import from the others. `ARCHITECTURE.md` shows the same. For the crates,
/// `Cargo.toml` says it and the compiler enforces it.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("metrics", &[]),
    ("store", &["metrics"]),
    ("pool", &[]),
    ("peer", &["pool", "metrics"]),
    ("supply", &["store", "peer", "pool", "metrics"]),
    ("delivery", &["supply", "store"]),
    ("http", &["delivery", "supply", "store", "peer", "pool", "metrics"]),
    ("config", &[]),
    ("telemetry", &["config"]),
    ("self_test", &[]),
    ("app", &["http", "delivery", "supply", "store", "peer", "pool", "config", "self_test", "metrics"]),
    ("cli", &["app", "config", "telemetry", "store", "self_test"]),
    ("main", &["cli"]),
];

/// Every place with Rust of ours.
const TREES: &[&str] = &["src", "crates", "tests", "benches"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | ".git" | "node_modules" | "dqkd-demo") {
                files(&path, ending, found);
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

struct Source {
    /// Relative to the tree.
    name: String,
    /// Without comments and the tests at its end.
    text: String,
    is_test: bool,
}

fn sources(tree: &str) -> Vec<Source> {
    let src = root().join(tree);
    let mut paths = Vec::new();
    files(&src, ".rs", &mut paths);
    assert!(paths.len() > 50, "{tree} was found");
    let source = |path: &PathBuf| {
        let name = path.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
        let whole = std::fs::read_to_string(path).unwrap();
        let code = whole.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let text = code.lines().filter(is_code).collect::<Vec<_>>().join("\n");
        let is_test = name.split(['/', '.']).any(|part| part == "tests" || part == "testing");
        Source { name, text, is_test }
    };
    paths.iter().map(source).collect()
}

fn room_of(name: &str) -> &str {
    name.split(['/', '.']).next().unwrap()
}

#[test]
fn imports_go_one_way() {
    let rules: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    for source in sources("src").iter().filter(|source| !source.is_test && source.name != "lib.rs") {
        let room = room_of(&source.name);
        let allowed = rules.get(room).unwrap_or_else(|| panic!("{room} has no rule in tidy.rs"));
        for prefix in ["crate::", "dqkd::"] {
            for (index, _) in source.text.match_indices(prefix) {
                let rest = &source.text[index + prefix.len()..];
                let used: String =
                    rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let is_fine =
                    used == room || allowed.contains(&used.as_str()) || !rules.contains_key(used.as_str());
                assert!(is_fine, "{}: {room} may not import {used}", source.name);
            }
        }
        assert!(!source.text.contains("use crate::{"), "{}: one `use` for each room", source.name);
    }
}

/// Somebody who has another vendor's KME compiles `qkd014` alone.
#[test]
fn qkd014_needs_no_sql_no_store_and_no_engine() {
    let lock: toml::Table = std::fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    let mut needs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let dependencies = package.get("dependencies").and_then(toml::Value::as_array);
        // A version follows the name where there are several.
        let names = dependencies.into_iter().flatten().map(|name| name.as_str().unwrap());
        let names = names.map(|name| name.split(' ').next().unwrap());
        needs.entry(package["name"].as_str().unwrap()).or_default().extend(names);
    }
    let (mut found, mut waiting) = (HashSet::new(), vec!["qkd014"]);
    while let Some(name) = waiting.pop() {
        if found.insert(name) {
            waiting.extend(&needs[name]);
        }
    }
    assert!(found.contains("mtls") && found.len() > 50, "{found:?}");
    for unwanted in ["sqlx", "sqlx-core", "libsqlite3-sys", "blast", "dqkd"] {
        assert!(needs.contains_key(unwanted), "{unwanted} is not in Cargo.lock");
        assert!(!found.contains(unwanted), "qkd014 needs {unwanted}");
    }
}

#[test]
fn only_the_store_speaks_sql() {
    for source in sources("src").iter().filter(|source| room_of(&source.name) != "store" && !source.is_test) {
        for word in ["sqlx::", "SELECT ", "INSERT INTO", "DELETE FROM"] {
            assert!(!source.text.contains(word), "{}: {word}", source.name);
        }
    }
}

#[test]
fn unsafe_stands_in_two_places_only() {
    let at = |source: &Source| source.text.contains("unsafe {");
    let all = sources("src").into_iter().chain(sources("crates"));
    let mut found: Vec<String> = all.filter(at).map(|source| source.name).collect();
    found.sort();
    assert_eq!(found, ["blast/src/toeplitz/clmul.rs", "pool/locked.rs"]);
}

#[test]
fn every_file_says_what_it_owns_and_none_is_too_long() {
    let mut paths = Vec::new();
    for dir in TREES {
        files(&root().join(dir), ".rs", &mut paths);
    }
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.display();
        let is_unit_test = path.file_name().is_some_and(|name| name == "tests.rs");
        // Or the package's README.
        let has_header = text.starts_with("//! ") || text.starts_with("#![doc = include_str!");
        assert!(has_header || (is_unit_test && !text.is_empty()), "{name} has no header");
        let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = own.lines().count();
        assert!(is_unit_test || lines <= LINES_MAX, "{name} has {lines} lines");
    }
}

#[test]
fn migrations_are_numbered_without_gaps() {
    let mut paths = Vec::new();
    files(&root().join("migrations"), ".sql", &mut paths);
    let mut by_database: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for path in paths {
        let database = path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let number = name.split('_').next().unwrap().parse().unwrap_or_else(|_| panic!("{name}"));
        by_database.entry(database).or_default().push(number);
    }
    assert!(by_database.contains_key("sqlite"));
    for (database, mut numbers) in by_database {
        numbers.sort_unstable();
        let expected: Vec<u32> = (1..).take(numbers.len()).collect();
        assert_eq!(numbers, expected, "{database}");
    }
}

#[test]
fn documents_point_at_files_that_exist() {
    let mut paths = Vec::new();
    files(&root(), ".md", &mut paths);
    let mut links = 0;
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        for part in text.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            assert!(path.parent().unwrap().join(target).exists(), "{}: {target}", path.display());
        }
        assert!(!text.contains("../shared") && !text.contains("/work/"), "{}", path.display());
    }
    assert!(links > 0, "links were found");
}

/// What looks like the name of a test: four words or more.
#[test]
fn tests_that_a_document_names_exist() {
    let mut paths = Vec::new();
    for dir in TREES {
        files(&root().join(dir), ".rs", &mut paths);
    }
    let code: String = paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let documents = ["docs/etsi-014.md", "docs/defects-of-others.md", "docs/threat-model.md"];
    let text = documents.map(|path| std::fs::read_to_string(root().join(path)).unwrap()).join("\n");
    let is_name = |word: &&str| {
        word.matches('_').count() >= 3
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let names: Vec<&str> = text.split('`').filter(is_name).collect();
    assert!(names.len() > 50, "{names:?}");
    for name in names {
        assert!(code.contains(&format!("fn {name}(")), "a document names {name}");
    }
}

/// In the tables of what an actor cannot do, the last column is the test.
#[test]
fn every_statement_of_the_threat_model_names_its_test() {
    let text = std::fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let mut statements = 0;
    for table in text.split("| cannot | because | test |\n|---|---|---|\n").skip(1) {
        for row in table.lines().take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
            assert_eq!(cells.len(), 3, "{row}");
            assert!(cells[2].matches('`').count() >= 2, "no test holds: {row}");
            statements += 1;
        }
    }
    assert!(statements > 40, "{statements}");
}

/// Settings of Postgres that only documents name.
const NAMES_OF_OTHERS: &[&str] = &["idle_session_timeout", "remote_apply"];

/// Names are `snake_case`, `CamelCase` or `a::path`; places start with a folder of the project.
#[test]
fn code_names_in_documents_exist() {
    let mut paths = Vec::new();
    for ending in [".rs", ".toml", ".sql", ".sh", ".py", ".yaml", ".cfg", ".service", "openapi.json"] {
        files(&root(), ending, &mut paths);
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let texts: Vec<String> = paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let words: HashSet<&str> = texts.iter().flat_map(|text| text.split(|c| !is_part(c))).collect();
    let is_known = |word: &str| words.contains(word.strip_suffix("_total").unwrap_or(word)) || word == "std";

    let mut documents = Vec::new();
    files(&root(), ".md", &mut documents);
    let (mut names, mut places) = (0, 0);
    for path in documents {
        let text = std::fs::read_to_string(&path).unwrap();
        // Every other part is inside backticks; blocks of code have three of them.
        let prose = text.split("```").step_by(2);
        for span in prose.flat_map(|part| part.split('`').skip(1).step_by(2)) {
            let at = format!("{}: `{span}`", path.display());
            let name = span.trim_end_matches("()");
            let is_path = name.contains("::") && name.split("::").all(is_word);
            let humps = name.chars().filter(char::is_ascii_uppercase).count();
            let is_camel = name.starts_with(|c: char| c.is_ascii_uppercase())
                && humps >= 2
                && name.chars().all(|c| c.is_ascii_alphanumeric())
                && name.chars().filter(char::is_ascii_lowercase).count() > humps;
            let is_snake = is_word(name) && name.trim_matches('_').contains('_') && humps == 0;
            if is_path || is_camel || is_snake {
                names += 1;
                let is_there = name.split("::").all(is_known) || NAMES_OF_OTHERS.contains(&name);
                assert!(is_there, "{at}: no such name in the code");
            } else if TREES.iter().chain(&["docs", "config", "migrations"]).any(|tree| {
                span.strip_prefix(tree).is_some_and(|rest| rest.starts_with('/'))
                    && span.chars().all(|c| is_part(c) || "/.-".contains(c))
            }) {
                places += 1;
                assert!(root().join(span).exists(), "{at}: no such file or folder");
            }
        }
    }
    assert!(names > 200 && places > 20, "{names} names and {places} places were found");
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[test]
fn nobody_claims_what_cannot_be_claimed() {
    let mut paths = Vec::new();
    files(&root(), ".md", &mut paths);
    for dir in ["src", "crates"] {
        files(&root().join(dir), ".rs", &mut paths);
    }
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap().to_lowercase();
        for word in ["unhackable", "military grade", "quantum-safe", "perfectly secure"] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}
