//! Options that make queries of Postgres sources fast: what spcd sets, and when a user's value stays.
//!
//! spcd records the values that it sets. An existing option with another value was set by a user, and
//! wins over the default; one in a file wins over both.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::diff::{Column, FETCH_SIZE, Table};
use crate::model::{ForeignSource, TUNED_OPTIONS};

/// Values of [`TUNED_OPTIONS`] that spcd has set for a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tuning {
    /// Options of the server.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub server: BTreeMap<String, String>,
    /// `fetch_size` of the tables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, String>,
}

/// The server and the tables of a connection, as they exist.
#[derive(Debug, Clone, Copy)]
pub struct Existing<'a> {
    /// Options of the server; `None`: no server of the same wrapper.
    pub server: Option<&'a BTreeMap<String, String>>,
    /// The tables.
    pub tables: &'a [Table],
    /// The values that spcd has set.
    pub tuning: &'a Tuning,
}

/// Statistics of a source's table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TableStatistics {
    /// Number of pages (`relpages`).
    pub pages: f64,
    /// Number of rows (`reltuples`).
    pub rows: f64,
    /// Number of pages that VACUUM has found visible to all (`relallvisible`).
    pub visible_pages: f64,
    /// Number of pages of the values that are stored out of line.
    pub toast_pages: f64,
}

/// Size of a page of the source, in bytes.
const PAGE_BYTES: f64 = 8192.0;
/// Minimum number of pages for an average: fewer are mostly empty.
const MIN_PAGES: f64 = 8.0;
/// Assumed ratio of compression of values out of line.
const TOAST_COMPRESSION: f64 = 4.0;
/// Amount of data of one fetch, in bytes.
const FETCH_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
/// Limits of the number of rows of a fetch.
const MIN_FETCH_SIZE: u32 = 100;
const MAX_FETCH_SIZE: u32 = 50_000;
/// Limit for a table without statistics whose rows may have any size.
const MAX_UNKNOWN_FETCH_SIZE: u32 = 1_000;
/// Limit for one with statistics on which VACUUM never ran: only VACUUM counts the pages of values out of
/// line. Autovacuum runs once there are about 2 MiB of them.
const MAX_UNBOUNDED_FETCH_SIZE: u32 = 10_000;
/// Size of the header of a row, and the assumed size of a value without limit, in bytes.
const ROW_HEADER_BYTES: u32 = 24;
const UNBOUNDED_BYTES: u32 = 64;

/// Returns the number of rows for which a fetch takes about 4 MiB.
pub fn default_fetch_size(columns: &[Column], statistics: Option<TableStatistics>) -> u32 {
    let sizes: Vec<Option<u32>> = columns
        .iter()
        .map(|column| value_bytes(&column.data_type))
        .collect();
    let is_average = |of: &TableStatistics| of.pages >= MIN_PAGES && of.rows >= 1.0;
    if let Some(of) = statistics.filter(is_average) {
        let pages = of.pages + TOAST_COMPRESSION * of.toast_pages;
        let is_vacuumed = of.toast_pages >= 1.0 || of.visible_pages >= 1.0;
        let limit = match sizes.contains(&None) && !is_vacuumed {
            true => MAX_UNBOUNDED_FETCH_SIZE,
            false => MAX_FETCH_SIZE,
        };
        return rows_of(pages * PAGE_BYTES / of.rows, limit);
    }
    let limit = match sizes.contains(&None) {
        true => MAX_UNKNOWN_FETCH_SIZE,
        false => MAX_FETCH_SIZE,
    };
    let values = sizes
        .into_iter()
        .map(|size| size.unwrap_or(UNBOUNDED_BYTES));
    let row = values.fold(ROW_HEADER_BYTES, u32::saturating_add);
    rows_of(f64::from(row), limit)
}

/// Returns the number of rows of that size in a fetch, with two significant digits.
fn rows_of(row_bytes: f64, limit: u32) -> u32 {
    let rows = (FETCH_BYTES / row_bytes.max(1.0)).floor();
    let rows = rows.clamp(f64::from(MIN_FETCH_SIZE), f64::from(limit));
    let unit = 10_f64.powf(rows.log10().floor() - 1.0);
    // Within the limits, which are far below the type's.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rounded = ((rows / unit).floor() * unit) as u32;
    rounded.max(MIN_FETCH_SIZE)
}

