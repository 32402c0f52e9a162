//! Errors of CSV files.

/// Reason why a file cannot be a table: what is wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// The file is empty.
    #[error("it is empty: the first row defines the columns")]
    Empty,
    /// The first row does not end within the part that was read.
    #[error("its first row does not end within the first MiB")]
    EndlessLine,
    /// The file is UTF-16, by its byte order mark.
    #[error("it is UTF-16; save it as UTF-8")]
    Utf16,
    /// A line is not valid UTF-8.
    #[error(
        "line {line} is not UTF-8; save it as UTF-8, or say how it is encoded: `encoding = \"latin1\"`"
    )]
    NotUtf8 {
        /// Line, from 1.
        line: usize,
    },
    /// A line is not valid in the configured encoding.
    #[error("line {line} is not {encoding}")]
    NotEncoded {
        /// Line, from 1.
        line: usize,
        /// Name of the encoding.
        encoding: &'static str,
    },
    /// A line contains a NUL byte, which Postgres cannot store.
    #[error("line {line} contains a NUL byte, which Postgres cannot store: is it a binary file?")]
    Nul {
        /// Line, from 1.
        line: usize,
    },
    /// A row has another number of values than the first one; 0 for a blank line.
    #[error("{}", ragged(*line, *found, *expected))]
    Ragged {
        /// Line, from 1.
        line: usize,
        /// Number of values.
        found: usize,
        /// Number of values of the first row.
        expected: usize,
    },
    /// A quote is in the middle of a value. COPY would begin a quoted text there, which may extend
    /// over many lines.
    #[error(
        "line {line} has a quote in the middle of a value, from which the server would read on to the \
         next quote: put the whole value in quotes and write its own ones twice (\"27\"\" wide\")"
    )]
    StrayQuote {
        /// Line, from 1.
        line: usize,
    },
    /// A quote is not closed.
    #[error("the quote on line {line} is never closed")]
    OpenQuote {
        /// Line, from 1.
        line: usize,
    },
    /// A line ends differently from those before it.
    #[error(
        "line {line} ends in {found} and those before in {before}: use one line end in the whole file, or quote the value"
    )]
    LineEnds {
        /// Line, from 1.
        line: usize,
        /// Line end: `LF`, `CR` or `CRLF`.
        found: &'static str,
        /// Line end of the lines before.
        before: &'static str,
    },
    /// A line is `\.`, at which COPY stops reading.
    #[error("line {line} is `\\.`, at which the server stops reading: take it out, or quote it")]
    EndMark {
        /// Line, from 1.
        line: usize,
    },
    /// A line is a comment.
    #[error(
        "line {line} begins with the comment sign `{sign}`, and file_fdw cannot skip lines: take it out of the file"
    )]
    Comment {
        /// Line, from 1.
        line: usize,
        /// Character that begins a comment.
        sign: char,
    },
    /// The file has too many columns for a table.
    #[error("it has {found} columns; a table has at most 1600")]
    Wide {
        /// Number of columns.
        found: usize,
    },
    /// The file's name is too long for a table.
    #[error("its name is longer than 63 bytes, the limit of a table's name")]
    LongName,
}

fn ragged(line: usize, found: usize, expected: usize) -> String {
    let s = |n: usize| if n == 1 { "" } else { "s" };
    match found {
        0 => format!("line {line} is blank where the server expects {expected} values"),
        _ => format!(
            "line {line} has {found} value{} where the first line has {expected}",
            s(found)
        ),
    }
}

/// Decodes UTF-8. In a part of a file, a truncated character at the end is left out.
pub(super) fn utf8(bytes: &[u8], whole: bool) -> Result<&str, CsvError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let (valid, _) = bytes.split_at(error.valid_up_to());
            let cut_off = error.error_len().is_none() && !whole;
            match std::str::from_utf8(valid) {
                Ok(text) if cut_off => Ok(text),
                _ => Err(CsvError::NotUtf8 {
                    line: line_of(bytes, valid.len()),
                }),
            }
        }
    }
}

/// Returns the line of an offset, from 1.
pub(super) fn line_of(bytes: &[u8], at: usize) -> usize {
    1 + bytes[..at].iter().filter(|byte| **byte == b'\n').count()
}
