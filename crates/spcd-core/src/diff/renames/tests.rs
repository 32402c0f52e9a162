//! Tests of the recognition of renamed tables and columns.

use super::super::{TableChange, diff};
use super::*;

const TRAITS: WrapperTraits<'_> = WrapperTraits {
    positional: false,
    table_name_option: Some("table_name"),
    column_name_option: Some("column_name"),
    is_tuned: false,
};

/// A table with columns, each as `name` or `name=remote`.
fn table(name: &str, columns: &[&str]) -> Table {
    let split = |text: &str| -> (String, Option<String>) {
        match text.split_once('=') {
            Some((name, remote)) => (name.to_owned(), Some(remote.to_owned())),
            None => (text.to_owned(), None),
        }
    };
    let (name, remote) = split(name);
    let column = |text: &&str| {
        let (name, remote) = split(text);
        Column {
            name,
            data_type: "integer".into(),
            options: remote
                .map(|remote| ("column_name".into(), remote))
                .into_iter()
                .collect(),
            ..Column::default()
        }
    };
    let remote = remote.unwrap_or_else(|| name.clone());
    Table {
        columns: columns.iter().map(column).collect(),
        options: [("table_name".to_owned(), remote)].into(),
        name,
        ..Table::default()
    }
}

/// The renames, the warnings, and the changes that are left.
fn found(
    there: &[Table],
    desired: &[Table],
    taken: &[&str],
) -> (Vec<String>, Vec<String>, Vec<String>) {
    let taken: Vec<String> = taken.iter().map(|name| (*name).to_owned()).collect();
    let found = find_renames(there, desired, &taken, &BTreeMap::new(), TRAITS);
    let mut after = there.to_vec();
    found.renames.apply(&mut after);
    let changes = diff(&after, found.desired.as_deref().unwrap_or(desired), TRAITS);
    (
        found.renames.tables().map(ToString::to_string).collect(),
        found
            .warnings
            .into_iter()
            .map(|warning| warning.text)
            .collect(),
        changes.iter().map(ToString::to_string).collect(),
    )
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn steps(renames: &[(&str, &str)]) -> Vec<String> {
    let renames: Vec<Rename> = (renames.iter())
        .map(|(from, to)| Rename {
            from: (*from).into(),
            to: (*to).into(),
        })
        .collect();
    let steps = in_order(renames.iter()).into_iter();
    steps
        .map(|step| format!("{} → {}", step.from, step.to))
        .collect()
}

#[test]
fn folding_and_unfolding_renames_and_changes_nothing_else() {
    let plain = [table("Items", &["ID", "Price"]), table("Orders", &["ID"])];
    let folded = [
        table("items=Items", &["id=ID", "price=Price"]),
        table("orders=Orders", &["id=ID"]),
    ];
    let (renames, warnings, changes) = found(&plain, &folded, &[]);
    assert_eq!(
        renames,
        [
            "~ table Items → items\n    ~ column ID → id\n    ~ column Price → price",
            "~ table Orders → orders\n    ~ column ID → id",
        ]
    );
    assert_eq!(warnings, texts(&[]));
    // postgres_fdw's tables always have the option; that of a column is set with its new name.
    assert!(
        changes.iter().all(|change| !change.contains(['+', '-'])),
        "{changes:?}"
    );
    let (renames, warnings, changes) = found(&folded, &plain, &[]);
    assert_eq!(renames.len(), 2);
    assert_eq!(warnings, texts(&[]));
    assert!(
        changes.iter().all(|change| !change.contains(['+', '-'])),
        "{changes:?}"
    );
    assert_eq!(found(&folded, &folded, &[]), Default::default());
}

#[test]
fn a_table_of_another_source_name_is_another_table() {
    let (renames, _, changes) = found(&[table("a", &["x"])], &[table("b", &["x"])], &[]);
    assert_eq!(renames, texts(&[]));
    assert_eq!(changes, ["- table a", "+ table b (1 columns)"]);
}

#[test]
fn an_option_that_was_changed_by_hand_is_mended() {
    let there = [table("t=elsewhere", &["x"])];
    let (renames, _, changes) = found(&there, &[table("t", &["x"])], &[]);
    assert_eq!(renames, texts(&[]));
    assert_eq!(changes, ["~ table t\n    ~ options"]);
}

#[test]
fn what_holds_the_new_name_is_not_touched() {
    let there = [table("A", &["x"])];
    let desired = [table("a=A", &["x"])];
    let (renames, warnings, changes) = found(&there, &desired, &["a"]);
    assert_eq!((renames, changes), (texts(&[]), texts(&[])));
    assert_eq!(
        warnings,
        ["table \"A\" is not renamed to \"a\": something else in the schema has that name"]
    );
    // A table that the source lost goes first.
    let there = [table("A", &["x"]), table("a", &["x"])];
    let (renames, warnings, changes) = found(&there, &desired, &[]);
    assert_eq!((renames, changes), (texts(&[]), texts(&["- table a"])));
    assert_eq!(
        warnings,
        ["table \"A\" is not renamed to \"a\": that name is still in use"]
    );
    // Nor is a new table created in place of one that stays.
    let desired = [table("A=B", &["x"]), table("a=A", &["x"])];
    let (renames, warnings, changes) = found(&there[..1], &desired, &["a"]);
    assert_eq!((renames, changes), (texts(&[]), texts(&[])));
    assert_eq!(warnings.len(), 2);
}

#[test]
fn a_column_waits_until_the_new_name_is_free() {
    let there = [table("t", &["a", "b"])];
    let desired = [table("t", &["b=a"])];
    let (renames, warnings, changes) = found(&there, &desired, &[]);
    assert_eq!(renames, texts(&[]));
    assert_eq!(
        warnings,
        [
            "table \"t\" keeps the name of its column \"a\", which should be \"b\": that name is still in use"
        ]
    );
    assert_eq!(changes, ["~ table t\n    - column b"]);
}

#[test]
fn tables_exchange_their_names() {
    let there = [table("a", &["x"]), table("b", &["x"])];
    let desired = [table("a=b", &["x"]), table("b=a", &["x"])];
    let (renames, warnings, changes) = found(&there, &desired, &[]);
    assert_eq!(renames, ["~ table a → b", "~ table b → a"]);
    assert_eq!((warnings, changes), (texts(&[]), texts(&[])));
    assert_eq!(
        steps(&[("a", "b"), ("b", "a")]),
        ["a → spcd rename 1", "b → a", "spcd rename 1 → b"]
    );
    assert_eq!(
        steps(&[("a", "b"), ("b", "c"), ("x", "x")]),
        ["b → c", "a → b"]
    );
}

#[test]
fn a_table_that_cannot_be_altered_keeps_all_its_names() {
    let fixed = BTreeMap::from([("A".to_owned(), "it belongs to role o".to_owned())]);
    let there = [table("A", &["X"])];
    let desired = [table("a=A", &["x=X"])];
    let found = find_renames(&there, &desired, &[], &fixed, TRAITS);
    assert!(found.renames.is_empty());
    assert_eq!(found.warnings.len(), 2);
    assert_eq!(
        diff(&there, &found.desired.unwrap(), TRAITS),
        Vec::<TableChange>::new()
    );
}
