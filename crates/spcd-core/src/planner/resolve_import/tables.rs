//! Decides which of its source's tables a connection gets.

use std::borrow::Cow;

use super::super::{Import, RemoteSchema, merged};
use crate::diff::{self, Blockers, ColumnTypes, Table, TableChange, TableWarning};
use crate::observed::Detail;
use crate::tuning;

/// Decision about a connection's tables.
pub(super) struct TableDecision {
    pub(super) changes: Vec<TableChange>,
    /// The tables that exist after the changes.
    pub(super) after: Vec<Table>,
    /// Warnings about tables left out and changes refused.
    pub(super) warnings: Vec<String>,
    /// Tables of the source that do not exist after the changes.
    pub(super) left_out: Vec<TableWarning>,
    /// Column types that were inferred from the values of files.
    pub(super) types: ColumnTypes,
}

/// Decides about the tables without breaking objects that depend on them.
///
/// # Errors
/// Every table must be created again, and one of them cannot be.
pub(super) fn decide_tables(
    import: &Import,
    detail: &Detail,
    remote: &RemoteSchema,
    blockers: &Blockers,
) -> Result<TableDecision, String> {
    let target = &import.target;
    let mut of_tables = remote.left_out.clone();
    let desired = without_clashes(&remote.tables, detail, &mut of_tables);
    let desired = tuning::tuned_tables(target, detail.existing(target), &desired);
    let (changes, mut refused) = diff::separate_blocked(import.changes(detail, &desired), blockers);
    if let (false, Some((wrapper, _)), [first, ..]) =
        (import.keeps_server(detail), &detail.server, &refused[..])
    {
        let change = match *wrapper == target.wrapper {
            true => "its server changes".to_owned(),
            false => format!("the wrapper changes from {wrapper} to {}", target.wrapper),
        };
        return Err(format!(
            "every table must be created again, since {change}: {}",
            first.text
        ));
    }
    if target.positional {
        // The existing tables were created for an earlier version of the file.
        for warning in &mut refused {
            let harm = "; until then reading it fails or gives wrong values";
            warning.text.push_str(harm);
        }
    }
    of_tables.extend(refused);
    of_tables.extend(diff::import_error_warnings(&detail.tables, &desired));
    let after = diff::tables_after(&detail.tables, &desired, &changes);
    if import.readers && !import.hidden {
        let is_changed = |warning: &TableWarning| {
            let mut changed = changes.iter().map(TableChange::table);
            changed.any(|table| warning.table.as_deref() == Some(table))
        };
        let closed = detail.closed_tables().into_iter();
        of_tables.extend(closed.filter(|warning| !is_changed(warning)));
    }
    let texts = of_tables.iter().map(|warning| &warning.text);
    let warnings = merged(remote.warnings.iter().chain(texts));
    let is_there = |name: &String| after.iter().any(|table| table.name == *name);
    of_tables.retain(|warning| !warning.table.as_ref().is_some_and(is_there));
    Ok(TableDecision {
        types: import.known_types(&after, &desired),
        changes,
        after,
        warnings,
        left_out: of_tables,
    })
}

/// Returns the tables whose names no other relation in the schema has.
fn without_clashes<'a>(
    desired: &'a [Table],
    detail: &Detail,
    warnings: &mut Vec<TableWarning>,
) -> Cow<'a, [Table]> {
    let mut desired = Cow::Borrowed(desired);
    if !detail.others.is_empty() {
        desired.to_mut().retain(|table| {
            let clashes = detail.others.contains(&table.name);
            if clashes {
                let why = "something else in the schema has its name";
                warnings.push(TableWarning::new(&table.name, "is left out", why));
            }
            !clashes
        });
    }
    desired
}
