//! Prints results in the output formats.

use std::io::{self, Write};

use tokio_postgres::types::Type;

use crate::cli::Output;
use crate::cli::terminal::{padded, padded_left, width};

/// A column of a result.
pub struct Column {
    pub name: String,
    /// Type of its values; `None` if unknown.
    pub kind: Option<Type>,
}

/// Writes one result, row by row.
pub struct Printer<'a, W> {
    out: &'a mut W,
    output: Output,
    columns: Vec<Column>,
    /// Buffered rows of a table: its widths depend on all of them.
    rows: Vec<Vec<Option<String>>>,
    count: usize,
}

impl<'a, W: Write> Printer<'a, W> {
    pub fn new(out: &'a mut W, output: Output, columns: Vec<Column>) -> io::Result<Self> {
        if output == Output::Csv {
            let names = columns.iter().map(|column| Some(column.name.as_str()));
            csv_line(out, names)?;
        }
        Ok(Self {
            out,
            output,
            columns,
            rows: Vec::new(),
            count: 0,
        })
    }

    pub fn row(&mut self, values: Vec<Option<String>>) -> io::Result<()> {
        match self.output {
            Output::Table => self.rows.push(values),
            Output::Csv => csv_line(self.out, values.iter().map(Option::as_deref))?,
            Output::Line => self.record(&values)?,
            Output::Json => {
                self.out.write_all(if self.count == 0 {
                    b"[\n  {"
                } else {
                    b",\n  {"
                })?;
                for (n, (column, value)) in self.columns.iter().zip(&values).enumerate() {
                    let comma = if n == 0 { "" } else { ", " };
                    let name = serde_json::to_string(&column.name)?;
                    let value = json_value(value.as_deref(), column.kind.as_ref())?;
                    write!(self.out, "{comma}{name}: {value}")?;
                }
                self.out.write_all(b"}")?;
            }
        }
        self.count += 1;
        Ok(())
    }

    pub fn end(self) -> io::Result<()> {
        match self.output {
            Output::Table => self.table(),
            Output::Json if self.count == 0 => writeln!(self.out, "[]"),
            Output::Json => writeln!(self.out, "\n]"),
            Output::Csv | Output::Line => Ok(()),
        }
    }

    fn record(&mut self, values: &[Option<String>]) -> io::Result<()> {
        writeln!(self.out, "-[ RECORD {} ]-", self.count + 1)?;
        let width = self
            .columns
            .iter()
            .map(|column| width(&column.name))
            .max()
            .unwrap_or(0);
        for (column, value) in self.columns.iter().zip(values) {
            let name = padded(&column.name, width);
            writeln!(
                self.out,
                "{name} | {}",
                value.as_deref().unwrap_or_default()
            )?;
        }
        Ok(())
    }

    fn table(self) -> io::Result<()> {
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .map(|column| width(&column.name))
            .collect();
        for row in &self.rows {
            for (widest, value) in widths.iter_mut().zip(row) {
                let lines = value.as_deref().unwrap_or_default().split('\n').map(width);
                *widest = (*widest).max(lines.max().unwrap_or(0));
            }
        }
        let line = |cells: Vec<String>| cells.join(" | ").trim_end().to_owned();
        let names = self.columns.iter().zip(&widths);
        let names = names
            .map(|(column, width)| padded(&column.name, *width))
            .collect();
        writeln!(self.out, " {}", line(names))?;
        let rules: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
        writeln!(self.out, "{}", rules.join("+"))?;
        for row in &self.rows {
            let lines: Vec<Vec<&str>> = (row.iter())
                .map(|value| value.as_deref().unwrap_or_default().split('\n').collect())
                .collect();
            let height = lines.iter().map(Vec::len).max().unwrap_or(0);
            for at in 0..height {
                let cells = lines.iter().zip(&self.columns).zip(&widths);
                let cells = cells.map(|((lines, column), width)| {
                    let text = lines.get(at).copied().unwrap_or_default();
                    match is_number(column.kind.as_ref()) {
                        true => padded_left(text, *width),
                        false => padded(text, *width),
                    }
                });
                writeln!(self.out, " {}", line(cells.collect()))?;
            }
        }
        let noun = if self.count == 1 { "row" } else { "rows" };
        writeln!(self.out, "({} {noun})", self.count)
    }
}

