//! Builds SQL statements. Every quoted name and every literal of the program is made here.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::diff::{Column, ColumnChange, Renames, Table, TableChange};

/// Returns a quoted name. Names are always quoted, so that no list of keywords is needed.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns `schema.name`, both quoted.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// Returns a string literal that does not depend on `standard_conforming_strings`.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// Returns `ARRAY['a','b']::text[]`.
pub fn text_array<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    let items: Vec<_> = items.into_iter().map(literal).collect();
    format!("ARRAY[{}]::text[]", items.join(","))
}

/// Returns ` OPTIONS (a 'x', b 'y')`, or an empty text.
fn options<'a>(options: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let list: Vec<_> = options
        .into_iter()
        .map(|(name, value)| format!("{} {}", ident(name), literal(value)))
        .collect();
    match list.is_empty() {
        true => String::new(),
        false => format!(" OPTIONS ({})", list.join(", ")),
    }
}

/// Returns the ` OPTIONS (ADD …, SET …, DROP …)` that changes `old` to `new`; `None` if they are
/// equal.
pub fn option_changes(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) -> Option<String> {
    let mut list = Vec::new();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        list.push(format!("DROP {}", ident(name)));
    }
    for (name, value) in new {
        match old.get(name) {
            Some(old) if old == value => {}
            Some(_) => list.push(format!("SET {} {}", ident(name), literal(value))),
            None => list.push(format!("ADD {} {}", ident(name), literal(value))),
        }
    }
    (!list.is_empty()).then(|| format!(" OPTIONS ({})", list.join(", ")))
}

/// Creates a foreign server.
pub fn create_server(name: &str, wrapper: &str, with: &BTreeMap<String, String>) -> String {
    format!(
        "CREATE SERVER {} FOREIGN DATA WRAPPER {}{};\n",
        ident(name),
        ident(wrapper),
        options(with)
    )
}

/// Alters a server's options; empty if they agree.
pub fn alter_server(
    name: &str,
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) -> String {
    match option_changes(old, new) {
        Some(options) => format!("ALTER SERVER {}{options};\n", ident(name)),
        None => String::new(),
    }
}

/// Drops a server and spcd's user mapping. Another user mapping makes the statement fail.
pub fn drop_server(name: &str) -> String {
    let name = ident(name);
    format!("DROP USER MAPPING IF EXISTS FOR PUBLIC SERVER {name};\nDROP SERVER {name};\n")
}

/// Changes an option of a lane that means nothing, so that sessions which use it connect again.
pub fn touch_lane(server: &str, text: &str) -> String {
    format!(
        "SELECT spcd.touch_lane({}, {});\n",
        literal(server),
        literal(text)
    )
}

/// Records that spcd created the server of a lane.
pub fn record_lane(server: &str) -> String {
    format!("SELECT spcd.record_lane({});\n", literal(server))
}

/// Records that the server of a lane is gone.
pub fn forget_lane(server: &str) -> String {
    format!(
        "DELETE FROM spcd.gateway_lane WHERE server_name = {};\n",
        literal(server)
    )
}

/// Creates a schema.
pub fn create_schema(name: &str) -> String {
    format!("CREATE SCHEMA {};\n", ident(name))
}

/// Renames a schema.
pub fn rename_schema(name: &str, to: &str) -> String {
    format!("ALTER SCHEMA {} RENAME TO {};\n", ident(name), ident(to))
}

/// Revokes USAGE on a schema from `spcd_users`.
pub fn revoke_schema(name: &str) -> String {
    format!("REVOKE USAGE ON SCHEMA {} FROM spcd_users;\n", ident(name))
}

/// Drops an empty schema.
pub fn drop_schema(name: &str) -> String {
    format!("DROP SCHEMA {};\n", ident(name))
}

/// Drops all views of an aggregator. Users' dependent objects make it fail, unless `dependents`
/// drops them too.
pub fn drop_views(aggregator: &str, dependents: bool) -> String {
    format!(
        "SELECT spcd.drop_views({}, {dependents});\n",
        literal(aggregator)
    )
}

