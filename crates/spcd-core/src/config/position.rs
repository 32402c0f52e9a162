//! Converts offsets to lines and columns.

use std::cell::OnceCell;

use super::{Diagnostic, Severity};
use spcd_lang::syntax::Problem;

/// Text of a file, with the offsets of its lines, which are computed on demand.
pub(crate) struct SourceText<'a> {
    pub(crate) path: &'a str,
    pub(crate) text: &'a str,
    lines: OnceCell<Vec<usize>>,
}

impl<'a> SourceText<'a> {
    /// Creates the text without its byte order mark.
    pub(crate) fn new(path: &'a str, text: &'a str) -> Self {
        Self {
            path,
            text: without_byte_order_mark(text),
            lines: OnceCell::new(),
        }
    }

    /// Returns line and column of an offset, in characters from 1.
    pub(crate) fn position(&self, offset: usize) -> (u32, u32) {
        let lines = self.lines.get_or_init(|| {
            let newlines = self
                .text
                .bytes()
                .enumerate()
                .filter(|(_, byte)| *byte == b'\n');
            std::iter::once(0)
                .chain(newlines.map(|(at, _)| at + 1))
                .collect()
        });
        let offset = offset.min(self.text.len());
        let line = lines.partition_point(|&start| start <= offset).max(1);
        let start = lines.get(line - 1).copied().unwrap_or(0);
        let before = self
            .text
            .get(start..offset)
            .map_or(offset - start, |t| t.chars().count());
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        (count(line), count(before + 1))
    }

    /// Converts a problem whose span counts from `base` to a diagnostic.
    pub(crate) fn diagnostic(
        &self,
        base: usize,
        severity: Severity,
        problem: &Problem,
        connection: Option<&str>,
    ) -> Diagnostic {
        let start = (base + problem.span.start as usize).min(self.text.len());
        let end = (base + problem.span.end as usize).clamp(start, self.text.len());
        let (line, column) = self.position(start);
        Diagnostic {
            severity,
            file: self.path.to_owned(),
            line,
            column,
            span: start..end,
            message: problem.message.clone(),
            hint: problem.hint.clone(),
            connection: connection.map(str::to_owned),
        }
    }
}

/// Returns a text without the byte order mark that some editors write.
pub(crate) fn without_byte_order_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}