/// Returns the maximum size of a type's values in bytes; `None` if they have no limit.
fn value_bytes(data_type: &str) -> Option<u32> {
    if data_type.ends_with(']') {
        return None;
    }
    let (name, modifier) = match data_type.split_once('(') {
        Some((name, rest)) => (name, rest.split_once(')').map(|(inside, _)| inside)),
        None => (data_type, None),
    };
    match name {
        "boolean" | "\"char\"" => Some(1),
        "smallint" => Some(2),
        "integer" | "real" | "date" | "oid" => Some(4),
        "name" => Some(64),
        "character varying" | "character" => modifier.and_then(|length| length.parse().ok()),
        "bigint" | "double precision" | "money" => Some(8),
        "uuid" | "numeric" | "inet" | "cidr" | "interval" => Some(16),
        _ if name.starts_with("timestamp") || name.starts_with("time ") => Some(12),
        _ => None,
    }
}

/// Sets `fetch_size` of a source's tables. A value of the server applies to all tables that have none.
pub fn set_fetch_sizes(
    tables: &mut [Table],
    statistics: &BTreeMap<String, TableStatistics>,
    target: &ForeignSource,
) {
    let fixed = target.import.fetch_size;
    if !target.is_tuned() || fixed.is_none() && target.has_written_option(FETCH_SIZE) {
        return;
    }
    for table in tables {
        let rows = fixed.unwrap_or_else(|| {
            default_fetch_size(&table.columns, statistics.get(&table.name).copied())
        });
        let options = &mut table.options;
        options.insert(FETCH_SIZE.to_owned(), rows.to_string());
    }
}

/// Returns the desired tables with the `fetch_size` that each is to have: a user's, or the one that the
/// table has unless it is off by more than a factor of 2.
pub fn tuned_tables<'a>(
    target: &ForeignSource,
    existing: Existing<'_>,
    desired: &'a [Table],
) -> Cow<'a, [Table]> {
    if !target.is_tuned() || target.import.fetch_size.is_some() {
        return Cow::Borrowed(desired);
    }
    let is_server_set = is_set_by_user(target, existing, FETCH_SIZE);
    let there = tables_by_name(existing.tables);
    let size = |table: &Table| {
        let name = table.name.as_str();
        let default = table.options.get(FETCH_SIZE);
        let old = there.get(name).copied();
        if let Some(users) = old.and_then(|old| users_fetch_size(existing.tuning, old, table)) {
            return Some(users.clone());
        }
        if is_server_set {
            return None;
        }
        let has = old.and_then(|old| old.options.get(FETCH_SIZE));
        match (has, default) {
            (Some(has), Some(default)) if is_near(has, default) => Some(has.clone()),
            _ => default.cloned(),
        }
    };
    let mut tables = Cow::Borrowed(desired);
    for (at, table) in desired.iter().enumerate() {
        let size = size(table);
        if size.as_ref() == table.options.get(FETCH_SIZE) {
            continue;
        }
        let options = &mut tables.to_mut()[at].options;
        match size {
            Some(size) => options.insert(FETCH_SIZE.to_owned(), size),
            None => options.remove(FETCH_SIZE),
        };
    }
    tables
}

/// Returns the options of the server: those of the file and the defaults, and instead of defaults what a
/// user has set. `extensions` are those that both sides have, if that is known.
pub fn server_options(
    target: &ForeignSource,
    existing: Existing<'_>,
    extensions: Option<&[String]>,
) -> BTreeMap<String, String> {
    let mut options = target.server_options();
    if !target.is_tuned() {
        return options;
    }
    for option in TUNED_OPTIONS {
        if target.has_written_option(option) {
            continue;
        }
        let has = existing.server.and_then(|server| server.get(option));
        let keep = is_set_by_user(target, existing, option);
        let default = match (option, extensions) {
            ("extensions", Some([])) => None,
            ("extensions", Some(names)) => Some(extension_list(names)),
            ("extensions", None) => has.cloned(),
            _ => options.get(option).cloned(),
        };
        match has.filter(|_| keep).cloned().or(default) {
            Some(value) => options.insert(option.to_owned(), value),
            None => options.remove(option),
        };
    }
    options
}

