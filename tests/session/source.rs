//! What a source holds, at random.

use spcd_core::sql::ident;
use tokio_postgres::Client;

use super::model::rows;

/// Numbers that are the same for the same seed (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}
pub const TYPES: [&str; 8] = [
    "integer",
    "bigint",
    "text",
    "numeric(8,2)",
    "date",
    "character varying(30)",
    "integer[]",
    "timestamp with time zone",
];
pub const TABLES: [&str; 12] = [
    "orders",
    "people",
    "Items",
    "T \"x\" 'y'",
    "ä ö",
    "events",
    "users",
    "hosts",
    "select",
    "a.b",
    "logs",
    "tags",
];
pub const COLUMNS: [&str; 9] = [
    "id", "note", "total", "C \"d\"", "ü", "when", "Kind", "x'y", "last",
];

/// What a source begins with.
pub async fn first_tables(source: &Client, random: &mut Random) {
    let sql: String = TABLES
        .iter()
        .map(|table| new_table(table, random))
        .collect();
    rows(source, &sql).await;
}

pub fn new_table(table: &str, random: &mut Random) -> String {
    let columns: Vec<String> = COLUMNS
        .iter()
        .filter(|_| !random.one_in(4))
        .map(|column| (*column).to_owned())
        .collect::<Vec<_>>()
        .into_iter()
        .map(|column| new_column(&column, random))
        .collect();
    format!("CREATE TABLE {} ({});", ident(table), columns.join(", "))
}

pub fn new_column(column: &str, random: &mut Random) -> String {
    let not_null = if random.one_in(4) { " NOT NULL" } else { "" };
    format!("{} {}{not_null}", ident(column), random.pick(&TYPES))
}
