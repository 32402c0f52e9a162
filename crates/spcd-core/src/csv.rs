//! Infers columns and types from CSV files, by the rules of the server's COPY.
//!
//! file_fdw reads the rows by COPY. Where COPY differs from RFC 4180 (blank lines, quotes in the
//! middle of a value, mixed line ends), COPY's rules apply, because a table with a row that COPY
//! refuses cannot be read. A column gets a type only if every value of the file fits it.
//!
//! A file that COPY would misread (a quote in the middle of a value joins rows) is read with other
//! options, or refused with the line.

mod column_types;
mod encoding;
mod error;
mod records;
mod value_kind;

use std::collections::{BTreeMap, BTreeSet};

use crate::diff::{Column, InferredType, Table};
use records::RecordReader;
use value_kind::ValueKind;

pub use column_types::{certain_column_types, keep_column_types};
pub use encoding::Encoding;
pub use error::CsvError;

/// Maximum number of columns of a table.
const MAX_COLUMNS: usize = 1600;
/// Maximum length of a name in bytes.
const MAX_NAME: usize = 63;
/// Names of system columns.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "cmax", "xmax", "cmin", "xmin", "ctid"];
/// Byte order mark of UTF-8.
const BYTE_ORDER_MARK: &str = "\u{feff}";
/// Separators to try, in this order, if the connection gives none.
const SEPARATORS: [char; 3] = [',', ';', '\t'];

/// Settings of a connection of the plugin `csv`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CsvSettings {
    /// Absolute paths, or patterns of them.
    pub paths: Vec<String>,
    /// Whether the first line names the columns; `None` detects it.
    pub header: Option<bool>,
    /// Separator of values; `None` detects it.
    pub separator: Option<char>,
    /// Character that begins a comment line; `None` means no comments.
    pub comment: Option<char>,
    /// Encoding of the files.
    pub encoding: Encoding,
    /// Unquoted text that stands for NULL; `None` means an empty one.
    pub null: Option<String>,
}

/// Columns of a file, and the options to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvLayout {
    /// Columns in order.
    pub columns: Vec<CsvColumn>,
    /// Whether the first row names the columns.
    pub header: bool,
    /// Separator of values.
    pub separator: char,
    /// Quote character for COPY, for a file whose quotes are ordinary characters: one that the file
    /// does not contain. `None` means `"`.
    pub quote: Option<char>,
}

/// Column of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvColumn {
    /// Name.
    pub name: String,
    /// Type that follows from this file alone.
    pub data_type: &'static str,
    /// Types that its values allow.
    pub inferred: InferredType,
}

