//! What the session knows of the source, the hub, and of what people made there.

use std::collections::BTreeMap;

use spcd_core::sql::{ident, literal, qualified};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::source::{COLUMNS, Random, TABLES, TYPES, new_column, new_table};
use crate::support::{DEADLINE, Database, eventually, shared};

/// Rows as text, NULL as nothing.
pub type Rows = Vec<Vec<String>>;

/// Runs statements; the rows of all of them.
pub async fn rows(client: &Client, sql: &str) -> Rows {
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(error) => panic!("{sql}: {:?}", error.as_db_error()),
    };
    let mut rows = Rows::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let cell = |n| row.get(n).unwrap_or_default().to_owned();
            rows.push((0..row.len()).map(cell).collect());
        }
    }
    rows
}

/// A table, as far as it counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// By name: everything that an import says of it.
    pub columns: BTreeMap<String, String>,
    /// By name: its type alone.
    pub types: BTreeMap<String, String>,
    /// The table's options.
    pub options: String,
}

/// Something that people made.
#[derive(Debug, Clone)]
pub struct Thing {
    /// What it is called in a warning.
    name: String,
    /// What it hangs on: a table, and a column of it or the table as such.
    pub on: Vec<(String, Option<String>)>,
    /// A change of its column's type (of any column's, if it hangs on the table) would break it.
    pub stops_retype: bool,
    /// How it is taken away.
    gone: String,
}

impl Thing {
    /// What the warning about a table calls it.
    pub fn named(&self, _table: &str) -> String {
        self.name.clone()
    }
}

/// The hub, the source, and what is known of both.
pub struct Session {
    pub hub: Client,
    source: Client,
    pub random: Random,
    pub things: Vec<Thing>,
    made: usize,
}

impl Session {
    pub async fn new(hub: Client, source: Client, of: &Database, random: Random) -> Self {
        // A server of the test's own, for what a fresh import would be.
        let server = format!(
            "CREATE SCHEMA people;
             CREATE SERVER fresh FOREIGN DATA WRAPPER postgres_fdw
                 OPTIONS (host '127.0.0.1', port '{}', dbname {});
             CREATE USER MAPPING FOR PUBLIC SERVER fresh OPTIONS (user 'postgres');
             CREATE FUNCTION people.nothing() RETURNS trigger LANGUAGE plpgsql
                 AS 'BEGIN RETURN NEW; END';
             DO $$ BEGIN CREATE ROLE session_reader; EXCEPTION WHEN duplicate_object THEN END $$",
            shared().port(),
            literal(&of.name)
        );
        rows(&hub, &server).await;
        Self {
            hub,
            source,
            random,
            things: Vec::new(),
            made: 0,
        }
    }

    /// Twenty views, five materialized ones, and what else can hang on a table.
    pub async fn build(&mut self) {
        for (kind, count) in KINDS {
            for _ in 0..count {
                self.make(kind).await;
            }
        }
    }

    /// One thing is given up, another made.
    pub async fn people_change_their_minds(&mut self) {
        let n = self.random.below(self.things.len());
        let thing = self.things.remove(n);
        rows(&self.hub, &thing.gone).await;
        let kind = self.random.below(KINDS.len());
        self.make(KINDS[kind].0).await;
    }

    /// Takes everything away.
    pub async fn clear(&mut self) {
        for thing in std::mem::take(&mut self.things) {
            rows(&self.hub, &thing.gone).await;
        }
        rows(&self.hub, "DROP OWNED BY session_reader").await;
    }

