//! Environment overrides: `DQKD__SECTION__KEY=value` replaces one key of one table.
//!
//! Merges them into the parsed document before it gets types, so that both are checked alike. Only
//! [`process_environment`] reads the environment of the process.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::checker::{At, Checker};
use super::raw::{Kind, Schema};
use super::source::{ENV_PREFIX, Source};

/// The overrides in the environment of this process. What is not UTF-8 becomes a replacement character, which is refused
/// later.
pub fn process_environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .filter(|(name, _)| name.starts_with(ENV_PREFIX))
        .collect()
}

/// Puts every override into `document`. Complaints about unknown names and wrong values go to `checker`.
pub(super) fn merge<'s>(
    document: &mut DeTable<'s>,
    source: &'s Source,
    schema: &Schema,
    checker: &mut Checker<'_>,
) {
    for (name, name_span, text, value_span) in source.overrides() {
        let Some((section, key, kind)) = target(name, &name_span, schema, checker) else { continue };
        let at = At::new(format!("{section}.{key}"), Some(value_span.clone()));
        if text.contains('\u{fffd}') {
            checker.problem(&at, "is not valid UTF-8", "UTF-8 text");
            continue;
        }
        let Some(value) = typed(text, &value_span, kind) else {
            let allowed = match kind {
                Kind::Integer => "a whole number",
                Kind::Boolean => "true or false",
                Kind::Text | Kind::TextList => "text",
            };
            checker.problem(&at, "has the wrong type", allowed);
            continue;
        };
        match table_at(document, section, &name_span) {
            Ok(table) => {
                table.remove(key);
                table.insert(Spanned::new(name_span, Cow::Borrowed(key)), Spanned::new(value_span, value));
            }
            Err(at) => {
                checker.problem(&At::new(section.to_owned(), Some(at)), "is not a table", "a table");
            }
        }
    }
}

/// The table `section`, made if it is missing. `Err` is the place of what is there instead.
fn table_at<'d, 's>(
    document: &'d mut DeTable<'s>,
    section: &'static str,
    span: &Range<usize>,
) -> Result<&'d mut DeTable<'s>, Range<usize>> {
    let mut table = document;
    for name in section.split('.') {
        let value = table
            .entry(Spanned::new(span.clone(), Cow::Borrowed(name)))
            .or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
        let at = value.span();
        match value.get_mut() {
            DeValue::Table(inner) => table = inner,
            _ => return Err(at),
        }
    }
    Ok(table)
}

/// The section and key that `name` overrides.
fn target(
    name: &str,
    span: &Range<usize>,
    schema: &Schema,
    checker: &mut Checker<'_>,
) -> Option<(&'static str, &'static str, Kind)> {
    let at = At::new(String::new(), Some(span.clone()));
    let rest = name.strip_prefix(ENV_PREFIX)?;
    let wanted_section = rest.split_once("__").map_or(rest, |(section, _)| section);
    if let Some((array, _)) = schema.arrays.iter().find(|(array, _)| same(array, wanted_section)) {
        checker.problem(
            &at,
            &format!("[[{array}]] is a list of tables, which the environment cannot override; edit the file"),
            "",
        );
        return None;
    }
    // The longest name that fits: LIMITS__SAE is a section too.
    let named = |table: &str| {
        let after = rest.strip_prefix(&variable(table))?;
        if after.is_empty() { Some("") } else { after.strip_prefix("__") }
    };
    let fitting = schema.tables.iter().filter(|(table, _)| named(table).is_some());
    let Some((section, fields)) = fitting.max_by_key(|(table, _)| table.len()) else {
        let allowed: Vec<_> =
            schema.tables.iter().map(|(table, _)| format!("{ENV_PREFIX}{}__KEY", variable(table))).collect();
        checker.problem(&at, "names no section", &allowed.join(", "));
        return None;
    };
    let found = named(section).and_then(|key| fields.iter().find(|(field, _)| same(field, key)));
    let Some((key, kind)) = found else {
        let prefix = variable(section);
        let allowed: Vec<_> = fields
            .iter()
            .map(|(field, _)| format!("{ENV_PREFIX}{prefix}__{}", field.to_uppercase()))
            .collect();
        checker.problem(&at, &format!("names no key of [{section}]"), &allowed.join(", "));
        return None;
    };
    Some((section, key, *kind))
}

/// A section as variables name it.
fn variable(section: &str) -> String {
    section.to_uppercase().replace('.', "__")
}

/// Whether the upper-case `written` is the variable form of `name`.
fn same(name: &str, written: &str) -> bool {
    name.to_uppercase() == written
}

/// The text as the type of the key; `None` if it does not fit.
fn typed<'s>(text: &'s str, span: &Range<usize>, kind: Kind) -> Option<DeValue<'s>> {
    match kind {
        Kind::Text => Some(DeValue::String(Cow::Borrowed(unquoted(text)))),
        Kind::Boolean => match text.trim() {
            "true" => Some(DeValue::Boolean(true)),
            "false" => Some(DeValue::Boolean(false)),
            _ => None,
        },
        Kind::Integer => {
            let value = DeValue::parse(text.trim()).ok()?.into_inner();
            value.is_integer().then_some(value)
        }
        Kind::TextList => {
            let inner = text.trim();
            let inner = inner.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(inner);
            let items = inner.split(',').map(|item| {
                Spanned::new(span.clone(), DeValue::String(Cow::Borrowed(unquoted(item.trim()))))
            });
            let mut array = toml::de::DeArray::new();
            items.for_each(|item| array.push(item));
            Some(DeValue::Array(array))
        }
    }
}

/// Accepts TOML quotes around the value, because people copy values from the file.
fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text)
}