/// Infers the layout of a file from its bytes: all of them, or its beginning if not `whole`. From a
/// part only the names are inferred, because a later value may contradict any type but `text`.
pub fn infer_layout(bytes: &[u8], whole: bool, csv: &CsvSettings) -> Result<CsvLayout, CsvError> {
    let text = csv.encoding.decode(bytes, whole)?;
    let text = &*text;
    if text.trim_start_matches(BYTE_ORDER_MARK).is_empty() {
        return Err(CsvError::Empty);
    }
    if let Some(separator) = csv.separator {
        return separated(text, whole, csv, separator);
    }
    // A separator must occur in the first row.
    let parts = |separator: &&char| {
        let mut row = records::Row::default();
        let first = RecordReader::new(text, whole, **separator, true).next(&mut row);
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

/// Infers the layout for one separator.
fn separated(
    text: &str,
    whole: bool,
    csv: &CsvSettings,
    separator: char,
) -> Result<CsvLayout, CsvError> {
    let stray = match quoted(text, whole, csv, separator, None) {
        // Later values of the file could begin with a quote.
        Err(stray @ CsvError::StrayQuote { .. }) if whole => stray,
        read => return read,
    };
    match unused_quote(text, separator) {
        Some(quote) => quoted(text, whole, csv, separator, Some(quote)),
        None => Err(stray),
    }
}

/// Returns a quote character for COPY that does not occur in the file, if no value is in quotes.
fn unused_quote(text: &str, separator: char) -> Option<char> {
    let mut records = RecordReader::new(text, true, separator, false);
    let mut row = records::Row::default();
    while records.next(&mut row).ok()? {
        let begins = |(value, _): (&str, bool)| {
            let value = value.strip_prefix(BYTE_ORDER_MARK).unwrap_or(value);
            value.trim_start_matches([' ', '\t']).starts_with('"')
        };
        if row.values().any(begins) {
            return None;
        }
    }
    ('\u{1}'..'\u{9}').find(|sign| *sign != separator && !text.contains(*sign))
}

/// Infers the layout with the usual quote, or without quotes if `quote` is given.
fn quoted(
    text: &str,
    whole: bool,
    csv: &CsvSettings,
    separator: char,
    quote: Option<char>,
) -> Result<CsvLayout, CsvError> {
    let mut records = RecordReader::new(text, whole, separator, quote.is_none());
    let mut row = records::Row::default();
    let refuse_comment = |row: &records::Row| match csv.comment {
        Some(sign) if row.begins_with(sign) => Err(CsvError::Comment {
            line: row.line(),
            sign,
        }),
        _ => Ok(()),
    };
    if !records.next(&mut row)? {
        return Err(CsvError::EndlessLine);
    }
    refuse_comment(&row)?;
    let first: Vec<String> = (row.values().enumerate())
        .map(|(n, (value, _))| match n {
            0 => value
                .strip_prefix(BYTE_ORDER_MARK)
                .unwrap_or(value)
                .to_owned(),
            _ => value.to_owned(),
        })
        .collect();
    if first.len() > MAX_COLUMNS {
        return Err(CsvError::Wide { found: first.len() });
    }
    let header = csv.header.unwrap_or_else(|| is_header(&first));
    let mut kinds = vec![ValueKind::Nothing; first.len()];
    let null = csv.null.as_deref().unwrap_or_default();
    if !header {
        widen_kinds(&mut kinds, &row, null);
    }
    while records.next(&mut row)? {
        refuse_comment(&row)?;
        if row.len() != first.len() {
            return Err(CsvError::Ragged {
                line: row.line(),
                found: if row.is_blank() { 0 } else { row.len() },
                expected: first.len(),
            });
        }
        widen_kinds(&mut kinds, &row, null);
    }
    let columns = column_names(if header { &first } else { &[] }, first.len())
        .into_iter()
        .zip(kinds)
        .map(|(name, kind)| CsvColumn {
            name,
            data_type: if whole { kind.data_type() } else { "text" },
            inferred: InferredType {
                accepted_by: kind.accepted_by(),
                is_certain: whole && kind != ValueKind::Nothing,
            },
        })
        .collect();
    Ok(CsvLayout {
        columns,
        header,
        separator,
        quote,
    })
}

/// Returns whether a first row names the columns: every value is a distinct, non-empty text.
fn is_header(row: &[String]) -> bool {
    let distinct: BTreeSet<&str> = row.iter().map(String::as_str).collect();
    distinct.len() == row.len()
        && (row.iter()).all(|value| !value.is_empty() && ValueKind::of(value) == ValueKind::Text)
}

fn widen_kinds(kinds: &mut [ValueKind], row: &records::Row, null: &str) {
    for (kind, (value, quoted)) in kinds.iter_mut().zip(row.values()) {
        // Every type accepts NULL.
        if (value != null || quoted) && *kind != ValueKind::Text {
            *kind = kind.combine(ValueKind::of(value));
        }
    }
}

/// Returns `count` column names: those of the header as far as possible, letters for the rest.
fn column_names(header: &[String], count: usize) -> Vec<String> {
    let mut taken: BTreeSet<String> = SYSTEM_COLUMNS.map(str::to_owned).into();
    // A name in the file has priority over a generated one.
    let mut own: BTreeSet<&str> = header
        .iter()
        .map(|name| shortened(name, MAX_NAME))
        .collect();
    let mut names = Vec::with_capacity(count);
    for n in 0..count {
        let given = header.get(n).map(|name| shortened(name, MAX_NAME));
        let given = given.filter(|name| !name.is_empty());
        let is_own = given.is_some_and(|name| own.remove(name));
        let own_name = given.map_or_else(|| letters(n), str::to_owned);
        let mut name = own_name.clone();
        let mut next = 2;
        while taken.contains(&name) || (!is_own && own.contains(name.as_str())) {
            let ending = format!("_{next}");
            name = shortened(&own_name, MAX_NAME - ending.len()).to_owned() + &ending;
            next += 1;
        }
        taken.insert(name.clone());
        names.push(name);
    }
    names
}

/// Returns the beginning of a text, at most `most` bytes.
fn shortened(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Returns `a` to `z`, `aa`, `ab`, …
fn letters(n: usize) -> String {
    let last = char::from(b'a' + u8::try_from(n % 26).unwrap_or(0));
    match n / 26 {
        0 => last.to_string(),
        more => format!("{}{last}", letters(more - 1)),
    }
}

/// Returns the foreign table over a file with an absolute path.
pub fn foreign_table(name: &str, path: &str, sheet: &CsvLayout, csv: &CsvSettings) -> Table {
    let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut options = BTreeMap::from([
        option("filename", path),
        option("format", "csv"),
        // Without it the encoding of the reading session applies.
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
    let column = |column: &CsvColumn| Column {
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

/// Returns the name of the table over a file: the file's name without its last extension.
///
/// # Errors
/// The name is longer than a table's may be.
pub fn table_name(file: &str) -> Result<&str, CsvError> {
    let stem = stem(file);
    match stem.len() {
        0..=MAX_NAME => Ok(stem),
        _ => Err(CsvError::LongName),
    }
}

/// Returns a file's name without its last extension.
pub fn stem(file: &str) -> &str {
    match file.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => file,
    }
}

#[cfg(test)]
mod tests;
