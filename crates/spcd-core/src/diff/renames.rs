//! Tables and columns that exist under another name: their name in the source is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Column, Dependents, Table, TableWarning, WrapperTraits};

/// A new name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    /// Present name.
    pub from: String,
    /// New name.
    pub to: String,
}

/// New names of a table and of its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRename {
    /// The table. Both names are equal if only columns are renamed.
    pub table: Rename,
    /// Its columns.
    pub columns: Vec<Rename>,
}

/// New names of existing tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renames {
    /// By present name of the table.
    tables: BTreeMap<String, TableRename>,
    /// Present names, by new name.
    present: BTreeMap<String, String>,
}

/// Result of [`find_renames`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundRenames {
    /// New names.
    pub renames: Renames,
    /// The desired tables, if they are not the given ones: what cannot be renamed keeps its name.
    pub desired: Option<Vec<Table>>,
    /// Warnings about tables and columns that keep their names.
    pub warnings: Vec<TableWarning>,
}

impl Renames {
    /// Returns these new names.
    pub fn new(tables: Vec<TableRename>) -> Self {
        let present = tables.iter().map(|one| &one.table);
        Self {
            present: present
                .map(|table| (table.to.clone(), table.from.clone()))
                .collect(),
            tables: (tables.into_iter())
                .map(|one| (one.table.from.clone(), one))
                .collect(),
        }
    }

    /// Returns whether nothing is renamed.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Returns the number of tables.
    pub fn len(&self) -> usize {
        self.tables.len()
    }

    /// Returns the tables by their present names.
    pub fn tables(&self) -> impl Iterator<Item = &TableRename> {
        self.tables.values()
    }

    /// Returns the new name of a table by its present one.
    pub fn new_table<'a>(&'a self, present: &'a str) -> &'a str {
        let renamed = self.tables.get(present);
        renamed.map_or(present, |one| &one.table.to)
    }

    /// Returns the present name of a table by its new one.
    pub fn present_table<'a>(&'a self, new: &'a str) -> &'a str {
        self.present.get(new).map_or(new, String::as_str)
    }

    /// Returns the new name of a column by the present names.
    pub fn new_column<'a>(&'a self, table: &str, column: &'a str) -> &'a str {
        let columns = self.tables.get(table).into_iter();
        let mut columns = columns.flat_map(|one| &one.columns);
        let renamed = columns.find(|rename| rename.from == column);
        renamed.map_or(column, |rename| &rename.to)
    }

    /// Returns objects that depend on existing tables, by the new names of tables and columns.
    pub fn rename_dependents(&self, dependents: Dependents) -> Dependents {
        if self.is_empty() {
            return dependents;
        }
        let mut renamed = Dependents::new();
        for (table, columns) in dependents {
            let columns = columns.into_iter();
            let columns =
                columns.map(|(column, of)| (self.new_column(&table, &column).to_owned(), of));
            let columns = columns.collect();
            renamed.insert(self.new_table(&table).to_owned(), columns);
        }
        renamed
    }

    /// Renames existing tables and sorts them.
    pub fn apply(&self, tables: &mut [Table]) {
        for table in &mut *tables {
            for column in &mut table.columns {
                let new = self.new_column(&table.name, &column.name);
                if new != column.name {
                    column.name = new.to_owned();
                }
            }
            table.name = self.new_table(&table.name).to_owned();
        }
        tables.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// Returns the new names of tables in an order in which each is free.
    pub fn table_steps(&self) -> Vec<Rename> {
        in_order(self.tables.values().map(|one| &one.table))
    }
}

impl TableRename {
    /// Returns the new names of the columns in an order in which each is free.
    pub fn column_steps(&self) -> Vec<Rename> {
        in_order(self.columns.iter())
    }
}

impl fmt::Display for TableRename {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rename { from, to } = &self.table;
        write!(f, "~ table {from}")?;
        if from != to {
            write!(f, " → {to}")?;
        }
        for Rename { from, to } in &self.columns {
            write!(f, "\n    ~ column {from} → {to}")?;
        }
        Ok(())
    }
}

/// Returns renames in an order in which each new name is free. Names that are exchanged get a temporary
/// one in between.
fn in_order<'a>(renames: impl Iterator<Item = &'a Rename>) -> Vec<Rename> {
    let mut left: BTreeMap<&str, &str> = renames
        .filter(|rename| rename.from != rename.to)
        .map(|rename| (rename.from.as_str(), rename.to.as_str()))
        .collect();
    let by_new: BTreeMap<&str, &str> = left.iter().map(|(from, to)| (*to, *from)).collect();
    let mut steps = Vec::new();
    let step = |from: &str, to: &str| Rename {
        from: from.to_owned(),
        to: to.to_owned(),
    };
    // A name that becomes free may be the new one of another object.
    let follow = |free: &str, left: &mut BTreeMap<&'a str, &'a str>, steps: &mut Vec<Rename>| {
        let mut free = free.to_owned();
        while let Some((from, to)) = by_new
            .get(free.as_str())
            .and_then(|from| left.remove_entry(from))
        {
            steps.push(step(from, to));
            free = from.to_owned();
        }
    };
    let free: Vec<&str> = by_new
        .keys()
        .filter(|to| !left.contains_key(**to))
        .copied()
        .collect();
    for name in free {
        follow(name, &mut left, &mut steps);
    }
    let mut number = 0;
    while let Some((from, to)) = left.pop_first() {
        number += 1;
        let between = format!("spcd rename {number}");
        steps.push(step(from, &between));
        follow(from, &mut left, &mut steps);
        steps.push(step(&between, to));
    }
    steps
}