    async fn make(&mut self, kind: Kind) {
        let shapes = self.shapes("sales").await;
        let tables: Vec<(&String, &Shape)> = (shapes.iter())
            .filter(|(_, shape)| !shape.columns.is_empty())
            .collect();
        let (table, shape) = self.random.pick(&tables);
        let columns: Vec<String> = shape.columns.keys().cloned().collect();
        let column = self.random.pick(&columns);
        self.made += 1;
        let number = self.made;
        let (t, c) = (qualified("sales", table), ident(&column));
        let of_column = vec![(table.clone(), Some(column.clone()))];
        let of_table = vec![(table.clone(), None)];
        let free = |things: &[Thing], on: &[(String, Option<String>)], name: &str| {
            !things
                .iter()
                .any(|thing| thing.on == on && thing.name == name)
        };
        // As the server describes objects: quoted where they must be.
        let quoted = rows(
            &self.hub,
            &format!(
                "SELECT pg_describe_object('pg_class'::regclass, {}::regclass, 0)",
                literal(&t)
            ),
        )
        .await
        .concat()
        .concat();
        let (sql, thing) = match kind {
            Kind::View | Kind::Matview => {
                let more = self.random.pick(&columns);
                let mut on = of_column;
                on.push((table.clone(), Some(more.clone())));
                let (word, letter, no_data) = match kind {
                    Kind::View => ("VIEW", "v", ""),
                    _ => ("MATERIALIZED VIEW", "m", " WITH NO DATA"),
                };
                let sql = format!(
                    "CREATE {word} people.{letter}{number} AS SELECT {c} AS one, {} AS two FROM {t}{no_data}",
                    ident(&more)
                );
                let thing = Thing {
                    name: format!("{} people.{letter}{number}", word.to_lowercase()),
                    on,
                    stops_retype: true,
                    gone: format!("DROP {word} people.{letter}{number}"),
                };
                (sql, thing)
            }
            Kind::Join => {
                let (other, other_shape) = self.random.pick(&tables);
                let others: Vec<String> = other_shape.columns.keys().cloned().collect();
                let more = self.random.pick(&others);
                let mut on = of_column;
                on.push((other.clone(), Some(more.clone())));
                let sql = format!(
                    "CREATE VIEW people.j{number} AS SELECT a.{c} AS one, b.{} AS two
                     FROM {t} a CROSS JOIN {} b",
                    ident(&more),
                    qualified("sales", other)
                );
                let thing = Thing {
                    name: format!("view people.j{number}"),
                    on,
                    stops_retype: true,
                    gone: format!("DROP VIEW people.j{number}"),
                };
                (sql, thing)
            }
            Kind::WholeRow => {
                let sql = format!(
                    "CREATE MATERIALIZED VIEW people.w{number} AS SELECT t FROM {t} t WITH NO DATA"
                );
                let thing = Thing {
                    name: format!("materialized view people.w{number}"),
                    on: of_table,
                    stops_retype: true,
                    gone: format!("DROP MATERIALIZED VIEW people.w{number}"),
                };
                (sql, thing)
            }
            Kind::Function => {
                let sql = format!(
                    "CREATE FUNCTION people.f{number}() RETURNS bigint LANGUAGE sql
                     BEGIN ATOMIC SELECT count({c}) FROM {t}; END"
                );
                let thing = Thing {
                    name: format!("function people.f{number}()"),
                    on: of_column,
                    stops_retype: true,
                    gone: format!("DROP FUNCTION people.f{number}()"),
                };
                (sql, thing)
            }
            Kind::Trigger => {
                let sql = format!(
                    "CREATE TRIGGER tr{number} BEFORE INSERT ON {t} FOR EACH ROW
                     WHEN (NEW.{c} IS NOT NULL) EXECUTE FUNCTION people.nothing()"
                );
                let thing = Thing {
                    name: format!("trigger tr{number} on {quoted}"),
                    on: of_column,
                    stops_retype: true,
                    gone: format!("DROP TRIGGER tr{number} ON {t}"),
                };
                (sql, thing)
            }
            Kind::Check => {
                let sql = format!(
                    "ALTER FOREIGN TABLE {t} ADD CONSTRAINT ch{number} CHECK ({c} IS NOT NULL)"
                );
                let thing = Thing {
                    name: format!("constraint ch{number} on {quoted}"),
                    on: of_column,
                    stops_retype: true,
                    gone: format!("ALTER FOREIGN TABLE {t} DROP CONSTRAINT ch{number}"),
                };
                (sql, thing)
            }
            Kind::Statistics => {
                let Some(more) = columns.iter().find(|more| **more != column) else {
                    return;
                };
                let mut on = of_column;
                on.push((table.clone(), Some(more.clone())));
                let sql = format!(
                    "CREATE STATISTICS people.s{number} (ndistinct) ON {c}, {} FROM {t}",
                    ident(more)
                );
                let thing = Thing {
                    name: format!("statistics object people.s{number}"),
                    on,
                    stops_retype: false,
                    gone: format!("DROP STATISTICS people.s{number}"),
                };
                (sql, thing)
            }
            Kind::Target => {
                let name = format!("the statistics target of column {column}");
                if !free(&self.things, &of_column, &name) {
                    return;
                }
                let sql = format!("ALTER FOREIGN TABLE {t} ALTER COLUMN {c} SET STATISTICS 500");
                let thing = Thing {
                    name,
                    on: of_column,
                    stops_retype: false,
                    gone: format!("ALTER FOREIGN TABLE {t} ALTER COLUMN {c} SET STATISTICS -1"),
                };
                (sql, thing)
            }
            Kind::ColumnGrant => {
                let name = format!("a grant on column {column}");
                if !free(&self.things, &of_column, &name) {
                    return;
                }
                let sql = format!("GRANT SELECT ({c}), UPDATE ({c}) ON {t} TO session_reader");
                let thing = Thing {
                    name,
                    on: of_column,
                    stops_retype: false,
                    gone: format!("REVOKE SELECT ({c}), UPDATE ({c}) ON {t} FROM session_reader"),
                };
                (sql, thing)
            }
            Kind::TableGrant => {
                let name = "a grant to session_reader".to_owned();
                if !free(&self.things, &of_table, &name) {
                    return;
                }
                let sql = format!("GRANT INSERT ON {t} TO session_reader");
                let thing = Thing {
                    name,
                    on: of_table,
                    stops_retype: false,
                    gone: format!("REVOKE INSERT ON {t} FROM session_reader"),
                };
                (sql, thing)
            }
            Kind::ColumnComment => {
                let name = format!("the comment on column {column}");
                if !free(&self.things, &of_column, &name) {
                    return;
                }
                let sql = format!("COMMENT ON COLUMN {t}.{c} IS 'number {number}'");
                let thing = Thing {
                    name,
                    on: of_column,
                    stops_retype: false,
                    gone: format!("COMMENT ON COLUMN {t}.{c} IS NULL"),
                };
                (sql, thing)
            }
            Kind::TableComment => {
                let name = "its comment".to_owned();
                if !free(&self.things, &of_table, &name) {
                    return;
                }
                let sql = format!("COMMENT ON FOREIGN TABLE {t} IS 'number {number}'");
                let thing = Thing {
                    name,
                    on: of_table,
                    stops_retype: false,
                    gone: format!("COMMENT ON FOREIGN TABLE {t} IS NULL"),
                };
                (sql, thing)
            }
        };
        rows(&self.hub, &sql).await;
        self.things.push(thing);
    }

