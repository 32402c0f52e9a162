//! Tables of a source, and the notices of its wrapper. A table that the wrapper skipped is not a
//! table that the source lost.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Deref;

use crate::diff::{Table, TableWarning};
use crate::model::ForeignSource;

/// Result of importing a source's schema.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteSchema {
    /// Tables, normalized.
    pub tables: Vec<Table>,
    /// Warnings that are about no table in particular.
    pub warnings: Vec<String>,
    /// Tables that are not imported, with the warnings about them.
    pub left_out: Vec<TableWarning>,
    /// Notices of the server during the import.
    pub notices: Vec<ImportNotice>,
    /// Extensions that both the source and the hub have, in byte order; `None` if it is not known.
    pub extensions: Option<Vec<String>>,
    /// Error of the privilege check, for the log. A warning reports it too.
    pub failed_check: Option<String>,
}

impl From<Vec<Table>> for RemoteSchema {
    fn from(tables: Vec<Table>) -> Self {
        Self {
            tables,
            ..Self::default()
        }
    }
}

impl Deref for RemoteSchema {
    type Target = [Table];

    fn deref(&self) -> &[Table] {
        &self.tables
    }
}

/// A warning or notice that the server sent during an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportNotice {
    /// Message, detail and hint on one line.
    pub text: String,
    /// Names in quotation marks: those of the message, else those of the detail.
    pub names: Vec<String>,
    /// Whether its severity is WARNING. A NOTICE counts only if it names a missing table.
    pub is_warning: bool,
}

/// Table options that hold the name in the source.
const REMOTE_NAMES: [&str; 5] = ["table_name", "table", "layer", "object", "collection"];

impl ImportNotice {
    /// Returns whether it names a table, by its name on the hub or in the source. If the text has
    /// no quotation marks, each word may be a name.
    fn is_about(&self, table: &Table) -> bool {
        let remote = REMOTE_NAMES.iter();
        let remote = remote.filter_map(|option| table.options.get(*option));
        let mut names = std::iter::once(&table.name).chain(remote);
        match self.names.is_empty() {
            false => names.any(|name| self.names.contains(name)),
            true => self.is_warning && names.any(|name| has_word(&self.text, name)),
        }
    }
}

impl RemoteSchema {
    /// Records that the privilege check failed.
    pub fn privileges_are_unknown(&mut self, error: &str) {
        self.warnings.push(format!(
            "it is not known whether the source's role may read the tables: {error}"
        ));
        self.failed_check = Some(error.to_owned());
    }

    /// Adds each table that the wrapper skipped as one that cannot be imported, with the wrapper's
    /// reason. `there` are the tables that were imported before. Tables that the block `import`
    /// excludes are left out of both.
    pub fn with_skipped_tables(&self, there: &[Table], source: &ForeignSource) -> Cow<'_, Self> {
        if self.notices.is_empty() {
            return Cow::Borrowed(self);
        }
        let (import, option) = (&source.import, source.table_name_option.as_deref());
        let mut remote = self.clone();
        let mut known: BTreeSet<String> = (remote.tables.iter())
            .map(|table| table.remote_name(option).to_owned())
            .collect();
        for notice in std::mem::take(&mut remote.notices) {
            let missing = |table: &&Table| {
                let name = table.remote_name(option);
                !known.contains(name) && notice.is_about(table) && import.selects(name)
            };
            let skipped: Vec<Table> = (there.iter().filter(missing))
                .map(|table| Table {
                    name: table.name.clone(),
                    options: table.options.clone(),
                    import_error: Some(notice.text.clone()),
                    ..Table::default()
                })
                .collect();
            if skipped.is_empty() && notice.is_warning {
                let warning = format!("the wrapper warns: {}", notice.text);
                let is_of_others =
                    |name: &String| has_import_error(&remote, name) || !import.selects(name);
                let is_of_unimported =
                    !notice.names.is_empty() && notice.names.iter().all(is_of_others);
                if !is_of_unimported && !remote.warnings.contains(&warning) {
                    // Only the wrapper knows which of the names is a table's.
                    let of_table = |name: &String| TableWarning {
                        table: Some(name.clone()),
                        text: warning.clone(),
                    };
                    remote.left_out.extend(notice.names.iter().map(of_table));
                    remote.warnings.push(warning);
                }
            }
            for table in skipped {
                known.insert(table.remote_name(option).to_owned());
                remote.tables.push(table);
            }
        }
        remote.tables.sort_by(|a, b| a.name.cmp(&b.name));
        Cow::Owned(remote)
    }
}

fn has_import_error(remote: &RemoteSchema, name: &str) -> bool {
    let mut tables = remote.tables.iter();
    tables.any(|table| table.name == name && table.import_error.is_some())
}

