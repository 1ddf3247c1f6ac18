//! Checks of single values: ranges, forms, choices, paths.
//!
//! Collects all complaints with their places, so that an operator sees them at once. Rules that join several settings
//! are in `kme` and `pool_server`.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use kme::{IdError, is_spiffe_segment, is_trust_domain};
use mtls::secret_file;
use toml::Spanned;

use super::duration;
use super::error::Problem;
use super::raw::OneOrMore;
use super::source::{Place, Source};
use super::url::{BASE_URL_FORM, BaseUrl};

/// The place of a value in the file, or where it should be.
#[derive(Clone, Debug)]
pub(super) struct At {
    key: String,
    span: Option<Range<usize>>,
}

impl At {
    pub(super) fn new(key: String, span: Option<Range<usize>>) -> Self {
        Self { key, span }
    }
}

/// A value with its place, for rules that join several values.
#[derive(Clone, Debug)]
pub(super) struct Field<T> {
    pub(super) value: T,
    pub(super) at: At,
}

/// A table of the file, perhaps a missing one.
pub(super) struct Scope {
    name: &'static str,
    span: Option<Range<usize>>,
}

impl Scope {
    /// Splits a table into place and content. A missing table is empty.
    pub(super) fn open<T: Default>(name: &'static str, table: Option<Spanned<T>>) -> (Self, T) {
        let span = table.as_ref().map(Spanned::span);
        (Self { name, span }, table.map(Spanned::into_inner).unwrap_or_default())
    }

    /// The place of `key`: its own if it is written, otherwise that of the table.
    pub(super) fn at<T>(&self, key: &str, written: Option<&Spanned<T>>) -> At {
        At::new(format!("{}.{key}", self.name), written.map(Spanned::span).or_else(|| self.span.clone()))
    }
}

/// A file that the configuration names and the daemon reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    key: String,
    path: PathBuf,
    /// Whether only its owner may read it.
    is_secret: bool,
    place: Option<Place>,
}

/// Checks values and collects complaints.
pub(super) struct Checker<'s> {
    source: &'s Source,
    directory: PathBuf,
    problems: Vec<Problem>,
    references: Vec<Reference>,
}

impl<'s> Checker<'s> {
    /// Relative paths start at `directory`, which is absolute.
    pub(super) fn new(source: &'s Source, directory: PathBuf) -> Self {
        Self { source, directory, problems: Vec::new(), references: Vec::new() }
    }

