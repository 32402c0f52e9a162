//! Splits CSV text into rows and values as the server's COPY does.

use super::CsvError;

/// Reader of rows.
pub(super) struct RecordReader<'a> {
    bytes: &'a [u8],
    whole: bool,
    separator: u8,
    /// Whether quotes group values; else they are ordinary characters.
    quotes: bool,
    at: usize,
    line: usize,
    end: Option<LineEnd>,
}

/// Line end; the first line of a file decides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    Lf,
    Cr,
    CrLf,
}

impl LineEnd {
    fn name(self) -> &'static str {
        match self {
            LineEnd::Lf => "LF",
            LineEnd::Cr => "CR",
            LineEnd::CrLf => "CRLF",
        }
    }
}

/// Row. Its buffers are reused for the next one.
#[derive(Default)]
pub(super) struct Row {
    line: usize,
    text: String,
    /// End of each value in `text`, and whether any of it was in quotes.
    ends: Vec<(usize, bool)>,
    first: Option<char>,
    blank: bool,
}

impl Row {
    /// Returns the values, and whether any of each was in quotes.
    pub(super) fn values(&self) -> impl Iterator<Item = (&str, bool)> {
        let mut start = 0;
        self.ends.iter().map(move |(end, quoted)| {
            let value = &self.text[start..*end];
            start = *end;
            (value, *quoted)
        })
    }

    /// Returns the number of values.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns the line on which it begins, from 1.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Returns whether its line is empty.
    pub(super) fn is_blank(&self) -> bool {
        self.blank
    }

    /// Returns whether its line begins with a character.
    pub(super) fn begins_with(&self, sign: char) -> bool {
        self.first == Some(sign)
    }
}

impl<'a> RecordReader<'a> {
    /// Creates a reader of a text. If the text is not `whole`, an unfinished last row is left out.
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

    /// Reads the next row; returns false at the end.
    pub(super) fn next(&mut self, row: &mut Row) -> Result<bool, CsvError> {
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
        // Start of the text that is not copied yet.
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
                        return Err(CsvError::StrayQuote { line: self.line });
                    }
                    // Inside quotes a doubled quote stands for one.
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
                b'\n' => break Some(LineEnd::Lf),
                b'\r' if bytes.get(at + 1) == Some(&b'\n') && self.end != Some(LineEnd::Cr) => {
                    break Some(LineEnd::CrLf);
                }
                // The next byte is unknown and may belong to this line end.
                b'\r' if at + 1 == bytes.len() && !self.whole => break None,
                b'\r' => break Some(LineEnd::Cr),
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
        // Removing ASCII bytes keeps the text valid.
        row.text = String::from_utf8(text).unwrap_or_default();
        row.first =
            (std::str::from_utf8(&bytes[begin..at]).ok()).and_then(|line| line.chars().next());
        row.blank = at == begin;
        match line_end {
            None if !self.whole => {
                self.at = bytes.len();
                return Ok(false);
            }
            None if in_quotes => return Err(CsvError::OpenQuote { line: quote_line }),
            None => self.at = at,
            Some(found) => self.end_line(found, at)?,
        }
        if &bytes[begin..at] == br"\." {
            return Err(CsvError::EndMark { line: row.line });
        }
        Ok(true)
    }

    /// Advances past a line end. All lines of a file must end alike.
    fn end_line(&mut self, found: LineEnd, at: usize) -> Result<(), CsvError> {
        if let Some(before) = self.end.filter(|before| *before != found) {
            return Err(CsvError::LineEnds {
                line: self.line,
                found: found.name(),
                before: before.name(),
            });
        }
        self.end = Some(found);
        self.line += 1;
        self.at = at + if found == LineEnd::CrLf { 2 } else { 1 };
        Ok(())
    }
}

/// Returns whether a value may still begin with a quote after this text.
fn is_blank(begin: &[u8]) -> bool {
    let begin = begin
        .strip_prefix(super::BYTE_ORDER_MARK.as_bytes())
        .unwrap_or(begin);
    begin.iter().all(|byte| matches!(byte, b' ' | b'\t'))
}
