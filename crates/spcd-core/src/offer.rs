//! What a source has, and what its wrapper said during the import: a table that it skips is not a
//! table that the source lost.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Deref;

use crate::model::Import;
use crate::shape::Table;

/// What a source has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Its tables, normalized.
    pub tables: Vec<Table>,
    /// What of it is no table here, and why.
    pub warnings: Vec<String>,
    /// What the server said while it was imported.
    pub notices: Vec<Notice>,
}

impl From<Vec<Table>> for Offer {
    fn from(tables: Vec<Table>) -> Self {
        Self {
            tables,
            ..Self::default()
        }
    }
}

impl Deref for Offer {
    type Target = [Table];

    fn deref(&self) -> &[Table] {
        &self.tables
    }
}

/// A warning or notice that the server sent during an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Message, detail and hint on one line.
    pub text: String,
    /// The names in quotation marks: those of the message, else those of the detail.
    pub names: Vec<String>,
    /// Its severity is WARNING. A notice counts only where it names a table that is missing.
    pub is_warning: bool,
}

/// Options by which wrappers name a table of the source.
const REMOTE_NAMES: [&str; 5] = ["table_name", "table", "layer", "object", "collection"];

impl Notice {
    /// Whether it names a table, by the name it has here or by that in the source. Without any
    /// quotation mark each word may be a name.
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

impl Offer {
    /// The offer in which each table that the wrapper skipped is one that cannot be imported, for
    /// the reason that the wrapper gives. `there` are the tables that were imported before; what the
    /// block `import` does not take is left out of both.
    pub fn with_skipped(&self, there: &[Table], import: &Import) -> Cow<'_, Self> {
        if self.notices.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut offer = self.clone();
        let mut known: BTreeSet<String> = (offer.tables.iter())
            .map(|table| table.name.clone())
            .collect();
        for notice in std::mem::take(&mut offer.notices) {
            let missing = |table: &&Table| {
                !known.contains(&table.name) && notice.is_about(table) && import.takes(&table.name)
            };
            let skipped: Vec<String> = (there.iter().filter(missing))
                .map(|table| table.name.clone())
                .collect();
            if skipped.is_empty() && notice.is_warning {
                let warning = format!("the wrapper warns: {}", notice.text);
                let is_of_others = |name: &String| is_unfit(&offer, name) || !import.takes(name);
                let is_told = !notice.names.is_empty() && notice.names.iter().all(is_of_others);
                if !is_told && !offer.warnings.contains(&warning) {
                    offer.warnings.push(warning);
                }
            }
            for name in skipped {
                offer.tables.push(Table {
                    name: name.clone(),
                    unfit: Some(notice.text.clone()),
                    ..Table::default()
                });
                known.insert(name);
            }
        }
        offer.tables.sort_by(|a, b| a.name.cmp(&b.name));
        Cow::Owned(offer)
    }
}

fn is_unfit(offer: &Offer, name: &str) -> bool {
    let mut tables = offer.tables.iter();
    tables.any(|table| table.name == name && table.unfit.is_some())
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

/// The texts in quotation marks, in order, in whichever language the server writes.
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

/// The mark that ends what another one begins.
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
    use crate::shape::Column;

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

    fn warning(text: &str) -> Notice {
        Notice {
            text: text.into(),
            names: quoted_names(text),
            is_warning: true,
        }
    }

    fn offer(tables: &[&str], notices: &[Notice]) -> Offer {
        Offer {
            tables: tables.iter().map(|name| table(name)).collect(),
            notices: notices.to_vec(),
            ..Offer::default()
        }
    }

    /// The tables that cannot be imported, and the warnings.
    fn told(offer: &Offer, there: &[Table]) -> (Vec<String>, Vec<String>) {
        let told = offer.with_skipped(there, &Import::default());
        let unfit = told.tables.iter().filter(|table| table.unfit.is_some());
        (
            unfit.map(|table| table.name.clone()).collect(),
            told.warnings.clone(),
        )
    }

    #[test]
    fn a_table_that_the_wrapper_skips_is_not_lost() {
        let skipped = warning("skipping import for relation \"t\"");
        let there = [table("gone"), table("good"), table("t")];
        let (unfit, warnings) = told(&offer(&["good"], std::slice::from_ref(&skipped)), &there);
        assert_eq!((unfit, warnings), (vec!["t".to_owned()], vec![]));
        // Where it was never there, only the wrapper knows that it is a table.
        let (unfit, warnings) = told(&offer(&["good"], &[skipped]), &[]);
        assert_eq!(unfit, Vec::<String>::new());
        assert_eq!(
            warnings,
            ["the wrapper warns: skipping import for relation \"t\""]
        );
    }

    #[test]
    fn a_table_that_is_not_wanted_goes_though_it_is_skipped() {
        let skipped = warning("skipping import for relation \"t\"");
        let import = Import {
            exclude: vec!["t".into()],
            ..Import::default()
        };
        let offer = offer(&["good"], &[skipped]);
        let told = offer.with_skipped(&[table("good"), table("t")], &import);
        assert_eq!(told.tables.len(), 1);
        assert_eq!(told.warnings, Vec::<String>::new());
    }

    #[test]
    fn the_name_in_the_source_counts_too() {
        let mut mixed = table("mixed_case");
        let layer = ("layer".to_owned(), "Mixed Case".to_owned());
        mixed.options = [layer].into();
        let skipped = warning("cannot read layer \"Mixed Case\"");
        assert_eq!(told(&offer(&[], &[skipped]), &[mixed]).0, ["mixed_case"]);
        let there = [table("t"), table("table")];
        let bare = warning("skipping t: no columns");
        assert_eq!(told(&offer(&[], &[bare]), &there).0, ["t"]);
    }

    #[test]
    fn what_is_about_no_missing_table_is_only_told() {
        let about = [
            warning("column \"id\" loses digits"),
            warning("the source is read-only"),
            Notice {
                is_warning: false,
                ..warning("made \"good\"")
            },
        ];
        let (unfit, warnings) = told(&offer(&["good"], &about), &[table("good")]);
        assert_eq!(unfit, Vec::<String>::new());
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
