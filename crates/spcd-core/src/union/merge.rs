//! One table out of many of the same name.

use std::collections::{BTreeMap, BTreeSet};

use super::{Made, Member};
use crate::shape::{Column, Table};
use crate::sql;

/// The first column of every view of an aggregator.
pub const CONNECTION_NAME: &str = "connection_name";

/// A column of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewColumn {
    /// Its name.
    pub name: String,
    /// Its type, as [`Column::data_type`] has it.
    pub data_type: String,
    /// Its collation when it is not its type's own.
    pub collation: Option<String>,
}

/// What the view of one table shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Merged {
    /// In order; `connection_name` first.
    pub columns: Vec<ViewColumn>,
    /// Members that do not fit, by name.
    pub left_out: BTreeSet<String>,
    /// What is left out or stays as it was, and why.
    pub warnings: Vec<String>,
}

/// Merges the tables of one name: the members' columns in the members' order, but those that the
/// view has already first, so that it can be replaced where it is.
///
/// Where people's objects hang on the view it keeps the columns that it has with their types, and
/// members that do not fit into them are left out. `hold` says that it does so in any case, without
/// new columns: for a moment, until its own turn comes.
pub fn merge(
    name: &str,
    having: &[(Member<'_>, &Table)],
    made: Option<&Made>,
    hold: bool,
) -> Merged {
    let mut merged = Merged::default();
    let (order, mut wanted) = columns(having);
    let is_own = |column: &&Column| column.name == CONNECTION_NAME;
    if having
        .iter()
        .flat_map(|(_, table)| &table.columns)
        .any(|column| is_own(&column))
    {
        merged.warnings.push(format!(
            "table {name:?}: the members' own column {CONNECTION_NAME} is left out, \
             the connection's name stands in its place"
        ));
    }

    let people: BTreeSet<&str> = (made.iter())
        .flat_map(|made| made.dependents.iter().map(String::as_str))
        .collect();
    let people = people.into_iter().collect::<Vec<_>>().join(", ");
    let frozen = hold || !people.is_empty() || having.is_empty();
    merged.columns.push(ViewColumn {
        name: CONNECTION_NAME.into(),
        data_type: "text".into(),
        collation: None,
    });
    for there in made.iter().flat_map(|made| &made.columns) {
        if there.name == CONNECTION_NAME {
            continue;
        }
        match wanted.remove(there.name.as_str()) {
            Some(_) if frozen => merged.columns.push(there.clone()),
            Some(column) => merged.columns.push(column),
            None => {
                let kept = (made.and_then(|made| made.kept_aside.get(&there.name)))
                    .filter(|_| !frozen)
                    .map(|kept| {
                        kept.iter()
                            .map(String::as_str)
                            .collect::<Vec<_>>()
                            .join(", ")
                    });
                if !frozen && kept.is_none() {
                    continue;
                }
                if !hold && !having.is_empty() {
                    merged.warnings.push(format!(
                        "table {name:?} keeps column {}, which no member has any more: \
                         dropping it would break or lose {}",
                        there.name,
                        kept.as_deref().unwrap_or(&people)
                    ));
                }
                merged.columns.push(there.clone());
            }
        }
    }
    if !hold {
        let new = order.iter().filter_map(|name| wanted.remove(name));
        merged.columns.extend(new);
    }

    if frozen {
        for (member, table) in having {
            let Some((column, wanted)) = merged.misfit(table) else {
                continue;
            };
            if !hold {
                merged.warnings.push(format!(
                    "table {name:?} is shown without connection {:?}: its column {} is {}, here it \
                     is {}, and changing that would break or lose {people}",
                    member.name, column.name, column.data_type, wanted.data_type
                ));
            }
            merged.left_out.insert(member.name.to_owned());
        }
    }
    merged.warnings.sort();
    merged.warnings.dedup();
    merged
}

/// The columns that members have, in the order of their first appearance, each with a type that
/// takes the values of all.
fn columns<'a>(
    having: &'a [(Member<'_>, &Table)],
) -> (Vec<&'a str>, BTreeMap<&'a str, ViewColumn>) {
    let (mut order, mut wanted) = (Vec::new(), BTreeMap::<&str, ViewColumn>::new());
    let of_members = having.iter().flat_map(|(_, table)| &table.columns);
    for column in of_members.filter(|column| column.name != CONNECTION_NAME) {
        match wanted.get_mut(column.name.as_str()) {
            None => {
                order.push(column.name.as_str());
                wanted.insert(&column.name, ViewColumn::of(column));
            }
            Some(so_far) => so_far.widen(column),
        }
    }
    (order, wanted)
}

