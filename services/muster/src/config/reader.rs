//! How sections declare their keys, and how keys are read.
//!
//! Reading and declaring are one: a section reads its keys one after another, and what it says of
//! each on the way is the reference of the configuration. So neither can lack a key of the other.

use std::collections::BTreeMap;

use super::kinds::Kind;
use super::tree::{Finding, Path, Place, Tree, Value};

/// What a key does in this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It works.
    Works,
    /// It will work; until then it is taken, with a warning.
    NotYet,
    /// It never will, for this reason; it is taken, with a warning.
    Never(&'static str),
}

/// What a section declared of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) path: Path,
    /// The kind of its value.
    pub(super) what: String,
    /// In Markdown.
    pub(super) default: String,
    pub(super) effect: Effect,
    /// The values that are refused until they work.
    pub(super) refused: Option<&'static str>,
    pub(super) about: &'static str,
}

/// Reads a tree, and gathers what there is to tell.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) tree: Tree,
    pub(super) declared: Vec<Declared>,
    /// Where each key stands that was given.
    pub(super) places: BTreeMap<String, Place>,
    pub(super) problems: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
    pub(super) refusals: Vec<Finding>,
}

/// A section that is being read.
#[derive(Debug)]
pub(super) struct Section<'a> {
    pub(super) reader: &'a mut Reader,
    path: Path,
    /// The effect of all its keys, where they share one that the section itself has told of.
    effect: Option<Effect>,
}

impl<'a> Section<'a> {
    pub(super) fn root(reader: &'a mut Reader) -> Self {
        Self { reader, path: Path::new(), effect: None }
    }

    fn path_of(&self, key: &str) -> Path {
        self.path.iter().cloned().chain([key.to_owned()]).collect()
    }

    /// A section whose keys are all commented out is none. A variable that says so would hide the
    /// section of the file.
    fn check_empty(&mut self, place: &Place, path: &Path) {
        if matches!(place, Place::Variable(_)) {
            self.reader.problems.push(Finding::new(
                place,
                path,
                "has no value: give it one, or leave it out",
            ));
        }
    }

    fn warn(&mut self, place: &Place, path: &Path, effect: Effect) {
        let what = match effect {
            Effect::Works => return,
            Effect::NotYet => "has no effect yet".to_owned(),
            Effect::Never(why) => format!("is ignored: {why}"),
        };
        if self.effect.is_none() {
            self.reader.warnings.push(Finding::new(place, path, what));
        }
    }
}

/// Something that a section has under a key.
pub(super) trait Item<T> {
    fn read(self, at: &mut Section<'_>, key: &str, about: &'static str) -> T;
}

/// Why a value that is well formed is refused, if it is.
pub(super) type Refuse<T> = fn(&T) -> Option<String>;

/// A key with a value.
pub(super) struct Key<T> {
    kind: Kind<T>,
    default: T,
    shown: Option<&'static str>,
    effect: Effect,
    refuse: Option<(&'static str, Refuse<T>)>,
}

/// A key of this kind; the default is what counts where it is not given.
pub(super) fn key<T>(kind: Kind<T>, default: T) -> Key<T> {
    Key { kind, default, shown: None, effect: Effect::Works, refuse: None }
}

/// A key of this kind that may be left out.
pub(super) fn optional<T: 'static>(kind: Kind<T>) -> Key<Option<T>> {
    key(kind.optional(), None)
}

impl<T> Key<T> {
    /// Declares that the key has no effect yet.
    pub(super) fn without_effect(self) -> Self {
        Self { effect: Effect::NotYet, ..self }
    }

    /// Declares that the key is taken and never has an effect.
    pub(super) fn ignored(self, why: &'static str) -> Self {
        Self { effect: Effect::Never(why), ..self }
    }

    /// Declares values that are well formed and must not be started with. They go into the
    /// reference as `which`.
    pub(super) fn refuse(self, which: &'static str, refuse: Refuse<T>) -> Self {
        Self { refuse: Some((which, refuse)), ..self }
    }

    /// Says in the reference what counts where the key is not given.
    pub(super) fn shown(self, default: &'static str) -> Self {
        Self { shown: Some(default), ..self }
    }
}

