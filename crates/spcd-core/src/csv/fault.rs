//! Why a file cannot be a table.

/// Why a file cannot be a table: what is wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is no byte in it.
    #[error("it is empty: the first row says which columns there are")]
    Empty,
    /// As far as was read, the first row has no end.
    #[error("its first row does not end within the first MiB")]
    EndlessLine,
    /// UTF-16, told by its mark.
    #[error("it is UTF-16; save it as UTF-8")]
    Utf16,
    /// Bytes that are no UTF-8.
    #[error(
        "line {line} is not UTF-8; save it as UTF-8, or say how it is encoded: `encoding = \"latin1\"`"
    )]
    NotUtf8 {
        /// From 1.
        line: usize,
    },
    /// Bytes that mean nothing in the encoding that the connection names.
    #[error("line {line} is not {encoding}")]
    NotEncoded {
        /// From 1.
        line: usize,
        /// The encoding's name.
        encoding: &'static str,
    },
    /// A byte that text in Postgres cannot hold.
    #[error("there is a NUL byte on line {line}, which Postgres cannot hold: is it no text?")]
    Nul {
        /// From 1.
        line: usize,
    },
    /// A row with another number of values than the first; 0 for a blank line.
    #[error("{}", ragged(*line, *found, *wanted))]
    Ragged {
        /// From 1.
        line: usize,
        /// How many it has.
        found: usize,
        /// How many the first has.
        wanted: usize,
    },
    /// A quote in the middle of a value, with which COPY would begin a quoted text that may go on over
    /// many lines.
    #[error(
        "line {line} has a quote in the middle of a value, from which the server would read on to the \
         next quote: put the whole value in quotes and write its own ones twice (\"27\"\" wide\")"
    )]
    StrayQuote {
        /// From 1.
        line: usize,
    },
    /// A quote without its partner.
    #[error("the quote on line {line} is never closed")]
    OpenQuote {
        /// From 1.
        line: usize,
    },
    /// Another line end than before.
    #[error(
        "line {line} ends in {found} and those before in {before}: let all end alike, or quote the value"
    )]
    LineEnds {
        /// From 1.
        line: usize,
        /// `LF`, `CR` or `CRLF`.
        found: &'static str,
        /// The same.
        before: &'static str,
    },
    /// A line at which COPY stops reading.
    #[error("line {line} is `\\.`, at which the server stops reading: take it out, or quote it")]
    EndMark {
        /// From 1.
        line: usize,
    },
    /// A line that is to be skipped.
    #[error(
        "line {line} begins with the comment sign `{sign}`, and file_fdw cannot skip lines: take it out of the file"
    )]
    Comment {
        /// From 1.
        line: usize,
        /// What marks comments.
        sign: char,
    },
    /// More columns than a table may have.
    #[error("it has {found} columns, and a table at most 1600")]
    Wide {
        /// How many.
        found: usize,
    },
    /// The file's name gives no name of a table.
    #[error("its name is longer than the 63 bytes that a table's may have")]
    LongName,
}

fn ragged(line: usize, found: usize, wanted: usize) -> String {
    let s = |n: usize| if n == 1 { "" } else { "s" };
    match found {
        0 => format!("line {line} is blank where the server wants {wanted} values"),
        _ => format!(
            "line {line} has {found} value{} where the first line has {wanted}",
            s(found)
        ),
    }
}

/// UTF-8 as text. Of a part, a character that is cut off at the end is left out.
pub(super) fn utf8(bytes: &[u8], whole: bool) -> Result<&str, Fault> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let (valid, _) = bytes.split_at(error.valid_up_to());
            let cut_off = error.error_len().is_none() && !whole;
            match std::str::from_utf8(valid) {
                Ok(text) if cut_off => Ok(text),
                _ => Err(Fault::NotUtf8 {
                    line: line_of(bytes, valid.len()),
                }),
            }
        }
    }
}

/// The line of an offset, from 1.
pub(super) fn line_of(bytes: &[u8], at: usize) -> usize {
    1 + bytes[..at].iter().filter(|byte| **byte == b'\n').count()
}
