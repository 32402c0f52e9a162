//! What a CSV file holds, as the server that reads it will see it.
//!
//! The reader of the rows is file_fdw, and with it the server's COPY: where its rules and those of
//! RFC 4180 part ways (blank lines, quotes in the middle of a value, mixed line ends) only COPY's
//! count, for a table whose rows it refuses cannot be read. So the rows are taken apart here by
//! COPY's rules, and a type is given only where every value of the file bears it out.
//!
//! A file that COPY would read as something else than it says (a quote in the middle of a value
//! joins rows) is read with other options, or refused with the line.

mod encoding;
mod fault;
mod kind;
mod records;
mod types;

use std::collections::{BTreeMap, BTreeSet};

use crate::shape::{Column, Inferred, Table};
use kind::Kind;
use records::Records;

pub use encoding::Encoding;
pub use fault::Fault;
pub use types::{keep_types, known_types};

/// As many columns as a table may have.
const MAX_COLUMNS: usize = 1600;
/// As long as a name may be, in bytes.
const MAX_NAME: usize = 63;
/// Names that every table has already.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "cmax", "xmax", "cmin", "xmin", "ctid"];
/// What some programs write before UTF-8.
const MARK: &str = "\u{feff}";
/// What stands between values, where the connection does not say: the first of these that fits.
const SEPARATORS: [char; 3] = [',', ';', '\t'];

/// What a connection of the plugin `csv` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Csv {
    /// Absolute paths, or patterns of them.
    pub paths: Vec<String>,
    /// Whether the first line names the columns; `None`: look and see.
    pub header: Option<bool>,
    /// What stands between values; `None`: look and see.
    pub separator: Option<char>,
    /// What a line to be skipped begins with; `None`: nothing.
    pub comment: Option<char>,
    /// How the files are encoded.
    pub encoding: Encoding,
    /// What stands for NULL without quotes; `None`: nothing.
    pub null: Option<String>,
}

/// The columns of a file, and how it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sheet {
    /// In order.
    pub columns: Vec<SheetColumn>,
    /// The first row names them.
    pub header: bool,
    /// What stands between values.
    pub separator: char,
    /// What is given to COPY as the quote of a file whose own quotes are signs like any other: a
    /// character that is not in it. `None`: the quote is the usual one.
    pub quote: Option<char>,
}

/// A column of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SheetColumn {
    /// Its name.
    pub name: String,
    /// The type that this file alone gives it.
    pub data_type: &'static str,
    /// What its values say of that.
    pub inferred: Inferred,
}

/// Tells a file's columns from its bytes: from all of them, or, unless `whole`, from its
/// beginning. Of a part only the names are told: what comes later may contradict any type but
/// `text`, and the table could not be read.
pub fn read(bytes: &[u8], whole: bool, csv: &Csv) -> Result<Sheet, Fault> {
    let text = csv.encoding.decode(bytes, whole)?;
    let text = &*text;
    if text.trim_start_matches(MARK).is_empty() {
        return Err(Fault::Empty);
    }
    if let Some(separator) = csv.separator {
        return separated(text, whole, csv, separator);
    }
    // One that does not part the first row parts nothing.
    let parts = |separator: &&char| {
        let mut row = records::Row::default();
        let first = Records::new(text, whole, **separator, true).next(&mut row);
        matches!(first, Ok(true)) && row.len() > 1
    };
    let mut fault = None;
    for separator in SEPARATORS.iter().filter(parts) {
        match separated(text, whole, csv, *separator) {
            Ok(sheet) => return Ok(sheet),
            Err(why) => drop(fault.get_or_insert(why)),
        }
    }
    match fault {
        Some(fault) => Err(fault),
        None => separated(text, whole, csv, SEPARATORS[0]),
    }
}

/// Reads a file whose values are parted by one character.
fn separated(text: &str, whole: bool, csv: &Csv, separator: char) -> Result<Sheet, Fault> {
    let stray = match quoted(text, whole, csv, separator, None) {
        // What comes later in a file could begin with a quote.
        Err(stray @ Fault::StrayQuote { .. }) if whole => stray,
        read => return read,
    };
    match unused_quote(text, separator) {
        Some(quote) => quoted(text, whole, csv, separator, Some(quote)),
        None => Err(stray),
    }
}

/// A character to be given to COPY as the quote, where no value is in quotes.
fn unused_quote(text: &str, separator: char) -> Option<char> {
    let mut records = Records::new(text, true, separator, false);
    let mut row = records::Row::default();
    while records.next(&mut row).ok()? {
        let begins = |(value, _): (&str, bool)| {
            let value = value.strip_prefix(MARK).unwrap_or(value);
            value.trim_start_matches([' ', '\t']).starts_with('"')
        };
        if row.values().any(begins) {
            return None;
        }
    }
    ('\u{1}'..'\u{9}').find(|sign| *sign != separator && !text.contains(*sign))
}

/// Reads a file with the usual quote, or (`quote` is another one) without any.
fn quoted(
    text: &str,
    whole: bool,
    csv: &Csv,
    separator: char,
    quote: Option<char>,
) -> Result<Sheet, Fault> {
    let mut records = Records::new(text, whole, separator, quote.is_none());
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
    let null = csv.null.as_deref().unwrap_or_default();
    if !header {
        learn(&mut kinds, &row, null);
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
        learn(&mut kinds, &row, null);
    }
    let columns = column_names(if header { &first } else { &[] }, first.len())
        .into_iter()
        .zip(kinds)
        .map(|(name, kind)| SheetColumn {
            name,
            data_type: if whole { kind.data_type() } else { "text" },
            inferred: Inferred {
                takes: kind.takes(),
                certain: whole && kind != Kind::Nothing,
            },
        })
        .collect();
    Ok(Sheet {
        columns,
        header,
        separator,
        quote,
    })
}

/// Whether a first row names the columns: nothing in it is empty, there twice, or anything but text.
fn names(row: &[String]) -> bool {
    let distinct: BTreeSet<&str> = row.iter().map(String::as_str).collect();
    distinct.len() == row.len()
        && (row.iter()).all(|value| !value.is_empty() && Kind::of(value) == Kind::Text)
}

fn learn(kinds: &mut [Kind], row: &records::Row, null: &str) {
    for (kind, (value, quoted)) in kinds.iter_mut().zip(row.values()) {
        // Every type takes NULL.
        if (value != null || quoted) && *kind != Kind::Text {
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
        option("encoding", csv.encoding.name),
    ]);
    if sheet.header {
        options.extend([option("header", "true")]);
    }
    if sheet.separator != ',' {
        options.extend([option("delimiter", &sheet.separator.to_string())]);
    }
    if let Some(quote) = sheet.quote {
        options.extend([option("quote", &quote.to_string())]);
    }
    if let Some(null) = &csv.null {
        options.extend([option("null", null)]);
    }
    let column = |column: &SheetColumn| Column {
        name: column.name.clone(),
        data_type: column.data_type.to_owned(),
        inferred: Some(column.inferred),
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
