//! Merges tables of the same name.

use std::collections::{BTreeMap, BTreeSet};

use super::{AggregatorMember, ExistingView};
use crate::diff::{Column, Table};
use crate::sql;

/// First column of every view of an aggregator.
pub const CONNECTION_NAME: &str = "connection_name";

/// Column of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewColumn {
    /// Name.
    pub name: String,
    /// Type, in the form of [`Column::data_type`].
    pub data_type: String,
    /// Collation; `None` for the type's default.
    pub collation: Option<String>,
}

/// Columns and members of the view of one table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MergedTable {
    /// Columns in order; `connection_name` is first.
    pub columns: Vec<ViewColumn>,
    /// Names of members whose columns do not fit.
    pub excluded_members: BTreeSet<String>,
    /// Warnings about columns and members that are left out or unchanged.
    pub warnings: Vec<String>,
}

/// Merges the tables of one name. Columns that the view has come first, so that it can be replaced
/// in place; the others follow in the members' order.
///
/// If users' objects depend on the view, it keeps its columns with their types, and members that do
/// not fit are left out. `keep_columns` keeps the columns in any case and adds none: until the aggregator's
/// own update.
pub fn merge_tables(
    name: &str,
    member_tables: &[(AggregatorMember<'_>, &Table)],
    made: Option<&ExistingView>,
    keep_columns: bool,
) -> MergedTable {
    let mut merged = MergedTable::default();
    let (order, mut desired) = columns(member_tables);
    let has_own_column = (member_tables.iter())
        .flat_map(|(_, table)| &table.columns)
        .any(|column| column.name == CONNECTION_NAME);
    if has_own_column {
        merged.warnings.push(format!(
            "table {name:?}: the members' own column {CONNECTION_NAME} is left out, \
             the connection's name stands in its place"
        ));
    }
    merged.columns.push(ViewColumn {
        name: CONNECTION_NAME.into(),
        data_type: "text".into(),
        collation: None,
    });
    let has_members = !member_tables.is_empty();
    let dependents = made.map(dependent_names).unwrap_or_default();
    let frozen = keep_columns || !dependents.is_empty() || !has_members;
    if let Some(made) = made {
        let frozen_by = frozen.then_some(dependents.as_str());
        let is_silent = keep_columns || !has_members;
        merged.keep_existing(name, made, &mut desired, frozen_by, is_silent);
    }
    if !keep_columns {
        let new = order.iter().filter_map(|name| desired.remove(name));
        merged.columns.extend(new);
    }
    if frozen {
        merged.exclude_incompatible(name, member_tables, &dependents, keep_columns);
    }
    merged.warnings.sort();
    merged.warnings.dedup();
    merged
}

/// Returns the names of the objects of users that depend on a view, as a list in text.
fn dependent_names(made: &ExistingView) -> String {
    let names: BTreeSet<&str> = made.dependents.iter().map(String::as_str).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// Returns the members' columns in the order of first appearance, each with a type that accepts the
/// values of all members.
fn columns<'a>(
    member_tables: &'a [(AggregatorMember<'_>, &Table)],
) -> (Vec<&'a str>, BTreeMap<&'a str, ViewColumn>) {
    let (mut order, mut desired) = (Vec::new(), BTreeMap::<&str, ViewColumn>::new());
    let of_members = member_tables.iter().flat_map(|(_, table)| &table.columns);
    for column in of_members.filter(|column| column.name != CONNECTION_NAME) {
        match desired.get_mut(column.name.as_str()) {
            None => {
                order.push(column.name.as_str());
                desired.insert(&column.name, ViewColumn::of(column));
            }
            Some(so_far) => so_far.widen(column),
        }
    }
    (order, desired)
}

impl MergedTable {
    /// Adds the columns of the existing view, and removes them from `desired`. A column that no member
    /// has any more is left out unless dropping it would break or lose something. `frozen_by` is given
    /// if no column may change: the dependent objects.
    fn keep_existing(
        &mut self,
        name: &str,
        made: &ExistingView,
        desired: &mut BTreeMap<&str, ViewColumn>,
        frozen_by: Option<&str>,
        is_silent: bool,
    ) {
        for there in made
            .columns
            .iter()
            .filter(|column| column.name != CONNECTION_NAME)
        {
            match (desired.remove(there.name.as_str()), frozen_by) {
                (Some(column), None) => self.columns.push(column),
                (Some(_), Some(_)) => self.columns.push(there.clone()),
                (None, frozen_by) => {
                    let would_be_lost = || {
                        let restorable = made.restorable.get(&there.name)?;
                        Some(restorable.iter().cloned().collect::<Vec<_>>().join(", "))
                    };
                    let lost = frozen_by.map(str::to_owned).or_else(would_be_lost);
                    let Some(lost) = lost else { continue };
                    if !is_silent {
                        self.warnings.push(format!(
                            "table {name:?} keeps column {}, which no member has any more: \
                             dropping it would break or lose {lost}",
                            there.name,
                        ));
                    }
                    self.columns.push(there.clone());
                }
            }
        }
    }