impl Merged {
    /// The first column of a table that cannot be shown as the view's column of its name.
    fn misfit<'a>(&'a self, table: &'a Table) -> Option<(&'a Column, &'a ViewColumn)> {
        let find = |column: &&Column| {
            let same = |wanted: &&ViewColumn| wanted.name == column.name;
            self.columns.iter().skip(1).find(same)
        };
        (table.columns.iter())
            .filter_map(|column| Some((column, find(&column)?)))
            .find(|(column, wanted)| wanted.value_of(column).is_none())
    }

    /// The SELECT that shows one member's table.
    pub fn branch(&self, member: &Member<'_>, table: &Table) -> String {
        let by_name: BTreeMap<&str, &Column> = (table.columns.iter())
            .map(|column| (column.name.as_str(), column))
            .collect();
        let mut values = vec![format!("{}::text", sql::literal(member.name))];
        for wanted in self.columns.iter().skip(1) {
            let column = by_name.get(wanted.name.as_str());
            let value = column.and_then(|column| wanted.value_of(column));
            values.push(value.unwrap_or_else(|| wanted.null()));
        }
        format!(
            "SELECT {} FROM {}",
            values.join(", "),
            sql::qualified(member.schema, &table.name)
        )
    }

    /// The SELECT that shows nothing, with the right columns.
    pub fn no_branch(&self) -> String {
        let values: Vec<_> = self.columns.iter().map(ViewColumn::null).collect();
        format!("SELECT {} WHERE false", values.join(", "))
    }
}

impl ViewColumn {
    fn of(column: &Column) -> Self {
        Self {
            name: column.name.clone(),
            data_type: column.data_type.clone(),
            collation: column.collation.clone(),
        }
    }

    /// Makes room for another member's column of the name.
    fn widen(&mut self, column: &Column) {
        self.data_type =
            wider(&self.data_type, &column.data_type).unwrap_or_else(|| "jsonb".into());
        if self.data_type == "jsonb" || self.collation != column.collation {
            self.collation = None;
        }
    }