/// Drops a foreign table with users' dependent objects: only after `--drop-dependents`.
pub fn drop_with_dependents(schema: &str, table: &str) -> String {
    format!("DROP FOREIGN TABLE {} CASCADE;\n", qualified(schema, table))
}

/// Grants USAGE on a schema to `spcd_users`.
pub fn grant_schema(name: &str) -> String {
    format!("GRANT USAGE ON SCHEMA {} TO spcd_users;\n", ident(name))
}

/// Grants SELECT on tables, at least one, to `spcd_users`.
pub fn grant_tables<'a>(schema: &str, tables: impl IntoIterator<Item = &'a str>) -> String {
    let tables: Vec<_> = (tables.into_iter())
        .map(|table| qualified(schema, table))
        .collect();
    format!("GRANT SELECT ON {} TO spcd_users;\n", tables.join(", "))
}

/// Creates or alters a server's user mapping from the options in `pg_temp.spcd_secret`.
pub fn set_user_mapping(server: &str) -> String {
    format!("SELECT spcd.set_user_mapping({});\n", literal(server))
}

/// Creates the user mappings of new servers from the options in `pg_temp.spcd_secret`.
pub fn create_user_mappings<'a>(servers: impl IntoIterator<Item = &'a str>) -> String {
    format!(
        "SELECT spcd.create_user_mappings({});\n",
        text_array(servers)
    )
}

/// Imports a remote schema into a local one; `limit` is a LIMIT TO or EXCEPT clause.
pub fn import(
    remote: &str,
    server: &str,
    into: &str,
    limit: &str,
    with: &BTreeMap<String, String>,
) -> String {
    format!(
        "IMPORT FOREIGN SCHEMA {}{limit} FROM SERVER {} INTO {}{};\n",
        ident(remote),
        ident(server),
        ident(into),
        options(with)
    )
}

/// Returns the clause that limits an import to these tables, at least one.
pub fn limit_to<'a>(tables: impl IntoIterator<Item = &'a str>) -> String {
    let tables: Vec<_> = tables.into_iter().map(ident).collect();
    format!(" LIMIT TO ({})", tables.join(", "))
}

/// Returns the clause that excludes tables, at least one, from an import.
pub fn except<'a>(tables: impl IntoIterator<Item = &'a str>) -> String {
    let tables: Vec<_> = tables.into_iter().map(ident).collect();
    format!(" EXCEPT ({})", tables.join(", "))
}

/// Creates a foreign table.
pub fn create_table(schema: &str, server: &str, table: &Table, out: &mut String) {
    let _ = write!(
        out,
        "CREATE FOREIGN TABLE {} (",
        qualified(schema, &table.name)
    );
    for (n, column) in table.columns.iter().enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        column_definition(column, out);
    }
    let _ = writeln!(
        out,
        ") SERVER {}{};",
        ident(server),
        options(&table.options)
    );
}

/// Adds a CHECK constraint that lists the values of a column.
pub fn add_check<'a>(
    schema: &str,
    table: &str,
    column: &str,
    values: impl IntoIterator<Item = &'a str>,
) -> String {
    format!(
        "ALTER FOREIGN TABLE {} ADD CHECK ({} = ANY ({}));\n",
        qualified(schema, table),
        ident(column),
        text_array(values)
    )
}

fn column_definition(column: &Column, out: &mut String) {
    let _ = write!(
        out,
        "{} {}{}",
        ident(&column.name),
        column.data_type,
        options(&column.options)
    );
    if let Some(collation) = &column.collation {
        let _ = write!(out, " COLLATE {collation}");
    }
    if let Some(default) = &column.default {
        let _ = write!(out, " DEFAULT {default}");
    }
    if let Some(expression) = &column.generated {
        let _ = write!(out, " GENERATED ALWAYS AS ({expression}) STORED");
    }
    if column.not_null {
        out.push_str(" NOT NULL");
    }
}

