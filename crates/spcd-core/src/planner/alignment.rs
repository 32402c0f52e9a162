//! Existing and desired tables under the same names.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Import, RemoteSchema};
use crate::diff::{self, Renames};
use crate::observed::Detail;
use crate::sql;

/// Existing objects of a connection and its source's tables, once what is there under another name is
/// renamed.
#[derive(Debug, Clone)]
pub struct Alignment<'a> {
    /// The existing objects, under their new names.
    pub detail: Cow<'a, Detail>,
    /// The source's tables. What cannot be renamed has its present name.
    pub remote: Cow<'a, RemoteSchema>,
    /// The new names.
    pub renames: Renames,
}

impl Import {
    /// Returns which existing tables and columns are renamed, and both sides after that. Adds the tables
    /// that the wrapper skipped. `fixed` are the tables whose renaming the server refuses, with the reason.
    pub fn align<'a>(
        &self,
        detail: &'a Detail,
        remote: &'a RemoteSchema,
        fixed: &BTreeMap<String, String>,
    ) -> Alignment<'a> {
        let target = &self.target;
        let mut remote = remote.with_skipped_tables(&detail.tables, target);
        let mut detail = Cow::Borrowed(detail);
        // Tables of another server are created again.
        if !self.keeps_server(&detail) || detail.tables.is_empty() {
            return Alignment {
                detail,
                remote,
                renames: Renames::default(),
            };
        }
        let owned = detail.other_owners.iter();
        let mut all_fixed: BTreeMap<String, String> = owned
            .map(|(table, other)| (table.clone(), other.reason()))
            .collect();
        all_fixed.extend(fixed.clone());
        let traits = target.wrapper_traits();
        let found = diff::find_renames(&detail.tables, &remote, &detail.others, &all_fixed, traits);
        if let Some(desired) = found.desired {
            remote.to_mut().tables = desired;
        }
        if !found.warnings.is_empty() {
            remote.to_mut().left_out.extend(found.warnings);
        }
        if !found.renames.is_empty() {
            detail.to_mut().rename(&found.renames);
        }
        Alignment {
            detail,
            remote,
            renames: found.renames,
        }
    }

    /// Returns the statements that rename existing tables and columns.
    pub fn rename_statements(&self, connection: &str, renames: &Renames) -> String {
        let applied = self.applied.as_ref();
        let own = self.schema(connection);
        // The schema is renamed later.
        let schema = applied.map_or(own.as_str(), |applied| applied.schema_of(connection));
        sql::rename_tables(schema, renames)
    }
}