impl<T> Item<T> for Key<T> {
    fn read(self, at: &mut Section<'_>, key: &str, about: &'static str) -> T {
        let path = at.path_of(key);
        let effect = at.effect.unwrap_or(self.effect);
        at.reader.declared.push(Declared {
            path: path.clone(),
            what: self.kind.short.clone(),
            default: self.shown.map_or_else(|| code(&(self.kind.show)(&self.default)), str::to_owned),
            effect,
            refused: self.refuse.map(|(which, _)| which),
            about,
        });
        let Some(entry) = at.reader.tree.take(&path) else { return self.default };
        at.reader.tree.remove(&path);
        at.warn(&entry.place, &path, effect);
        let given = entry.given;
        at.reader.places.insert(path.join("."), given.place.clone());
        if matches!(given.value, Value::Empty) {
            let what = "has no value: give it one, or remove the key";
            at.reader.problems.push(Finding::new(&entry.place, &path, what));
            return self.default;
        }
        match (self.kind.parse)(&given) {
            Ok(value) => {
                if let Some(why) = self.refuse.and_then(|(_, refuse)| refuse(&value)) {
                    at.reader.refusals.push(Finding::new(&given.place, &path, why));
                }
                value
            }
            Err(hint) => {
                let not = if self.kind.secret { String::new() } else { format!(", not {}", given.shown()) };
                let hint = if hint.is_empty() { hint } else { format!(": {hint}") };
                let what = format!("must be {}{not}{hint}", self.kind.what);
                at.reader.problems.push(Finding::new(&given.place, &path, what));
                self.default
            }
        }
    }
}

/// A text as code in Markdown.
fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

/// A section within a section.
pub(super) struct Nested<T> {
    read: fn(&mut Section<'_>) -> T,
    effect: Option<Effect>,
}

/// A section with these keys.
pub(super) fn nested<T>(read: fn(&mut Section<'_>) -> T) -> Nested<T> {
    Nested { read, effect: None }
}

impl<T> Nested<T> {
    /// Declares that no key of the section has an effect yet; one warning tells of all.
    pub(super) fn without_effect(self) -> Self {
        Self { effect: Some(Effect::NotYet), ..self }
    }
}

impl<T> Item<T> for Nested<T> {
    fn read(self, at: &mut Section<'_>, key: &str, _about: &'static str) -> T {
        let path = at.path_of(key);
        if let Some(entry) = at.reader.tree.take(&path) {
            match entry.given.value {
                Value::Empty => at.check_empty(&entry.place, &path),
                Value::Mapping => {
                    at.reader.places.insert(path.join("."), entry.place.clone());
                    at.warn(&entry.place, &path, self.effect.unwrap_or(Effect::Works));
                }
                Value::Scalar(_) | Value::List(_) => {
                    let what = "is a section: its keys go on lines of their own under it, indented";
                    at.reader.problems.push(Finding::new(&entry.given.place, &path, what));
                }
            }
        }
        let mut within = Section { reader: at.reader, path, effect: self.effect.or(at.effect) };
        (self.read)(&mut within)
    }
}

/// A part of the configuration that is known by name and not read yet: any value is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// Whether it was given.
    pub given: bool,
}

/// A key under which anything is taken, and has no effect yet.
pub(super) struct Anything;

/// Anything, and it has no effect yet.
pub(super) fn anything() -> Anything {
    Anything
}

impl Item<Reserved> for Anything {
    fn read(self, at: &mut Section<'_>, key: &str, about: &'static str) -> Reserved {
        let path = at.path_of(key);
        at.reader.declared.push(Declared {
            path: path.clone(),
            what: "anything".to_owned(),
            default: String::new(),
            effect: Effect::NotYet,
            refused: None,
            about,
        });
        let Some(entry) = at.reader.tree.take(&path) else { return Reserved { given: false } };
        at.reader.tree.remove(&path);
        if matches!(entry.given.value, Value::Empty) {
            at.check_empty(&entry.place, &path);
            return Reserved { given: false };
        }
        at.warn(&entry.place, &path, Effect::NotYet);
        Reserved { given: true }
    }
}

/// A field that no key fills.
pub(super) struct Unread;

impl<T: Default> Item<T> for Unread {
    fn read(self, _at: &mut Section<'_>, _key: &str, _about: &'static str) -> T {
        T::default()
    }
}

/// A struct whose fields are the keys of a section. A field's doc comment is its text in the
/// reference; `as` names the key where Rust reserves the word.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident {
            $($(#[doc = $help:literal])+ $field:ident $(as $key:literal)?: $type:ty = $item:expr;)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $($(#[doc = $help])+ pub $field: $type,)+
        }

        impl $name {
            pub(in $crate::config) fn read(at: &mut $crate::config::reader::Section<'_>) -> Self {
                Self {
                    $($field: $crate::config::reader::Item::read(
                        $item,
                        at,
                        [$($key,)? stringify!($field)][0],
                        concat!($($help),+),
                    ),)+
                }
            }
        }
    };
}
pub(super) use section;