/// Appends the statements of a change of one table.
pub fn change_table(schema: &str, server: &str, change: &TableChange, out: &mut String) {
    match change {
        TableChange::Create(table) => create_table(schema, server, table, out),
        TableChange::Drop(name) => {
            let _ = writeln!(out, "DROP FOREIGN TABLE {};", qualified(schema, name));
        }
        TableChange::Rebuild { table, .. } => {
            let _ = writeln!(
                out,
                "DROP FOREIGN TABLE {};",
                qualified(schema, &table.name)
            );
            create_table(schema, server, table, out);
        }
        TableChange::Alter {
            table,
            columns,
            options,
        } => {
            let mut parts: Vec<String> = columns.iter().map(alter_column).collect();
            parts.extend(
                options
                    .as_ref()
                    .and_then(|(old, new)| option_changes(old, new))
                    .map(|changes| changes.trim_start().to_owned()),
            );
            if !parts.is_empty() {
                let _ = writeln!(
                    out,
                    "ALTER FOREIGN TABLE {} {};",
                    qualified(schema, table),
                    parts.join(", ")
                );
            }
        }
    }
}

/// Renames tables, and then their columns.
pub fn rename_tables(schema: &str, renames: &Renames) -> String {
    let mut out = String::new();
    for step in renames.table_steps() {
        let (table, to) = (qualified(schema, &step.from), ident(&step.to));
        let _ = writeln!(out, "ALTER FOREIGN TABLE {table} RENAME TO {to};");
    }
    for one in renames.tables() {
        let table = qualified(schema, &one.table.to);
        for step in one.column_steps() {
            let (from, to) = (ident(&step.from), ident(&step.to));
            let _ = writeln!(
                out,
                "ALTER FOREIGN TABLE {table} RENAME COLUMN {from} TO {to};"
            );
        }
    }
    out
}

fn alter_column(change: &ColumnChange) -> String {
    let alter = |name: &str, rest: String| format!("ALTER COLUMN {} {rest}", ident(name));
    match change {
        ColumnChange::Add(column) => {
            let mut text = "ADD COLUMN ".to_owned();
            column_definition(column, &mut text);
            text
        }
        ColumnChange::Drop { name, .. } => format!("DROP COLUMN {}", ident(name)),
        ColumnChange::Retype {
            name,
            data_type,
            collation,
            ..
        } => {
            let collate = collation.as_ref().map(|c| format!(" COLLATE {c}"));
            alter(
                name,
                format!("TYPE {data_type}{}", collate.unwrap_or_default()),
            )
        }
        ColumnChange::NotNull { name, set } => alter(
            name,
            format!("{} NOT NULL", if *set { "SET" } else { "DROP" }),
        ),
        ColumnChange::Default { name, expression } => alter(
            name,
            match expression {
                Some(expression) => format!("SET DEFAULT {expression}"),
                None => "DROP DEFAULT".to_owned(),
            },
        ),
        ColumnChange::Options { name, old, new } => alter(
            name,
            option_changes(old, new)
                .unwrap_or_default()
                .trim_start()
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_literals_are_quoted_whatever_they_hold() {
        assert_eq!(ident(r#"a"b.c d"#), r#""a""b.c d""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
        assert_eq!(text_array(["a", "b'"]), "ARRAY['a','b''']::text[]");
    }

    #[test]
    fn options_change_in_the_smallest_step() {
        let map = |list: &[(&str, &str)]| {
            list.iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let old = map(&[("host", "a"), ("port", "1"), ("gone", "x")]);
        let new = map(&[("host", "a"), ("port", "2"), ("fresh", "y")]);
        assert_eq!(
            option_changes(&old, &new).as_deref(),
            Some(r#" OPTIONS (DROP "gone", ADD "fresh" 'y', SET "port" '2')"#)
        );
        assert_eq!(option_changes(&old, &old), None);
    }
}