    /// Everything that people made, word for word.
    pub async fn theirs(&self) -> Rows {
        rows(&self.hub, THEIRS).await
    }

    /// The tables of a schema.
    pub async fn shapes(&self, schema: &str) -> BTreeMap<String, Shape> {
        shapes(&self.hub, schema).await
    }

    /// What an import would make now.
    pub async fn fresh(&self) -> BTreeMap<String, Shape> {
        let import = "DROP SCHEMA IF EXISTS fresh CASCADE; CREATE SCHEMA fresh;
                      IMPORT FOREIGN SCHEMA public FROM SERVER fresh INTO fresh";
        rows(&self.hub, import).await;
        self.shapes("fresh").await
    }

    /// Has the source asked, and waits for what comes of it.
    pub async fn refresh(&self) {
        let id = rows(&self.hub, "SELECT spcd.refresh('{sales}')")
            .await
            .concat()
            .concat();
        let done = format!(
            "SELECT coalesce(error, '') FROM spcd.refresh_request
             WHERE id = {id} AND done_at IS NOT NULL"
        );
        let error = eventually("the source was asked", DEADLINE, || async {
            rows(&self.hub, &done).await.pop()
        })
        .await;
        assert_eq!(error, [""]);
    }

    /// Changes the source at random; says how.
    pub async fn change_source(&mut self) -> Vec<String> {
        let mut log = Vec::new();
        for _ in 0..=self.random.below(4) {
            let sql = self.change().await;
            rows(&self.source, &sql).await;
            log.push(sql);
        }
        log
    }

