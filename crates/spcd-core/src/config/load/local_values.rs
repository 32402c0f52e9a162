//! Local values by directory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::config::key::{Key, key};
use spcd_lang::evaluate::Variable;
use spcd_lang::nearest::suggestion;
use spcd_lang::value::Value;

/// Maximum number of names among which a similar one is looked for.
const MAX_CANDIDATES: usize = 50;

/// Local values by directory and name.
#[derive(Default)]
pub(in crate::config) struct Locals(HashMap<String, BTreeMap<Box<str>, Local>>);

/// Local value.
pub(super) enum Local {
    Value(Arc<Value>),
    /// It calls a function, and functions are not evaluated.
    Unknown,
    /// It is in error, at this place.
    Failed(String),
}

impl Locals {
    /// Returns a local value of a directory.
    pub(super) fn variable(&self, directory: &str, name: Option<&str>) -> Variable {
        let Some(name) = name else {
            let hint = "write `local.name`".to_owned();
            return Variable::Missing("`local` itself is not a value".to_owned(), Some(hint));
        };
        let shown: String = name.chars().filter(|c| !c.is_control()).collect();
        let of_directory = self.0.get(directory);
        match of_directory.and_then(|locals| locals.get(name)) {
            Some(Local::Value(value)) => Variable::Known(value.clone()),
            Some(Local::Unknown) => Variable::Unknown,
            Some(Local::Failed(place)) => Variable::Missing(
                format!("`local.{shown}` has no value"),
                Some(format!("correct it at {place}")),
            ),
            None => {
                let names = of_directory.into_iter().flat_map(BTreeMap::keys);
                let near = suggestion(name, names.take(MAX_CANDIDATES).map(|name| &**name));
                let hint = near.unwrap_or_else(|| {
                    "write it in a block `locals { … }` of a file in this directory".to_owned()
                });
                Variable::Missing(format!("there is no local value `{shown}`"), Some(hint))
            }
        }
    }

    /// Returns a key that differs if a value differs.
    pub(super) fn key(&self) -> Key {
        let mut directories: Vec<_> = self.0.iter().collect();
        directories.sort_unstable_by_key(|(directory, _)| *directory);
        let mut parts: Vec<String> = Vec::new();
        for (directory, locals) in directories {
            parts.push(directory.clone());
            for (name, local) in locals {
                let mut text = match local {
                    Local::Value(_) => "= ".to_owned(),
                    Local::Unknown => "unknown".to_owned(),
                    Local::Failed(place) => format!("failed {place}"),
                };
                if let Local::Value(value) = local {
                    value.write_hcl(&mut text, 0);
                }
                parts.push(name.to_string());
                parts.push(text);
            }
        }
        key(parts.iter().map(String::as_str))
    }

    pub(super) fn insert(&mut self, directory: &str, name: &str, local: Local) {
        let of_directory = self.0.entry(directory.to_owned()).or_default();
        of_directory.insert(name.into(), local);
    }
}
