//! Rows and values as the server's COPY takes them apart.

use super::Fault;

/// Reads one row after the other.
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    whole: bool,
    separator: u8,
    /// Quotes hold values together; else they are signs like any other.
    quotes: bool,
    at: usize,
    line: usize,
    end: Option<End>,
}

/// How lines end; the first one tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Lf,
    Cr,
    CrLf,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            End::Lf => "LF",
            End::Cr => "CR",
            End::CrLf => "CRLF",
        }
    }
}

/// A row. It is used again for the next one.
#[derive(Default)]
pub(super) struct Row {
    line: usize,
    text: String,
    /// Where each value ends in `text`, and whether any of it was in quotes.
    ends: Vec<(usize, bool)>,
    first: Option<char>,
    blank: bool,
}

impl Row {
    /// The values, and whether any of each was in quotes.
    pub(super) fn values(&self) -> impl Iterator<Item = (&str, bool)> {
        let mut start = 0;
        self.ends.iter().map(move |(end, quoted)| {
            let value = &self.text[start..*end];
            start = *end;
            (value, *quoted)
        })
    }

    /// How many values it has.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The line on which it begins, from 1.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Whether there is nothing on its line.
    pub(super) fn is_blank(&self) -> bool {
        self.blank
    }

    /// Whether its line begins with a character.
    pub(super) fn begins_with(&self, sign: char) -> bool {
        self.first == Some(sign)
    }
}

impl<'a> Records<'a> {
    /// Over a text, or the beginning of one: then a row that is cut off is left out.
    pub(super) fn new(text: &'a str, whole: bool, separator: char, quotes: bool) -> Self {
        Self {
            bytes: text.as_bytes(),
            whole,
            separator: u8::try_from(separator).unwrap_or(b','),
            quotes,
            at: 0,
            line: 1,
            end: None,
        }
    }

    /// Reads the next row; false if there is none.
    pub(super) fn next(&mut self, row: &mut Row) -> Result<bool, Fault> {
        let bytes = self.bytes;
        let begin = self.at;
        if begin >= bytes.len() {
            return Ok(false);
        }
        let mut text = std::mem::take(&mut row.text).into_bytes();
        text.clear();
        row.ends.clear();
        row.line = self.line;
        let (mut in_quotes, mut quoted, mut quote_line) = (false, false, self.line);
        // What of the value is not copied yet.
        let mut from = begin;
        let mut at = begin;
        let line_end = loop {
            let Some(&byte) = bytes.get(at) else {
                break None;
            };
            match byte {
                b'"' if self.quotes => {
                    text.extend_from_slice(&bytes[from..at]);
                    let start = row.ends.last().map_or(0, |(end, _)| *end);
                    if !in_quotes && (quoted || !is_blank(&text[start..])) {
                        return Err(Fault::StrayQuote { line: self.line });
                    }
                    // Inside quotes two of them are one.
                    if in_quotes && bytes.get(at + 1) == Some(&b'"') {
                        text.push(b'"');
                        at += 1;
                    } else {
                        in_quotes = !in_quotes;
                        quoted = true;
                        quote_line = self.line;
                    }
                    from = at + 1;
                }
                b'\n' if in_quotes => self.line += 1,
                b'\r' if in_quotes => {
                    self.line += usize::from(bytes.get(at + 1) != Some(&b'\n'));
                }
                b'\n' => break Some(End::Lf),
                b'\r' if bytes.get(at + 1) == Some(&b'\n') && self.end != Some(End::Cr) => {
                    break Some(End::CrLf);
                }
                // What follows is not known: it may be the other half of this line's end.
                b'\r' if at + 1 == bytes.len() && !self.whole => break None,
                b'\r' => break Some(End::Cr),
                _ if byte == self.separator && !in_quotes => {
                    text.extend_from_slice(&bytes[from..at]);
                    row.ends.push((text.len(), quoted));
                    quoted = false;
                    from = at + 1;
                }
                _ => {}
            }
            at += 1;
        };
        text.extend_from_slice(&bytes[from..at]);
        row.ends.push((text.len(), quoted));
        // Only ASCII bytes were taken out of valid text.
        row.text = String::from_utf8(text).unwrap_or_default();
        row.first =
            (std::str::from_utf8(&bytes[begin..at]).ok()).and_then(|line| line.chars().next());
        row.blank = at == begin;
        match line_end {
            None if !self.whole => {
                self.at = bytes.len();
                return Ok(false);
            }
            None if in_quotes => return Err(Fault::OpenQuote { line: quote_line }),
            None => self.at = at,
            Some(found) => self.end_line(found, at)?,
        }
        if &bytes[begin..at] == br"\." {
            return Err(Fault::EndMark { line: row.line });
        }
        Ok(true)
    }

    /// Goes on behind a line's end. All lines of a file end alike.
    fn end_line(&mut self, found: End, at: usize) -> Result<(), Fault> {
        if let Some(before) = self.end.filter(|before| *before != found) {
            return Err(Fault::LineEnds {
                line: self.line,
                found: found.name(),
                before: before.name(),
            });
        }
        self.end = Some(found);
        self.line += 1;
        self.at = at + if found == End::CrLf { 2 } else { 1 };
        Ok(())
    }
}

/// Whether a value may still begin with a quote after this.
fn is_blank(begin: &[u8]) -> bool {
    let begin = begin.strip_prefix(super::MARK.as_bytes()).unwrap_or(begin);
    begin.iter().all(|byte| matches!(byte, b' ' | b'\t'))
}