fn has_word(text: &str, word: &str) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    !word.is_empty()
        && text.match_indices(word).any(|(at, _)| {
            let before = text[..at].chars().next_back();
            let after = text[at + word.len()..].chars().next();
            !before.is_some_and(in_word) && !after.is_some_and(in_word)
        })
}

/// Returns the texts in quotation marks, in order, in any language of the server.
pub fn quoted_names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some((at, open)) = rest.char_indices().find(|(_, c)| closing(*c).is_some()) {
        let inside = &rest[at + open.len_utf8()..];
        let Some(end) = inside.find(|c| Some(c) == closing(open)) else {
            break;
        };
        let name = inside[..end].trim();
        if !name.is_empty() {
            names.push(name.to_owned());
        }
        rest = &inside[end..];
        rest = &rest[rest.chars().next().map_or(0, char::len_utf8)..];
    }
    names
}

/// Returns the closing mark of an opening one.
fn closing(open: char) -> Option<char> {
    Some(match open {
        '"' => '"',
        '`' => '`',
        '«' => '»',
        '„' => '“',
        '“' => '”',
        '「' => '」',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::Column;
    use crate::model::Import;

    fn table(name: &str) -> Table {
        Table {
            name: name.into(),
            columns: vec![Column {
                name: "id".into(),
                data_type: "integer".into(),
                ..Column::default()
            }],
            ..Table::default()
        }
    }

    fn warning(text: &str) -> ImportNotice {
        ImportNotice {
            text: text.into(),
            names: quoted_names(text),
            is_warning: true,
        }
    }

    fn remote(tables: &[&str], notices: &[ImportNotice]) -> RemoteSchema {
        RemoteSchema {
            tables: tables.iter().map(|name| table(name)).collect(),
            notices: notices.to_vec(),
            ..RemoteSchema::default()
        }
    }

    /// The tables that cannot be imported, and the warnings.
    fn result(remote: &RemoteSchema, there: &[Table]) -> (Vec<String>, Vec<String>) {
        let result = remote.with_skipped_tables(there, &ForeignSource::default());
        let failed = result
            .tables
            .iter()
            .filter(|table| table.import_error.is_some());
        (
            failed.map(|table| table.name.clone()).collect(),
            result.warnings.clone(),
        )
    }

    #[test]
    fn a_table_that_the_wrapper_skips_is_not_lost() {
        let skipped = warning("skipping import for relation \"t\"");
        let there = [table("gone"), table("good"), table("t")];
        let (failed, warnings) = result(&remote(&["good"], std::slice::from_ref(&skipped)), &there);
        assert_eq!((failed, warnings), (vec!["t".to_owned()], vec![]));
        // Where it was never there, only the wrapper knows that it is a table.
        let (failed, warnings) = result(&remote(&["good"], &[skipped]), &[]);
        assert_eq!(failed, Vec::<String>::new());
        assert_eq!(
            warnings,
            ["the wrapper warns: skipping import for relation \"t\""]
        );
    }

    #[test]
    fn a_table_that_is_not_selected_goes_though_it_is_skipped() {
        let skipped = warning("skipping import for relation \"t\"");
        let import = Import {
            exclude: vec!["t".into()],
            ..Import::default()
        };
        let source = ForeignSource {
            import,
            ..ForeignSource::default()
        };
        let remote = remote(&["good"], &[skipped]);
        let result = remote.with_skipped_tables(&[table("good"), table("t")], &source);
        assert_eq!(result.tables.len(), 1);
        assert_eq!(result.warnings, Vec::<String>::new());
    }

    #[test]
    fn the_name_in_the_source_counts_too() {
        let mut mixed = table("mixed_case");
        let layer = ("layer".to_owned(), "Mixed Case".to_owned());
        mixed.options = [layer].into();
        let skipped = warning("cannot read layer \"Mixed Case\"");
        assert_eq!(result(&remote(&[], &[skipped]), &[mixed]).0, ["mixed_case"]);
        let there = [table("t"), table("table")];
        let bare = warning("skipping t: no columns");
        assert_eq!(result(&remote(&[], &[bare]), &there).0, ["t"]);
    }

    #[test]
    fn what_is_about_no_missing_table_is_only_told() {
        let about = [
            warning("column \"id\" loses digits"),
            warning("the source is read-only"),
            ImportNotice {
                is_warning: false,
                ..warning("made \"good\"")
            },
        ];
        let (failed, warnings) = result(&remote(&["good"], &about), &[table("good")]);
        assert_eq!(failed, Vec::<String>::new());
        assert_eq!(
            warnings,
            [
                "the wrapper warns: column \"id\" loses digits",
                "the wrapper warns: the source is read-only"
            ]
        );
    }

    #[test]
    fn names_are_found_in_the_marks_of_any_language() {
        assert_eq!(
            quoted_names("relation « t » and \"u v\", „w“"),
            ["t", "u v", "w"]
        );
        assert_eq!(quoted_names("nothing, or \"open"), Vec::<String>::new());
    }
}