    /// A member's column as this one; `None` if it does not fit.
    fn value_of(&self, column: &Column) -> Option<String> {
        let name = sql::ident(&column.name);
        let value = if column.data_type == self.data_type {
            name
        } else if self.data_type == "jsonb" {
            return Some(format!("pg_catalog.to_jsonb({name})"));
        } else if wider(&column.data_type, &self.data_type).as_ref() == Some(&self.data_type) {
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

/// The narrowest type that holds all values of two as they are; `None` if there is none of their
/// kind.
fn wider(a: &str, b: &str) -> Option<String> {
    if a == b {
        return Some(a.to_owned());
    }
    match (Width::of(a)?, Width::of(b)?) {
        (Width::Char(a), Width::Char(b)) => Some(format!("character({})", a.max(b))),
        (Width::Varchar(a), Width::Varchar(b)) => Some(match a.zip(b) {
            Some((a, b)) => format!("character varying({})", a.max(b)),
            None => "character varying".into(),
        }),
        (Width::Text | Width::Varchar(_), Width::Text | Width::Varchar(_)) => Some("text".into()),
        (Width::Numeric(a), Width::Numeric(b)) => Some(match a.zip(b) {
            Some(((p, s), (q, t))) => {
                let (scale, whole) = (s.max(t), (p - s).max(q - t));
                match whole + scale {
                    // What numeric(p,s) allows.
                    precision @ 1..=1000 => format!("numeric({precision},{scale})"),
                    _ => "numeric".into(),
                }
            }
            None => "numeric".into(),
        }),
        _ => None,
    }
}

/// Types that can be widened, with their modifiers.
#[derive(Clone, Copy)]
enum Width {
    Char(u32),
    Varchar(Option<u32>),
    Text,
    Numeric(Option<(i32, i32)>),
}

impl Width {
    fn of(data_type: &str) -> Option<Self> {
        let (name, modifier) = match data_type.split_once('(') {
            Some((name, rest)) => (name, Some(rest.strip_suffix(')')?)),
            None => (data_type, None),
        };
        let length = || modifier.map(str::parse).transpose().ok();
        match name {
            "character" => modifier?.parse().ok().map(Width::Char),
            "character varying" => length().map(Width::Varchar),
            "text" => Some(Width::Text),
            "numeric" => match modifier {
                None => Some(Width::Numeric(None)),
                Some(modifier) => {
                    let (precision, scale) = modifier.split_once(',')?;
                    let both = (precision.parse().ok()?, scale.parse().ok()?);
                    Some(Width::Numeric(Some(both)))
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

    fn member(name: &'static str) -> Member<'static> {
        Member {
            name,
            schema: name,
            tables: &[],
        }
    }

    fn shown(merged: &Merged) -> Vec<String> {
        (merged.columns.iter())
            .map(|column| format!("{} {}", column.name, column.data_type))
            .collect()
    }

    #[test]
    fn columns_come_in_the_members_order_and_what_one_lacks_is_null() {
        let a = table(&[("id", "integer"), ("note", "text")]);
        let b = table(&[("extra", "date"), ("id", "integer")]);
        let merged = merge("t", &[(member("a"), &a), (member("b"), &b)], None, false);
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
            merged.branch(&member("b"), &b),
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
        for (x, y, wanted) in types {
            for (x, y) in [(x, y), (y, x)] {
                let (a, b) = (table(&[("c", x)]), table(&[("c", y)]));
                let merged = merge("t", &[(member("a"), &a), (member("b"), &b)], None, false);
                assert_eq!(merged.columns[1].data_type, wanted, "{x} and {y}");
                assert!(merged.misfit(&a).is_none() && merged.misfit(&b).is_none());
            }
        }
    }

    #[test]
    fn values_are_cast_only_where_they_must() {
        let a = table(&[("v", "character varying(4)"), ("c", "integer")]);
        let b = table(&[("v", "character varying(9)"), ("c", "date")]);
        let merged = merge("t", &[(member("a"), &a), (member("b"), &b)], None, false);
        assert_eq!(
            merged.branch(&member("a"), &a),
            r#"SELECT 'a'::text, "v"::character varying(9), pg_catalog.to_jsonb("c") FROM "a"."t""#
        );
        assert_eq!(
            merged.branch(&member("b"), &b),
            r#"SELECT 'b'::text, "v", pg_catalog.to_jsonb("c") FROM "b"."t""#
        );
    }

    #[test]
    fn a_members_own_connection_name_gives_way() {
        let a = table(&[("connection_name", "integer"), ("id", "integer")]);
        let merged = merge("t", &[(member("a"), &a)], None, false);
        assert_eq!(shown(&merged), ["connection_name text", "id integer"]);
        assert_eq!(merged.warnings.len(), 1);
        assert_eq!(
            merged.branch(&member("a"), &a),
            r#"SELECT 'a'::text, "id" FROM "a"."t""#
        );
    }

    #[test]
    fn different_collations_become_the_default() {
        let mut a = table(&[("c", "text")]);
        a.columns[0].collation = Some("pg_catalog.\"C\"".into());
        let b = table(&[("c", "text")]);
        let merged = merge("t", &[(member("a"), &a), (member("b"), &b)], None, false);
        assert_eq!(
            merged.branch(&member("a"), &a),
            r#"SELECT 'a'::text, "c" COLLATE pg_catalog."default" FROM "a"."t""#
        );
        assert_eq!(
            merged.branch(&member("b"), &b),
            r#"SELECT 'b'::text, "c" FROM "b"."t""#
        );
    }

    fn made(columns: &[(&str, &str)], dependents: &[&str]) -> Made {
        let mut columns: Vec<_> = table(columns).columns.iter().map(ViewColumn::of).collect();
        columns.insert(
            0,
            ViewColumn {
                name: CONNECTION_NAME.into(),
                data_type: "text".into(),
                collation: None,
            },
        );
        Made {
            table: "t".into(),
            name: "t".into(),
            there: true,
            columns,
            dependents: dependents.iter().map(|one| (*one).to_owned()).collect(),
            ..Made::default()
        }
    }

    #[test]
    fn what_the_view_has_stays_first() {
        let there = made(&[("b", "text")], &[]);
        let a = table(&[("a", "text"), ("b", "text")]);
        let merged = merge("t", &[(member("a"), &a)], Some(&there), false);
        assert_eq!(shown(&merged), ["connection_name text", "b text", "a text"]);
        let gone = table(&[("a", "text")]);
        let merged = merge("t", &[(member("a"), &gone)], Some(&there), false);
        assert_eq!(shown(&merged), ["connection_name text", "a text"]);
    }

    #[test]
    fn under_peoples_views_columns_stay_and_members_that_do_not_fit_are_left_out() {
        let there = made(&[("id", "integer"), ("note", "text")], &["view v"]);
        let a = table(&[("id", "integer"), ("new", "date")]);
        let b = table(&[("id", "bigint")]);
        let having = [(member("a"), &a), (member("b"), &b)];
        let merged = merge("t", &having, Some(&there), false);
        assert_eq!(
            shown(&merged),
            [
                "connection_name text",
                "id integer",
                "note text",
                "new date"
            ]
        );
        assert_eq!(merged.left_out, BTreeSet::from(["b".to_owned()]));
        assert_eq!(
            merged.warnings,
            [
                "table \"t\" is shown without connection \"b\": its column id is bigint, here it is \
                 integer, and changing that would break or lose view v",
                "table \"t\" keeps column note, which no member has any more: dropping it would \
                 break or lose view v",
            ]
        );
        // For a while, and without a word.
        let there = made(&[("id", "integer")], &[]);
        let merged = merge("t", &having, Some(&there), true);
        assert_eq!(merged.left_out.len(), 1);
        assert_eq!(merged.warnings, [""; 0]);
    }
}
