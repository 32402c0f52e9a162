//! What a CSV file holds, as the server that reads it will see it.
//!
//! The reader of the rows is file_fdw, and with it the server's COPY: where its rules and those of
//! RFC 4180 part ways (blank lines, quotes in the middle of a value, mixed line ends) only COPY's
//! count, for a table whose rows it refuses cannot be read. So the rows are taken apart here by
//! COPY's rules, and a type is given only where every value of the file bears it out.

mod fault;
mod kind;
mod records;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Csv;
use crate::shape::{Column, Table};
use kind::Kind;
use records::Records;

pub use fault::Fault;

/// As many columns as a table may have.
const MAX_COLUMNS: usize = 1600;
/// As long as a name may be, in bytes.
const MAX_NAME: usize = 63;
/// Names that every table has already.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "cmax", "xmax", "cmin", "xmin", "ctid"];
/// What some programs write before UTF-8.
const MARK: &str = "\u{feff}";

/// The columns of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sheet {
    /// Name and type, in order.
    pub columns: Vec<(String, &'static str)>,
    /// The first row names them.
    pub header: bool,
}

/// Tells a file's columns from its bytes: from all of them, or, unless `whole`, from its
/// beginning. Of a part only the names are told: what comes later may contradict any type but
/// `text`, and the table could not be read.
pub fn read(bytes: &[u8], whole: bool, csv: &Csv) -> Result<Sheet, Fault> {
    let text = fault::text(bytes, whole)?;
    if text.trim_start_matches(MARK).is_empty() {
        return Err(Fault::Empty);
    }
    let mut records = Records::new(text, whole, csv.separator.unwrap_or(','));
    let mut row = records::Row::default();
    let refuse_comment = |row: &records::Row| match csv.comment {
        Some(sign) if row.begins_with(sign) => Err(Fault::Comment {
            line: row.line(),
            sign,
        }),
        _ => Ok(()),
    };
    if !records.next(&mut row)? {
        return Err(Fault::EndlessLine);
    }
    refuse_comment(&row)?;
    let first: Vec<String> = (row.values().enumerate())
        .map(|(n, (value, _))| match n {
            0 => value.strip_prefix(MARK).unwrap_or(value).to_owned(),
            _ => value.to_owned(),
        })
        .collect();
    if first.len() > MAX_COLUMNS {
        return Err(Fault::Wide { found: first.len() });
    }
    let header = csv.header.unwrap_or_else(|| names(&first));
    let mut kinds = vec![Kind::Nothing; first.len()];
    if !header {
        learn(&mut kinds, &row);
    }
    while records.next(&mut row)? {
        refuse_comment(&row)?;
        if row.len() != first.len() {
            return Err(Fault::Ragged {
                line: row.line(),
                found: if row.is_blank() { 0 } else { row.len() },
                wanted: first.len(),
            });
        }
        if whole {
            learn(&mut kinds, &row);
        }
    }
    let data_type = |kind: Kind| if whole { kind.data_type() } else { "text" };
    let columns = column_names(if header { &first } else { &[] }, first.len())
        .into_iter()
        .zip(kinds.into_iter().map(data_type))
        .collect();
    Ok(Sheet { columns, header })
}

/// Whether a first row names the columns: nothing in it is empty, there twice, or anything but text.
fn names(row: &[String]) -> bool {
    let distinct: BTreeSet<&str> = row.iter().map(String::as_str).collect();
    distinct.len() == row.len()
        && (row.iter()).all(|value| !value.is_empty() && Kind::of(value) == Kind::Text)
}

fn learn(kinds: &mut [Kind], row: &records::Row) {
    for (kind, (value, quoted)) in kinds.iter_mut().zip(row.values()) {
        // Empty without quotes is NULL, which every type takes.
        if (!value.is_empty() || quoted) && *kind != Kind::Text {
            *kind = kind.and(Kind::of(value));
        }
    }
}

/// The names of so many columns: those of the header as far as they can be, letters for the rest.
fn column_names(header: &[String], count: usize) -> Vec<String> {
    let mut taken: BTreeSet<String> = SYSTEM_COLUMNS.map(str::to_owned).into();
    // A name that stands in the file goes before one that is made up.
    let mut own: BTreeSet<&str> = header
        .iter()
        .map(|name| shortened(name, MAX_NAME))
        .collect();
    let mut names = Vec::with_capacity(count);
    for n in 0..count {
        let given = header.get(n).map(|name| shortened(name, MAX_NAME));
        let given = given.filter(|name| !name.is_empty());
        let is_own = given.is_some_and(|name| own.remove(name));
        let wanted = given.map_or_else(|| letters(n), str::to_owned);
        let mut name = wanted.clone();
        let mut next = 2;
        while taken.contains(&name) || (!is_own && own.contains(name.as_str())) {
            let ending = format!("_{next}");
            name = shortened(&wanted, MAX_NAME - ending.len()).to_owned() + &ending;
            next += 1;
        }
        taken.insert(name.clone());
        names.push(name);
    }
    names
}

/// The beginning of a text that takes at most so many bytes.
fn shortened(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// `a` to `z`, `aa`, `ab`, …
fn letters(n: usize) -> String {
    let last = char::from(b'a' + u8::try_from(n % 26).unwrap_or(0));
    match n / 26 {
        0 => last.to_string(),
        more => format!("{}{last}", letters(more - 1)),
    }
}

/// The foreign table over a file that lies at an absolute path.
pub fn table(name: &str, path: &str, sheet: &Sheet, csv: &Csv) -> Table {
    let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut options = BTreeMap::from([
        option("filename", path),
        option("format", "csv"),
        // Otherwise that of the session that reads.
        option("encoding", "UTF8"),
    ]);
    if sheet.header {
        options.extend([option("header", "true")]);
    }
    if let Some(separator) = csv.separator.filter(|separator| *separator != ',') {
        options.extend([option("delimiter", &separator.to_string())]);
    }
    let column = |(name, data_type): &(String, &str)| Column {
        name: name.clone(),
        data_type: (*data_type).to_owned(),
        ..Column::default()
    };
    Table {
        name: name.to_owned(),
        columns: sheet.columns.iter().map(column).collect(),
        options,
        ..Table::default()
    }
}

/// The name of the table over a file: the file's own without its last ending.
pub fn table_name(file: &str) -> Result<&str, Fault> {
    let stem = match file.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => file,
    };
    match stem.len() {
        0..=MAX_NAME => Ok(stem),
        _ => Err(Fault::LongName),
    }
}

#[cfg(test)]
mod tests;