    /// Excludes the members whose columns do not fit into those of the view.
    fn exclude_incompatible(
        &mut self,
        name: &str,
        member_tables: &[(AggregatorMember<'_>, &Table)],
        dependents: &str,
        is_silent: bool,
    ) {
        for (member, table) in member_tables {
            let Some((column, shown)) = self.incompatible_column(table) else {
                continue;
            };
            if !is_silent {
                let warning = format!(
                    "table {name:?} is shown without connection {:?}: its column {} is {}, here it \
                     is {}, and changing that would break or lose {dependents}",
                    member.name, column.name, column.data_type, shown.data_type
                );
                self.warnings.push(warning);
            }
            self.excluded_members.insert(member.name.to_owned());
        }
    }

    /// Returns the first column of a table that cannot be shown as the view's column of that name.
    fn incompatible_column<'a>(&'a self, table: &'a Table) -> Option<(&'a Column, &'a ViewColumn)> {
        let find = |column: &&Column| {
            let same = |shown: &&ViewColumn| shown.name == column.name;
            self.columns.iter().skip(1).find(same)
        };
        (table.columns.iter())
            .filter_map(|column| Some((column, find(&column)?)))
            .find(|(column, shown)| shown.value_of(column).is_none())
    }

    /// Returns the SELECT for one member's table.
    pub fn member_select(&self, member: &AggregatorMember<'_>, table: &Table) -> String {
        self.select(member, table, &sql::qualified(member.schema, &table.name))
    }

    /// Returns the SELECT for one member's table, or what stands for it.
    pub(super) fn select(
        &self,
        member: &AggregatorMember<'_>,
        table: &Table,
        from: &str,
    ) -> String {
        let by_name: BTreeMap<&str, &Column> = (table.columns.iter())
            .map(|column| (column.name.as_str(), column))
            .collect();
        let name = match member.lane {
            Some(_) => sql::ident(CONNECTION_NAME),
            None => format!("{}::text", sql::literal(member.name)),
        };
        let mut values = vec![name];
        for shown in self.columns.iter().skip(1) {
            let column = by_name.get(shown.name.as_str());
            let value = column.and_then(|column| shown.value_of(column));
            values.push(value.unwrap_or_else(|| shown.null()));
        }
        format!("SELECT {} FROM {from}", values.join(", "))
    }

    /// Returns a SELECT without rows, with the view's columns.
    pub fn empty_select(&self) -> String {
        let values: Vec<_> = self.columns.iter().map(ViewColumn::null).collect();
        format!("SELECT {} WHERE false", values.join(", "))
    }
}

impl ViewColumn {
    pub(super) fn of(column: &Column) -> Self {
        Self {
            name: column.name.clone(),
            data_type: column.data_type.clone(),
            collation: column.collation.clone(),
        }
    }

    /// Widens the column for another member's column of the same name.
    fn widen(&mut self, column: &Column) {
        self.data_type =
            common_type(&self.data_type, &column.data_type).unwrap_or_else(|| "jsonb".into());
        if self.data_type == "jsonb" || self.collation != column.collation {
            self.collation = None;
        }
    }

    /// Returns a member's column as an expression of this column's type; `None` if it does not fit.
    fn value_of(&self, column: &Column) -> Option<String> {
        let name = sql::ident(&column.name);
        let value = if column.data_type == self.data_type {
            name
        } else if self.data_type == "jsonb" {
            return Some(format!("pg_catalog.to_jsonb({name})"));
        } else if common_type(&column.data_type, &self.data_type).as_ref() == Some(&self.data_type)
        {
            format!("{name}::{}", self.data_type)
        } else {
            return None;
        };
        Some(
            match (&self.collation, column.collation == self.collation) {
                (_, true) => value,
                (Some(collation), false) => format!("{value} COLLATE {collation}"),
                (None, false) => format!("{value} COLLATE pg_catalog.\"default\""),
            },
        )
    }