/// Name of an object, here and in the source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Names<'a> {
    here: &'a str,
    remote: &'a str,
}

/// Decision about the tables of a connection, or the columns of a table.
struct Decision {
    /// Existing objects and the desired ones that they become.
    pairs: Vec<(usize, usize)>,
    /// Reasons why objects keep the name of the existing one, by desired object.
    kept: BTreeMap<usize, String>,
    /// Desired objects whose name is kept by another one.
    left_out: BTreeSet<usize>,
}

/// Returns which existing tables and columns are desired under another name. `taken` are the names of
/// other relations in the schema, and `fixed` the tables that cannot be renamed, with the reason.
pub fn find_renames(
    there: &[Table],
    desired: &[Table],
    taken: &[String],
    fixed: &BTreeMap<String, String>,
    traits: WrapperTraits<'_>,
) -> FoundRenames {
    let option = traits.table_name_option;
    let decision = decide(
        &table_names(there, option),
        &table_names(desired, option),
        |from, to| match taken.iter().any(|name| name == to) {
            true => Some("something else in the schema has that name".to_owned()),
            false => fixed.get(from).cloned(),
        },
    );
    let mut warnings = Vec::new();
    let mut renames = Vec::new();
    let mut adjusted: BTreeMap<usize, Table> = BTreeMap::new();
    for (old, new) in &decision.pairs {
        let (old, wanted) = (&there[*old], &desired[*new]);
        let mut table = None;
        if let Some(reason) = decision.kept.get(new) {
            let what = format!("is not renamed to {:?}", wanted.name);
            warnings.push(TableWarning::new(&old.name, &what, reason));
            let kept = table.insert(wanted.clone());
            keep_name(&mut kept.name, &mut kept.options, &old.name, option);
        }
        let to = table.as_ref().unwrap_or(wanted).name.clone();
        let (columns, changed) = rename_columns(old, wanted, fixed, traits, &mut warnings);
        if let Some(columns) = changed {
            table.get_or_insert_with(|| wanted.clone()).columns = columns;
        }
        if old.name != to || !columns.is_empty() {
            let from = old.name.clone();
            let table = Rename { from, to };
            renames.push(TableRename { table, columns });
        }
        adjusted.extend(table.map(|table| (*new, table)));
    }
    for at in &decision.left_out {
        let why = "another table, which cannot be renamed, has its name";
        warnings.push(TableWarning::new(&desired[*at].name, "is left out", why));
    }
    let is_changed = !adjusted.is_empty() || !decision.left_out.is_empty();
    FoundRenames {
        renames: Renames::new(renames),
        desired: is_changed.then(|| {
            let all = desired.iter().enumerate();
            let kept = all.filter(|(at, _)| !decision.left_out.contains(at));
            let table =
                |(at, table): (usize, &Table)| adjusted.remove(&at).unwrap_or(table.clone());
            let mut tables: Vec<Table> = kept.map(table).collect();
            tables.sort_by(|a, b| a.name.cmp(&b.name));
            tables
        }),
        warnings,
    }
}

fn table_names<'a>(tables: &'a [Table], option: Option<&str>) -> Vec<Names<'a>> {
    let names = |table: &'a Table| Names {
        here: &table.name,
        remote: table.remote_name(option),
    };
    tables.iter().map(names).collect()
}

fn column_names<'a>(columns: &'a [Column], option: Option<&str>) -> Vec<Names<'a>> {
    let names = |column: &'a Column| Names {
        here: &column.name,
        remote: column.remote_name(option),
    };
    columns.iter().map(names).collect()
}