fn is_number(kind: Option<&Type>) -> bool {
    let numbers = [
        Type::INT2,
        Type::INT4,
        Type::INT8,
        Type::OID,
        Type::FLOAT4,
        Type::FLOAT8,
        Type::NUMERIC,
    ];
    kind.is_some_and(|kind| numbers.contains(kind))
}

/// Returns a value as JSON: numbers, booleans and JSON unchanged, all other types as strings.
fn json_value(value: Option<&str>, kind: Option<&Type>) -> io::Result<String> {
    let Some(value) = value else {
        return Ok("null".to_owned());
    };
    let is = |types: &[Type]| kind.is_some_and(|kind| types.contains(kind));
    if is(&[Type::BOOL]) {
        return Ok(if value == "t" { "true" } else { "false" }.to_owned());
    }
    // JSON has no NaN or infinity.
    let finite = || {
        value
            .bytes()
            .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
    };
    if is(&[Type::JSON, Type::JSONB]) || (is_number(kind) && finite()) {
        return Ok(value.to_owned());
    }
    Ok(serde_json::to_string(value)?)
}

fn csv_line<'a>(
    out: &mut impl Write,
    values: impl Iterator<Item = Option<&'a str>>,
) -> io::Result<()> {
    for (n, value) in values.enumerate() {
        if n > 0 {
            out.write_all(b",")?;
        }
        // An empty text is quoted, to distinguish it from NULL.
        match value {
            None => {}
            Some(text) if text.is_empty() || text.contains([',', '"', '\n', '\r']) => {
                write!(out, "\"{}\"", text.replace('"', "\"\""))?;
            }
            Some(text) => out.write_all(text.as_bytes())?,
        }
    }
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(output: Output) -> String {
        let column = |name: &str, kind| Column {
            name: name.to_owned(),
            kind: Some(kind),
        };
        let columns = vec![
            column("id", Type::INT4),
            column("näme", Type::TEXT),
            column("x", Type::NUMERIC),
            column("j", Type::JSONB),
            column("b", Type::BOOL),
        ];
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, output, columns).unwrap();
        let row = |values: [Option<&str>; 5]| values.map(|value| value.map(str::to_owned)).to_vec();
        printer
            .row(row([
                Some("1"),
                Some("a \"b\",\nc"),
                Some("NaN"),
                Some("{\"k\": 1}"),
                Some("t"),
            ]))
            .unwrap();
        printer
            .row(row([Some("20"), Some(""), None, None, Some("f")]))
            .unwrap();
        printer.end().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_is_aligned_and_numbers_stand_right() {
        let table = " id | näme   | x   | j        | b
----+--------+-----+----------+---
  1 | a \"b\", | NaN | {\"k\": 1} | t
    | c      |     |          |
 20 |        |     |          | f
(2 rows)
";
        assert_eq!(printed(Output::Table), table);
    }

    #[test]
    fn json_keeps_types_and_can_be_read_back() {
        let read: serde_json::Value = serde_json::from_str(&printed(Output::Json)).unwrap();
        let expected = serde_json::json!([
            {"id": 1, "näme": "a \"b\",\nc", "x": "NaN", "j": {"k": 1}, "b": true},
            {"id": 20, "näme": "", "x": null, "j": null, "b": false},
        ]);
        assert_eq!(read, expected);
        let mut out = Vec::new();
        Printer::new(&mut out, Output::Json, Vec::new())
            .unwrap()
            .end()
            .unwrap();
        assert_eq!(out, b"[]\n");
    }

    #[test]
    fn csv_quotes_what_must_be_and_tells_null_from_empty() {
        let csv = "id,näme,x,j,b\n1,\"a \"\"b\"\",\nc\",NaN,\"{\"\"k\"\": 1}\",t\n20,\"\",,,f\n";
        assert_eq!(printed(Output::Csv), csv);
    }

    #[test]
    fn lines_have_one_value_each() {
        let lines = printed(Output::Line);
        assert!(
            lines.starts_with("-[ RECORD 1 ]-\nid   | 1\nnäme | a \"b\",\n"),
            "{lines}"
        );
    }
}
