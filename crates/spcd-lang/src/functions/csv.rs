//! `csvdecode`: comma-separated values as RFC 4180 describes them.

use std::collections::{BTreeMap, BTreeSet};

use super::super::operations::OBJECT_SIZE;
use super::super::syntax::Span;
use super::{Arguments, Problem, Result, Value, fail, without_byte_order_mark};

/// `csvdecode(text)`: an object for each line after the first, which names the attributes. All
/// values are text.
pub(super) fn csvdecode(arguments: &Arguments<'_>) -> Result<Value> {
    let text = arguments.text(0)?;
    let text = without_byte_order_mark(&text);
    decode(text, arguments.limit).or_else(|problem| arguments.in_text(text, *problem))
}

fn decode(text: &str, limit: usize) -> Result<Value> {
    let mut reader = Reader { text, at: 0 };
    let Some((at, header)) = reader.record()? else {
        let problem = Problem::new(
            Span::new(0, 0),
            "the line with the columns' names is missing",
        );
        return fail(problem);
    };
    let mut names = BTreeSet::new();
    if !header.iter().all(|name| names.insert(name.as_str())) {
        return fail(Problem::new(at, "two columns have the same name"));
    }
    // Each row repeats the names.
    let names_size = header.iter().map(|name| name.len() + 1).sum::<usize>() + OBJECT_SIZE;
    let mut used = 0_usize;
    let mut rows = Vec::new();
    while let Some((at, fields)) = reader.record()? {
        if fields.len() != header.len() {
            let message = format!(
                "expected {} values in this row, found {}",
                header.len(),
                fields.len()
            );
            return fail(Problem::new(at, message));
        }
        used = used.saturating_add(names_size);
        if used > limit {
            return fail(Problem::new(at, "this value grows too large"));
        }
        let named = header.iter().map(|name| name.as_str().into());
        let values = fields.into_iter().map(|field| Value::String(field.into()));
        rows.push(Value::Object(named.zip(values).collect::<BTreeMap<_, _>>()));
    }
    Ok(Value::List(rows))
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl Reader<'_> {
    /// Returns the fields of the next line that is not empty, and where it begins; `None` at the
    /// end.
    fn record(&mut self) -> Result<Option<(Span, Vec<String>)>> {
        while self.end_line() {}
        if self.at >= self.text.len() {
            return Ok(None);
        }
        let start = Span::new(self.at, self.at);
        let mut fields = Vec::new();
        loop {
            fields.push(self.field()?);
            if self.text[self.at..].starts_with(',') {
                self.at += 1;
            } else if self.at >= self.text.len() || self.end_line() {
                return Ok(Some((start, fields)));
            } else {
                return self.fail("expected `,` or the end of the line after the closing quote");
            }
        }
    }

    /// Skips the end of a line, if it is here.
    fn end_line(&mut self) -> bool {
        let rest = &self.text[self.at..];
        let length = match rest {
            _ if rest.starts_with("\r\n") => 2,
            _ if rest.starts_with('\n') => 1,
            _ => 0,
        };
        self.at += length;
        length > 0
    }

    fn field(&mut self) -> Result<String> {
        let rest = &self.text[self.at..];
        if rest.starts_with('"') {
            return self.quoted();
        }
        let length = rest.find([',', '\n']).unwrap_or(rest.len());
        let field = rest[..length].strip_suffix('\r').filter(|_| {
            // A carriage return belongs to the end of the line.
            rest[length..].starts_with('\n')
        });
        let field = field.unwrap_or(&rest[..length]);
        if let Some(quote) = field.find('"') {
            self.at += quote;
            return self.fail("a value with a quote in it begins and ends with a quote");
        }
        self.at += field.len();
        Ok(field.to_owned())
    }

    /// Reads a field in quotes, in which two quotes stand for one.
    fn quoted(&mut self) -> Result<String> {
        let mut field = String::new();
        let mut rest = &self.text[self.at + 1..];
        loop {
            let Some(quote) = rest.find('"') else {
                return self.fail("this quote is never closed");
            };
            field.push_str(&rest[..quote]);
            rest = &rest[quote + 1..];
            match rest.strip_prefix('"') {
                Some(after) => {
                    field.push('"');
                    rest = after;
                }
                None => {
                    self.at = self.text.len() - rest.len();
                    return Ok(field);
                }
            }
        }
    }

    fn fail<T>(&self, message: &str) -> Result<T> {
        fail(Problem::new(Span::new(self.at, self.at), message))
    }
}