    fn null(&self) -> String {
        match &self.collation {
            Some(collation) => format!("NULL::{} COLLATE {collation}", self.data_type),
            None => format!("NULL::{}", self.data_type),
        }
    }
}

/// Returns the narrowest type that holds all values of two types exactly; `None` if neither can be
/// widened.
fn common_type(a: &str, b: &str) -> Option<String> {
    if a == b {
        return Some(a.to_owned());
    }
    match (SizedType::of(a)?, SizedType::of(b)?) {
        (SizedType::Char(a), SizedType::Char(b)) => Some(format!("character({})", a.max(b))),
        (SizedType::Varchar(a), SizedType::Varchar(b)) => Some(match a.zip(b) {
            Some((a, b)) => format!("character varying({})", a.max(b)),
            None => "character varying".into(),
        }),
        (SizedType::Text | SizedType::Varchar(_), SizedType::Text | SizedType::Varchar(_)) => {
            Some("text".into())
        }
        (SizedType::Numeric(a), SizedType::Numeric(b)) => Some(match a.zip(b) {
            Some(((p, s), (q, t))) => {
                let (scale, whole) = (s.max(t), (p - s).max(q - t));
                match whole + scale {
                    // Range of numeric's precision.
                    precision @ 1..=1000 => format!("numeric({precision},{scale})"),
                    _ => "numeric".into(),
                }
            }
            None => "numeric".into(),
        }),
        _ => None,
    }
}

/// Type that can be widened, with its modifiers.
#[derive(Clone, Copy)]
enum SizedType {
    Char(u32),
    Varchar(Option<u32>),
    Text,
    Numeric(Option<(i32, i32)>),
}

impl SizedType {
    fn of(data_type: &str) -> Option<Self> {
        let (name, modifier) = match data_type.split_once('(') {
            Some((name, rest)) => (name, Some(rest.strip_suffix(')')?)),
            None => (data_type, None),
        };
        let length = || modifier.map(str::parse).transpose().ok();
        match name {
            "character" => modifier?.parse().ok().map(SizedType::Char),
            "character varying" => length().map(SizedType::Varchar),
            "text" => Some(SizedType::Text),
            "numeric" => match modifier {
                None => Some(SizedType::Numeric(None)),
                Some(modifier) => {
                    let (precision, scale) = modifier.split_once(',')?;
                    let both = (precision.parse().ok()?, scale.parse().ok()?);
                    Some(SizedType::Numeric(Some(both)))
                }
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[(&str, &str)]) -> Table {
        let column = |(name, data_type): &(&str, &str)| Column {
            name: (*name).into(),
            data_type: (*data_type).into(),
            ..Column::default()
        };
        Table {
            name: "t".into(),
            columns: columns.iter().map(column).collect(),
            ..Table::default()
        }
    }

    fn member(name: &'static str) -> AggregatorMember<'static> {
        AggregatorMember {
            name,
            schema: name,
            tables: &[],
            lane: None,
        }
    }

    fn shown(merged: &MergedTable) -> Vec<String> {
        (merged.columns.iter())
            .map(|column| format!("{} {}", column.name, column.data_type))
            .collect()
    }

    #[test]
    fn columns_come_in_the_members_order_and_what_one_lacks_is_null() {
        let a = table(&[("id", "integer"), ("note", "text")]);
        let b = table(&[("extra", "date"), ("id", "integer")]);
        let merged = merge_tables("t", &[(member("a"), &a), (member("b"), &b)], None, false);
        assert_eq!(
            shown(&merged),
            [
                "connection_name text",
                "id integer",
                "note text",
                "extra date"
            ]
        );
        assert_eq!(
            merged.member_select(&member("b"), &b),
            r#"SELECT 'b'::text, "id", NULL::text, "extra" FROM "b"."t""#
        );
        assert_eq!(merged.warnings, [""; 0]);
    }

    #[test]
    fn what_can_be_widened_is_and_what_clashes_is_jsonb() {
        let types = [
            (
                "character varying(40)",
                "character varying(60)",
                "character varying(60)",
            ),
            (
                "character varying(40)",
                "character varying",
                "character varying",
            ),
            ("text", "character varying(9)", "text"),
            ("character(3)", "character(5)", "character(5)"),
            ("character(3)", "text", "jsonb"),
            ("numeric(10,2)", "numeric(8,4)", "numeric(12,4)"),
            ("numeric(4,-2)", "numeric(4,4)", "numeric(10,4)"),
            ("numeric(1000,0)", "numeric(1000,9)", "numeric"),
            ("numeric", "numeric(8,4)", "numeric"),
            ("integer", "bigint", "jsonb"),
            ("integer", "numeric", "jsonb"),
            ("character varying(4)[]", "character varying(5)[]", "jsonb"),
            ("jsonb", "integer", "jsonb"),
            ("date", "date", "date"),
        ];
        for (x, y, expected) in types {
            for (x, y) in [(x, y), (y, x)] {
                let (a, b) = (table(&[("c", x)]), table(&[("c", y)]));
                let merged =
                    merge_tables("t", &[(member("a"), &a), (member("b"), &b)], None, false);
                assert_eq!(merged.columns[1].data_type, expected, "{x} and {y}");
                assert!(
                    merged.incompatible_column(&a).is_none()
                        && merged.incompatible_column(&b).is_none()
                );
            }
        }
    }

    #[test]
    fn values_are_cast_only_where_they_must() {
        let a = table(&[("v", "character varying(4)"), ("c", "integer")]);
        let b = table(&[("v", "character varying(9)"), ("c", "date")]);
        let merged = merge_tables("t", &[(member("a"), &a), (member("b"), &b)], None, false);
        assert_eq!(
            merged.member_select(&member("a"), &a),
            r#"SELECT 'a'::text, "v"::character varying(9), pg_catalog.to_jsonb("c") FROM "a"."t""#
        );
        assert_eq!(
            merged.member_select(&member("b"), &b),
            r#"SELECT 'b'::text, "v", pg_catalog.to_jsonb("c") FROM "b"."t""#
        );
    }

    #[test]
    fn a_members_own_connection_name_gives_way() {
        let a = table(&[("connection_name", "integer"), ("id", "integer")]);
        let merged = merge_tables("t", &[(member("a"), &a)], None, false);
        assert_eq!(shown(&merged), ["connection_name text", "id integer"]);
        assert_eq!(merged.warnings.len(), 1);
        assert_eq!(
            merged.member_select(&member("a"), &a),
            r#"SELECT 'a'::text, "id" FROM "a"."t""#
        );
    }

    #[test]
    fn different_collations_become_the_default() {
        let mut a = table(&[("c", "text")]);
        a.columns[0].collation = Some("pg_catalog.\"C\"".into());
        let b = table(&[("c", "text")]);
        let merged = merge_tables("t", &[(member("a"), &a), (member("b"), &b)], None, false);
        assert_eq!(
            merged.member_select(&member("a"), &a),
            r#"SELECT 'a'::text, "c" COLLATE pg_catalog."default" FROM "a"."t""#
        );
        assert_eq!(
            merged.member_select(&member("b"), &b),
            r#"SELECT 'b'::text, "c" FROM "b"."t""#
        );
    }

    fn made(columns: &[(&str, &str)], dependents: &[&str]) -> ExistingView {
        let mut columns: Vec<_> = table(columns).columns.iter().map(ViewColumn::of).collect();
        columns.insert(
            0,
            ViewColumn {
                name: CONNECTION_NAME.into(),
                data_type: "text".into(),
                collation: None,
            },
        );
        ExistingView {
            table: "t".into(),
            name: "t".into(),
            exists: true,
            columns,
            dependents: dependents.iter().map(|one| (*one).to_owned()).collect(),
            ..ExistingView::default()
        }
    }

    #[test]
    fn what_the_view_has_stays_first() {
        let there = made(&[("b", "text")], &[]);
        let a = table(&[("a", "text"), ("b", "text")]);
        let merged = merge_tables("t", &[(member("a"), &a)], Some(&there), false);
        assert_eq!(shown(&merged), ["connection_name text", "b text", "a text"]);
        let gone = table(&[("a", "text")]);
        let merged = merge_tables("t", &[(member("a"), &gone)], Some(&there), false);
        assert_eq!(shown(&merged), ["connection_name text", "a text"]);
    }

    #[test]
    fn under_peoples_views_columns_stay_and_members_that_do_not_fit_are_left_out() {
        let there = made(&[("id", "integer"), ("note", "text")], &["view v"]);
        let a = table(&[("id", "integer"), ("new", "date")]);
        let b = table(&[("id", "bigint")]);
        let member_tables = [(member("a"), &a), (member("b"), &b)];
        let merged = merge_tables("t", &member_tables, Some(&there), false);
        assert_eq!(
            shown(&merged),
            [
                "connection_name text",
                "id integer",
                "note text",
                "new date"
            ]
        );
        assert_eq!(merged.excluded_members, BTreeSet::from(["b".to_owned()]));
        assert_eq!(
            merged.warnings,
            [
                "table \"t\" is shown without connection \"b\": its column id is bigint, here it is \
                 integer, and changing that would break or lose view v",
                "table \"t\" keeps column note, which no member has any more: dropping it would \
                 break or lose view v",
            ]
        );
        // Until the aggregator's own update, without a warning.
        let there = made(&[("id", "integer")], &[]);
        let merged = merge_tables("t", &member_tables, Some(&there), true);
        assert_eq!(merged.excluded_members.len(), 1);
        assert_eq!(merged.warnings, [""; 0]);
    }
}