/// Returns the values that spcd has set once the server has these options and the tables exist.
pub fn tuning_after(
    target: &ForeignSource,
    existing: Existing<'_>,
    server: &BTreeMap<String, String>,
    after: &[Table],
) -> Tuning {
    if !target.is_tuned() {
        return Tuning::default();
    }
    let is_ours = |option: &str| !is_set_by_user(target, existing, option);
    let options = TUNED_OPTIONS.into_iter().filter(|option| is_ours(option));
    let of_server =
        options.filter_map(|option| Some((option.to_owned(), server.get(option)?.clone())));
    let there = tables_by_name(existing.tables);
    let is_fixed = target.import.fetch_size.is_some();
    let of_tables = after.iter().filter_map(|table| {
        let size = table.options.get(FETCH_SIZE)?;
        let old = there.get(table.name.as_str());
        let users = old.and_then(|old| users_fetch_size(existing.tuning, old, table));
        (is_fixed || users != Some(size)).then(|| (table.name.clone(), size.clone()))
    });
    Tuning {
        server: of_server.collect(),
        tables: of_tables.collect(),
    }
}

/// Returns whether server and tables need no change for speed, and differ in no other option of the
/// server. Missing defaults are no difference: the next import sets them.
pub fn is_tuned_as_desired(target: &ForeignSource, existing: Existing<'_>) -> bool {
    let desired = target.server_options();
    if !target.is_tuned() {
        return existing.server == Some(&desired);
    }
    let is_compared =
        |option: &str| !TUNED_OPTIONS.contains(&option) || target.has_written_option(option);
    let compared = |options: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        let pairs = options.iter().filter(|(name, _)| is_compared(name));
        pairs
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    let is_server_same = existing
        .server
        .is_some_and(|server| compared(server) == compared(&desired));
    let size = |table: &Table| table.options.get(FETCH_SIZE).cloned();
    let mut tables = existing.tables.iter();
    let are_tables_same = match target.import.fetch_size {
        Some(rows) => tables.all(|table| size(table) == Some(rows.to_string())),
        // The user's value of the server applies to tables without one.
        None => {
            let is_ours = |table: &Table| {
                let ours = existing.tuning.tables.get(&table.name);
                ours.is_some() && size(table).as_ref() == ours
            };
            !is_set_by_user(target, existing, FETCH_SIZE) || !tables.any(is_ours)
        }
    };
    is_server_same && are_tables_same
}

/// Whether a user has set the option of the server, and no file gives it.
fn is_set_by_user(target: &ForeignSource, existing: Existing<'_>, option: &str) -> bool {
    let has = existing.server.and_then(|server| server.get(option));
    !target.has_written_option(option)
        && has.is_some_and(|has| existing.tuning.server.get(option) != Some(has))
        // Versions that recorded nothing set no such option but from files.
        && has != target.server.get(option).map(|default| &default.value)
}

fn tables_by_name(tables: &[Table]) -> BTreeMap<&str, &Table> {
    let tables = tables.iter();
    tables.map(|table| (table.name.as_str(), table)).collect()
}

/// Returns the `fetch_size` of an existing table that a user has set. A table that leads elsewhere was
/// exchanged for another one: its value is none for this table.
fn users_fetch_size<'a>(tuning: &Tuning, old: &'a Table, new: &Table) -> Option<&'a String> {
    let others = |table: &Table| {
        let mut options = table.options.clone();
        options.remove(FETCH_SIZE);
        options
    };
    let has = old.options.get(FETCH_SIZE)?;
    let is_ours = tuning.tables.get(&new.name) == Some(has);
    (!is_ours && others(old) == others(new)).then_some(has)
}

/// Whether two numbers of rows differ by a factor of at most 2.
fn is_near(a: &str, b: &str) -> bool {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a <= b.saturating_mul(2) && b <= a.saturating_mul(2),
        _ => false,
    }
}

/// Returns the value of the option `extensions`. Names that are not plain words are quoted.
fn extension_list(names: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    let quoted = names.iter().map(|name| match name.chars().all(is_plain) {
        true => name.clone(),
        false => crate::sql::ident(name),
    });
    quoted.collect::<Vec<_>>().join(", ")
}

/// Returns whether operators and functions of the hub's version of an extension exist in the source's:
/// it is the same or a later one of the same major version.
pub fn is_shippable(hub_version: &str, source_version: &str) -> bool {
    let numbers = |version: &str| -> Vec<u32> {
        let parts = version.split(|c: char| !c.is_ascii_digit());
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    let (hub, source) = (numbers(hub_version), numbers(source_version));
    hub_version == source_version
        || (!hub.is_empty() && hub.first() == source.first() && hub <= source)
}

#[cfg(test)]
mod tests;