/// Returns the renames of a table's columns, and its desired columns if some of them must keep their names.
fn rename_columns(
    old: &Table,
    wanted: &Table,
    fixed: &BTreeMap<String, String>,
    traits: WrapperTraits<'_>,
    warnings: &mut Vec<TableWarning>,
) -> (Vec<Rename>, Option<Vec<Column>>) {
    let option = traits.column_name_option;
    if option.is_none() || wanted.import_error.is_some() {
        return (Vec::new(), None);
    }
    let decision = decide(
        &column_names(&old.columns, option),
        &column_names(&wanted.columns, option),
        |_, _| fixed.get(&old.name).cloned(),
    );
    let mut columns = None;
    for (at, reason) in &decision.kept {
        let Some((from, _)) = decision.pairs.iter().find(|(_, new)| new == at) else {
            continue;
        };
        let (from, to) = (&old.columns[*from].name, &wanted.columns[*at].name);
        let what = format!("keeps the name of its column {from:?}, which should be {to:?}");
        warnings.push(TableWarning::new(&old.name, &what, reason));
        let columns: &mut Vec<Column> = columns.get_or_insert_with(|| wanted.columns.clone());
        let kept = &mut columns[*at];
        keep_name(&mut kept.name, &mut kept.options, from, option);
        if kept.remote_name(option) == kept.name {
            option.map(|option| kept.options.remove(option));
        }
    }
    if !decision.left_out.is_empty() {
        let all = columns.get_or_insert_with(|| wanted.columns.clone());
        let mut at = 0..;
        all.retain(|_| !at.next().is_some_and(|at| decision.left_out.contains(&at)));
    }
    let renamed = decision.pairs.iter().filter(|(old_at, new)| {
        !decision.kept.contains_key(new) && old.columns[*old_at].name != wanted.columns[*new].name
    });
    let rename = |(from, to): &(usize, usize)| Rename {
        from: old.columns[*from].name.clone(),
        to: wanted.columns[*to].name.clone(),
    };
    (renamed.map(rename).collect(), columns)
}

/// Gives a desired object the name that the existing one has. The option keeps the name in the source.
fn keep_name(
    name: &mut String,
    options: &mut BTreeMap<String, String>,
    present: &str,
    option: Option<&str>,
) {
    let remote = std::mem::replace(name, present.to_owned());
    if let Some(option) = option {
        options.entry(option.to_owned()).or_insert(remote);
    }
}

/// Decides which existing objects get the names of desired ones. `refuse` returns why one cannot.
fn decide(
    there: &[Names<'_>],
    desired: &[Names<'_>],
    refuse: impl Fn(&str, &str) -> Option<String>,
) -> Decision {
    let pairs = pair(there, desired);
    let present: BTreeSet<&str> = there.iter().map(|names| names.here).collect();
    let mut moving: BTreeMap<&str, usize> = BTreeMap::new();
    let mut kept: BTreeMap<usize, String> = BTreeMap::new();
    for (old, new) in &pairs {
        let (from, to) = (there[*old].here, desired[*new].here);
        if from == to {
            continue;
        }
        match refuse(from, to) {
            Some(reason) => drop(kept.insert(*new, reason)),
            None => drop(moving.insert(from, *new)),
        }
    }
    // An object that keeps its name may hold the new name of another one.
    loop {
        let blocked: Vec<&str> = (moving.iter())
            .filter(|(_, new)| {
                let to = desired[**new].here;
                present.contains(to) && !moving.contains_key(to)
            })
            .map(|(from, _)| *from)
            .collect();
        if blocked.is_empty() {
            break;
        }
        for from in blocked {
            if let Some(new) = moving.remove(from) {
                kept.insert(new, "that name is still in use".to_owned());
            }
        }
    }
    let kept_names: BTreeSet<&str> = (pairs.iter())
        .filter(|(_, new)| kept.contains_key(new))
        .map(|(old, _)| there[*old].here)
        .collect();
    let is_left_out = |at: &usize| !kept.contains_key(at) && kept_names.contains(desired[*at].here);
    Decision {
        left_out: (0..desired.len()).filter(is_left_out).collect(),
        pairs,
        kept,
    }
}

/// Pairs existing objects with desired ones: by both names, then by the name in the source, then by the
/// name here.
fn pair(there: &[Names<'_>], desired: &[Names<'_>]) -> Vec<(usize, usize)> {
    let mut left: BTreeMap<Names<'_>, usize> = (there.iter().enumerate())
        .map(|(at, names)| (*names, at))
        .collect();
    let mut pairs = Vec::new();
    let mut single = Vec::new();
    for (new, names) in desired.iter().enumerate() {
        match left.remove(names) {
            Some(old) => pairs.push((old, new)),
            None => single.push(new),
        }
    }
    if left.is_empty() || single.is_empty() {
        return pairs;
    }
    type Key = fn(&Names<'_>) -> String;
    let keys: [Key; 2] = [
        |names| names.remote.to_owned(),
        |names| names.here.to_owned(),
    ];
    for key in keys {
        let mut by_key: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (names, old) in &left {
            by_key.entry(key(names)).or_default().push(*old);
        }
        single.retain(|new| match by_key.remove(&key(&desired[*new])).as_deref() {
            Some([old]) => {
                left.remove(&there[*old]);
                pairs.push((*old, *new));
                false
            }
            _ => true,
        });
    }
    pairs
}

#[cfg(test)]
mod tests;