    async fn change(&mut self) -> String {
        let there = "SELECT c.relname, k.attname FROM pg_class c
                     JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum > 0 AND NOT k.attisdropped
                     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
                     ORDER BY 1, k.attnum";
        let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in rows(&self.source, there).await {
            tables
                .entry(row[0].clone())
                .or_default()
                .push(row[1].clone());
        }
        let missing: Vec<&str> = (TABLES.iter().copied())
            .filter(|table| !tables.contains_key(*table))
            .collect();
        let names: Vec<String> = tables.keys().cloned().collect();
        let Some(columns) = (!names.is_empty()).then(|| self.random.pick(&names)) else {
            return new_table(TABLES[0], &mut self.random);
        };
        let (table, columns) = (columns.clone(), tables[&columns].clone());
        let t = ident(&table);
        let some = |random: &mut Random| ident(&random.pick(&columns));
        match self.random.below(20) {
            // What was refused becomes what the hub has.
            0..=4 => self.heal().await,
            5..=7 => {
                let free: Vec<&str> = (COLUMNS.iter().copied())
                    .filter(|column| !columns.iter().any(|there| there == column))
                    .collect();
                match free.is_empty() {
                    true => String::new(),
                    false => {
                        let column = self.random.pick(&free);
                        let column = new_column(column, &mut self.random);
                        format!("ALTER TABLE {t} ADD COLUMN {column}")
                    }
                }
            }
            8..=10 if columns.len() > 1 => {
                format!("ALTER TABLE {t} DROP COLUMN {}", some(&mut self.random))
            }
            11..=13 => {
                let (column, to) = (some(&mut self.random), self.random.pick(&TYPES));
                format!("ALTER TABLE {t} ALTER COLUMN {column} TYPE {to} USING NULL")
            }
            14 => {
                let free = COLUMNS
                    .iter()
                    .find(|column| !columns.iter().any(|there| there == *column));
                match free {
                    Some(to) => {
                        let column = some(&mut self.random);
                        format!("ALTER TABLE {t} RENAME COLUMN {column} TO {}", ident(to))
                    }
                    None => String::new(),
                }
            }
            15 => {
                let (column, word) = (some(&mut self.random), self.random.pick(&["SET", "DROP"]));
                format!("ALTER TABLE {t} ALTER COLUMN {column} {word} NOT NULL")
            }
            16 => format!("DROP TABLE {t}"),
            17 => {
                // The same columns in another order are no change.
                let list: Vec<String> = columns.iter().rev().map(|column| ident(column)).collect();
                format!(
                    "CREATE TABLE other AS SELECT {} FROM {t}; DROP TABLE {t};
                     ALTER TABLE other RENAME TO {t}",
                    list.join(", ")
                )
            }
            18 | 19 if !missing.is_empty() => {
                let table = self.random.pick(&missing);
                new_table(table, &mut self.random)
            }
            _ => String::new(),
        }
    }

    /// Makes one of the tables that differ what the hub has.
    async fn heal(&mut self) -> String {
        let (there, fresh) = (self.shapes("sales").await, self.fresh().await);
        let differ: Vec<(&String, &Shape)> = (there.iter())
            .filter(|(name, shape)| fresh.get(*name) != Some(*shape))
            .collect();
        if differ.is_empty() {
            return String::new();
        }
        let (table, shape) = self.random.pick(&differ);
        let t = ident(table);
        let columns: Vec<String> = (shape.types.iter())
            .map(|(column, of_type)| format!("{} {of_type}", ident(column)))
            .collect();
        format!(
            "DROP TABLE IF EXISTS {t}; CREATE TABLE {t} ({})",
            columns.join(", ")
        )
    }
}