    /// All complaints and all referenced files.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Reference>) {
        (self.problems, self.references)
    }

    pub(super) fn problem(&mut self, at: &At, what: &str, allowed: &str) {
        self.problems.push(Problem {
            file: self.source.path().to_owned(),
            place: at.span.as_ref().map(|span| self.source.place(span)),
            key: at.key.clone(),
            what: what.to_owned(),
            allowed: allowed.to_owned(),
        });
    }

    /// The value, or a complaint that it is missing.
    pub(super) fn required<T>(
        &mut self,
        scope: &Scope,
        key: &str,
        raw: Option<Spanned<T>>,
        allowed: &str,
    ) -> Option<Field<T>> {
        let at = scope.at(key, raw.as_ref());
        if raw.is_none() {
            self.problem(&at, "is missing", allowed);
        }
        raw.map(|raw| Field { value: raw.into_inner(), at })
    }

    /// A whole number within `range`, or the default.
    pub(super) fn number<N: TryFrom<i64>>(
        &mut self,
        scope: &Scope,
        key: &str,
        raw: Option<Spanned<i64>>,
        default: N,
        range: RangeInclusive<i64>,
    ) -> Field<N> {
        let at = scope.at(key, raw.as_ref());
        let Some(number) = raw.map(Spanned::into_inner) else { return Field { value: default, at } };
        let value = Some(number).filter(|number| range.contains(number)).and_then(|n| N::try_from(n).ok());
        if value.is_none() {
            let allowed = format!("a whole number from {} to {}", range.start(), range.end());
            self.problem(&at, &format!("{number} is out of range"), &allowed);
        }
        Field { value: value.unwrap_or(default), at }
    }

    /// A duration within `range`, or the default.
    pub(super) fn duration(
        &mut self,
        scope: &Scope,
        key: &str,
        raw: Option<Spanned<String>>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Field<Duration> {
        let at = scope.at(key, raw.as_ref());
        let Some(text) = raw.map(Spanned::into_inner) else { return Field { value: default, at } };
        let value = match duration::parse(&text) {
            Some(value) if range.contains(&value) => value,
            Some(_) => {
                let allowed =
                    format!("{} to {}", duration::print(*range.start()), duration::print(*range.end()));
                self.problem(&at, &format!("{text:?} is out of range"), &allowed);
                default
            }
            None => {
                self.problem(&at, &format!("{text:?} is not a duration"), duration::DURATION_FORM);
                default
            }
        };
        Field { value, at }
    }

    /// One of a few words, or the default.
    pub(super) fn choice<T: Copy>(
        &mut self,
        scope: &Scope,
        key: &str,
        raw: Option<&Spanned<String>>,
        default: T,
        choices: &[(&str, T)],
    ) -> T {
        let Some(written) = raw else { return default };
        let word = written.get_ref();
        if let Some((_, value)) = choices.iter().find(|(name, _)| name == word) {
            return *value;
        }
        self.problem(&scope.at(key, raw), &format!("{word:?} is unknown"), &quoted(choices));
        default
    }

    /// An identifier of any kind.
    pub(super) fn id<T: FromStr<Err = IdError>>(
        &mut self,
        scope: &Scope,
        key: &str,
        raw: Option<Spanned<String>>,
    ) -> Option<Field<T>> {
        let form = "text of 1 to 512 bytes without control, format or other invisible characters";
        let field = self.required(scope, key, raw, form)?;
        match field.value.parse() {
            Ok(value) => Some(Field { value, at: field.at }),
            Err(error) => {
                self.problem(&field.at, &format!("is not an ID: {error}"), form);
                None
            }
        }
    }

    /// The ID of a daemon, which must fit the SPIFFE URI of its certificate.
    pub(super) fn daemon_id<T: FromStr<Err = IdError>>(
        &mut self,
        scope: &Scope,
        key: &str,
        raw: Option<Spanned<String>>,
    ) -> Option<Field<T>> {
        let unfit = raw.as_ref().map(Spanned::get_ref).filter(|id| !is_spiffe_segment(id)).cloned();
        let field = self.id(scope, key, raw)?;
        let Some(id) = unfit else { return Some(field) };
        let form = "letters, digits, dots, hyphens and underscores: no certificate can name any other ID";
        self.problem(&field.at, &format!("{id:?} does not fit a SPIFFE URI"), form);
        None
    }

    /// A SPIFFE trust domain.
    pub(super) fn trust_domain(&mut self, scope: &Scope, raw: Option<Spanned<String>>) -> Option<String> {
        let form =
            "1 to 255 lower-case letters, digits, dots, hyphens and underscores, as in \"dqkd.example\"";
        let field = self.required(scope, "trust_domain", raw, form)?;
        if is_trust_domain(&field.value) {
            return Some(field.value);
        }
        self.problem(&field.at, &format!("{:?} is not a trust domain", field.value), form);
        None
    }

    /// Address and port of a listener. A missing one takes the default; without a default, it is a complaint.
    pub(super) fn address(
        &mut self,
        scope: &Scope,
        key: &str,
        raw: Option<Spanned<String>>,
        default: Option<SocketAddr>,
    ) -> Option<Field<SocketAddr>> {
        let form = "ADDRESS:PORT with a numeric address, as in \"0.0.0.0:8443\" or \"[::]:8443\"";
        if let (None, Some(value)) = (&raw, default) {
            return Some(Field { value, at: scope.at::<String>(key, None) });
        }
        let field = self.required(scope, key, raw, form)?;
        let Ok(value) = field.value.parse() else {
            self.problem(&field.at, &format!("{:?} is not an address", field.value), form);
            return None;
        };
        Some(Field { value, at: field.at })
    }

    /// The base URL of another daemon. Complaints do not quote it, because it may contain a password.
    pub(super) fn base_url(&mut self, scope: &Scope, raw: Option<Spanned<String>>) -> Option<Field<BaseUrl>> {
        let field = self.required(scope, "url", raw, BASE_URL_FORM)?;
        let Some(value) = BaseUrl::parse(&field.value) else {
            self.problem(&field.at, "is not the address of a daemon", BASE_URL_FORM);
            return None;
        };
        Some(Field { value, at: field.at })
    }

    /// The base URLs of the replicas of another daemon: one URL, or a list of at least one.
    pub(super) fn base_urls(
        &mut self,
        scope: &Scope,
        raw: Option<Spanned<OneOrMore>>,
    ) -> Option<Vec<Field<BaseUrl>>> {
        let form = format!("{BASE_URL_FORM}; or a list of such");
        let Field { value, at } = self.required(scope, "url", raw, &form)?;
        let texts = match value {
            OneOrMore::One(text) => vec![(text, at.clone())],
            OneOrMore::More(texts) => {
                let placed = |text: Spanned<String>| {
                    let at = scope.at("url", Some(&text));
                    (text.into_inner(), at)
                };
                texts.into_iter().map(placed).collect()
            }
        };
        if texts.is_empty() {
            self.problem(&at, "is empty", &form);
            return None;
        }
        let mut urls = Vec::with_capacity(texts.len());
        for (text, at) in texts {
            match BaseUrl::parse(&text) {
                Some(value) => urls.push(Field { value, at }),
                None => self.problem(&at, "is not the address of a daemon", BASE_URL_FORM),
            }
        }
        (!urls.is_empty()).then_some(urls)
    }

    /// The absolute path. A relative one starts at the directory of the configuration file.
    pub(super) fn absolute(&mut self, at: &At, text: &str) -> Option<PathBuf> {
        if text.is_empty() || text.contains('\0') {
            self.problem(at, "is not a path", "a path, absolute or relative to this configuration file");
            return None;
        }
        // Drops `.` components, so that messages show the path as an operator would type it.
        Some(self.directory.join(text).components().collect())
    }

    /// A file that must exist when the daemon starts.
    pub(super) fn file(&mut self, field: Field<String>) -> Option<PathBuf> {
        self.reference(field, false)
    }

    /// Likewise, and only its owner may read it.
    pub(super) fn secret_file(&mut self, field: Field<String>) -> Option<PathBuf> {
        self.reference(field, true)
    }

    fn reference(&mut self, field: Field<String>, is_secret: bool) -> Option<PathBuf> {
        let path = self.absolute(&field.at, &field.value)?;
        let place = field.at.span.as_ref().map(|span| self.source.place(span));
        self.references.push(Reference { key: field.at.key, path: path.clone(), is_secret, place });
        Some(path)
    }

    /// Complains if two listeners would use the same port.
    pub(super) fn distinct_listeners(&mut self, listeners: &[Option<Field<SocketAddr>>]) {
        let listeners: Vec<_> = listeners.iter().flatten().collect();
        for (index, later) in listeners.iter().enumerate() {
            let clash = listeners.iter().take(index).find(|earlier| collide(earlier.value, later.value));
            if let Some(earlier) = clash {
                let what = format!("{} collides with {}", later.value, earlier.at.key);
                self.problem(&later.at, &what, "an address and port of its own");
            }
        }
    }

    /// Complains about every value that occurred before.
    pub(super) fn distinct<T: PartialEq + std::fmt::Display>(&mut self, fields: &[Field<T>], why: &str) {
        for (index, later) in fields.iter().enumerate() {
            if fields.iter().take(index).any(|earlier| earlier.value == later.value) {
                self.problem(&later.at, &format!("{} occurs twice", later.value), why);
            }
        }
    }
}

