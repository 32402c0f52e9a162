//! Output to the terminal. Text from sources, files and names must not control it. The macros `print!`
//! and so on therefore shadow those of the standard library in all commands, and escape control
//! characters.

use std::fmt;
use std::io::{self, IsTerminal, StdoutLock, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use spcd_core::terminal::escape_controls;
use unicode_width::UnicodeWidthStr as _;

macro_rules! print {
    ($($arg:tt)*) => { $crate::cli::terminal::to_stdout(format_args!($($arg)*)) };
}
macro_rules! println {
    () => { $crate::cli::terminal::to_stdout(format_args!("\n")) };
    ($($arg:tt)*) => {
        $crate::cli::terminal::to_stdout(format_args!("{}\n", format_args!($($arg)*)))
    };
}
#[allow(
    unused_macros,
    reason = "without it, `eprint!` would be that of the standard library"
)]
macro_rules! eprint {
    ($($arg:tt)*) => { $crate::cli::terminal::to_stderr(format_args!($($arg)*)) };
}
macro_rules! eprintln {
    ($($arg:tt)*) => {
        $crate::cli::terminal::to_stderr(format_args!("{}\n", format_args!($($arg)*)))
    };
}

const CLEAR_LINE: &str = "\r\x1b[K";
/// Clears the screen.
pub const CLEAR_SCREEN: &str = "\x1b[2J";

/// Writes escaped text to standard output. Ignores a closed pipe.
pub fn to_stdout(text: fmt::Arguments<'_>) {
    let _ = io::stdout().write_all(escape_controls(&text.to_string()).as_bytes());
}

/// Writes escaped text to standard error.
pub fn to_stderr(text: fmt::Arguments<'_>) {
    let _ = io::stderr().write_all(escape_controls(&text.to_string()).as_bytes());
}

/// Writes control sequences of the program, or text that is already escaped, to standard error.
pub fn control_stderr(sequences: &str) {
    let _ = io::stderr().write_all(sequences.as_bytes());
}

/// Like [`control_stderr`], to standard output.
pub fn control_stdout(sequences: &str) {
    let _ = io::stdout().write_all(sequences.as_bytes());
}

/// A line on standard error that shows progress, if that is a terminal. A clone is the same line.
#[derive(Debug, Clone, Default)]
pub struct ProgressLine {
    is_shown: Arc<AtomicBool>,
}

impl ProgressLine {
    /// Replaces the line.
    pub fn show(&self, text: &str) {
        if io::stderr().is_terminal() {
            self.is_shown.store(true, Relaxed);
            control_stderr(&format!("{CLEAR_LINE}{}", escape_controls(text)));
        }
    }

    /// Clears the line, if it is shown.
    pub fn clear(&self) {
        if self.is_shown.swap(false, Relaxed) {
            control_stderr(CLEAR_LINE);
        }
    }
}

/// Returns standard output. Output `for_programs` is escaped only on a terminal.
pub fn output(for_programs: bool) -> EscapingWriter<StdoutLock<'static>> {
    EscapingWriter {
        out: io::stdout().lock(),
        filters: !for_programs || io::stdout().is_terminal(),
        rest: Vec::new(),
    }
}

/// Returns the width of a text on a terminal after escaping, in columns.
pub fn width(text: &str) -> usize {
    escape_controls(text).width()
}

/// Pads a text with spaces to a width in columns.
pub fn padded(text: &str, columns: usize) -> String {
    text.to_owned() + &blanks(text, columns)
}

/// Like [`padded`], with the spaces before the text.
pub fn padded_left(text: &str, columns: usize) -> String {
    blanks(text, columns) + text
}

fn blanks(text: &str, columns: usize) -> String {
    " ".repeat(columns.saturating_sub(width(text)))
}

/// A writer that escapes control characters.
pub struct EscapingWriter<W> {
    out: W,
    filters: bool,
    /// First bytes of an incomplete character.
    rest: Vec<u8>,
}

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.filters {
            return self.out.write(bytes);
        }
        self.rest.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.rest) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            // Not UTF-8: invalid bytes are replaced.
            Err(_) => self.rest.len(),
        };
        let text = String::from_utf8_lossy(&self.rest[..whole]);
        self.out.write_all(escape_controls(&text).as_bytes())?;
        self.rest.drain(..whole);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_the_terminal() {
        for (text, columns) in [
            ("näme", 4),
            ("名前", 4),
            ("😀", 2),
            ("e\u{301}", 1),
            ("\u{1b}", 6),
        ] {
            assert_eq!(width(text), columns, "{text:?}");
        }
        assert_eq!(padded("名前", 6), "名前  ");
        assert_eq!(padded_left("名前", 6), "  名前");
        assert_eq!(padded("名前", 3), "名前");
    }

    #[test]
    fn characters_cut_by_writes_stay_whole_and_control_sequences_are_escaped() {
        let text = "ä\u{1b}[0m\u{9b}漢\n";
        let mut written = EscapingWriter {
            out: Vec::new(),
            filters: true,
            rest: Vec::new(),
        };
        for byte in text.as_bytes() {
            written.write_all(&[*byte]).unwrap();
        }
        let written = String::from_utf8(written.out).unwrap();
        assert_eq!(written, "ä\\u{1b}[0m\\u{9b}漢\n");
    }
}