async fn shapes(hub: &Client, schema: &str) -> BTreeMap<String, Shape> {
    let sql = format!(
        "SELECT c.relname, coalesce(k.attname, ''),
                concat_ws('/', format_type(k.atttypid, k.atttypmod), k.attnotnull,
                    k.attcollation::regcollation, pg_get_expr(d.adbin, d.adrelid), k.attgenerated,
                    coalesce((SELECT o.option_value FROM pg_options_to_table(k.attfdwoptions) o
                              WHERE o.option_name = 'column_name'), k.attname)),
                format_type(k.atttypid, k.atttypmod),
                ARRAY(SELECT o FROM unnest(f.ftoptions) o WHERE o !~ '^fetch_size=')
         FROM pg_class c
         JOIN pg_foreign_table f ON f.ftrelid = c.oid
         LEFT JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum > 0 AND NOT k.attisdropped
         LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = k.attnum
         WHERE c.relnamespace = '{schema}'::regnamespace"
    );
    let mut shapes: BTreeMap<String, Shape> = BTreeMap::new();
    for row in rows(hub, &sql).await {
        let shape = shapes.entry(row[0].clone()).or_default();
        shape.options = row[4].clone();
        if !row[1].is_empty() {
            shape.columns.insert(row[1].clone(), row[2].clone());
            shape.types.insert(row[1].clone(), row[3].clone());
        }
    }
    shapes
}

/// What hangs on tables.
#[derive(Debug, Clone, Copy)]
enum Kind {
    View,
    Join,
    Matview,
    WholeRow,
    Function,
    Trigger,
    Check,
    Statistics,
    Target,
    ColumnGrant,
    TableGrant,
    ColumnComment,
    TableComment,
}

const KINDS: [(Kind, usize); 13] = [
    (Kind::View, 15),
    (Kind::Join, 5),
    (Kind::Matview, 4),
    (Kind::WholeRow, 1),
    (Kind::Function, 2),
    (Kind::Trigger, 4),
    (Kind::Check, 4),
    (Kind::Statistics, 3),
    (Kind::Target, 2),
    (Kind::ColumnGrant, 4),
    (Kind::TableGrant, 2),
    (Kind::ColumnComment, 4),
    (Kind::TableComment, 2),
];

const THEIRS: &str = "
    SELECT 'relation', c.oid::text, c.relname::text, pg_get_viewdef(c.oid)
    FROM pg_class c WHERE c.relnamespace = 'people'::regnamespace AND c.relkind IN ('v', 'm')
    UNION ALL
    SELECT 'function', p.oid::text, p.proname::text, pg_get_function_sqlbody(p.oid)
    FROM pg_proc p WHERE p.pronamespace = 'people'::regnamespace
    UNION ALL
    SELECT 'trigger', t.oid::text, t.tgname, pg_get_triggerdef(t.oid)
    FROM pg_trigger t WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'check', q.oid::text, q.conname, pg_get_constraintdef(q.oid)
    FROM pg_constraint q JOIN pg_class c ON c.oid = q.conrelid
    WHERE c.relnamespace = 'sales'::regnamespace AND q.contype = 'c'
    UNION ALL
    SELECT 'statistics', '', s.stxname, pg_get_statisticsobjdef(s.oid)
    FROM pg_statistic_ext s
    UNION ALL
    SELECT 'target', c.oid::text, k.attname, k.attstattarget::text
    FROM pg_attribute k JOIN pg_class c ON c.oid = k.attrelid
    WHERE c.relnamespace = 'sales'::regnamespace AND k.attstattarget > 0
    UNION ALL
    SELECT 'column grant', c.oid::text, k.attname, k.attacl::text
    FROM pg_attribute k JOIN pg_class c ON c.oid = k.attrelid
    WHERE c.relnamespace = 'sales'::regnamespace AND k.attacl IS NOT NULL AND NOT k.attisdropped
    UNION ALL
    SELECT 'grant', c.oid::text, c.relname, c.relacl::text
    FROM pg_class c
    WHERE c.relnamespace = 'sales'::regnamespace AND c.relacl::text LIKE '%session_reader%'
    UNION ALL
    SELECT 'comment', c.oid::text, k.attname, d.description
    FROM pg_description d
    JOIN pg_class c ON d.classoid = 'pg_class'::regclass AND c.oid = d.objoid
    LEFT JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = d.objsubid AND d.objsubid > 0
    WHERE c.relnamespace = 'sales'::regnamespace
    ORDER BY 1, 2, 3, 4";