/// Port 0 is any free port and never collides. An unspecified address takes the port on every address.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// The words of `choices`, quoted, for a message.
pub(super) fn quoted<T>(choices: &[(&str, T)]) -> String {
    choices.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// Complaints about referenced files that are missing, unreadable or directories, and about secrets that others can
/// read.
pub(super) fn unusable_files(file: &Path, references: &[Reference]) -> Vec<Problem> {
    references
        .iter()
        .filter_map(|reference| {
            let allowed = if reference.is_secret {
                "a file that this user alone may read"
            } else {
                "a file that this user may read"
            };
            let what = match std::fs::File::open(&reference.path).and_then(|open| open.metadata()) {
                Ok(metadata) if metadata.is_dir() => "is a directory".to_owned(),
                Ok(metadata) if reference.is_secret => {
                    let content = || std::fs::read(&reference.path).unwrap_or_default();
                    secret_file::check(&reference.path, &metadata, content).err()?
                }
                Ok(_) => return None,
                Err(error) => format!("cannot be read: {error}"),
            };
            Some(Problem {
                file: file.to_owned(),
                place: reference.place.clone(),
                key: reference.key.clone(),
                what: format!("{} {what}", reference.path.display()),
                allowed: allowed.to_owned(),
            })
        })
        .collect()
}
