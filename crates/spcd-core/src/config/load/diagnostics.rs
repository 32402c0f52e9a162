//! Turns problems of blocks into diagnostics of files.

use std::collections::HashMap;

use super::{Loaded, LoadedBlock, Loader};
use crate::config::{Diagnostic, Severity, UnknownInput};
use spcd_lang::syntax::{Block, Problem};

/// Maximum number of diagnostics per file; the rest is counted.
const MAX_DIAGNOSTICS: usize = 100;

impl Loader<'_, '_> {
    /// Marks a file as unknown input, with the last reported problem as the reason.
    pub(super) fn mark_unknown(&mut self, file: usize) {
        let last = self.loaded.diagnostics.last();
        if let Some(error) = last.map(Diagnostic::one_line) {
            self.mark_unknown_with(file, error);
        }
    }

    /// Marks a file as unknown input, with a reason. The first one stays.
    pub(super) fn mark_unknown_with(&mut self, file: usize, error: String) {
        let Some(text) = self.texts.get(file) else {
            return;
        };
        if self.unknown_files.insert(file) {
            self.loaded.desired.unknown_inputs.push(UnknownInput {
                mirror: None,
                path: text.path.to_owned(),
                is_directory: false,
                error: Some(error),
            });
        }
    }

    pub(super) fn report(
        &mut self,
        file: usize,
        base: usize,
        severity: Severity,
        problem: &Problem,
        connection: Option<&str>,
    ) {
        let Some(text) = self.texts.get(file) else {
            return;
        };
        self.loaded
            .diagnostics
            .push(text.diagnostic(base, severity, problem, connection));
    }

    /// Reports a block's problems; returns the first one in the form of a state's error.
    pub(super) fn report_errors(
        &mut self,
        item: &LoadedBlock,
        problems: &[Problem],
        connection: Option<&str>,
    ) -> Option<String> {
        self.report_all(item, Severity::Error, problems, connection);
        self.error_of(item, problems)
    }

    /// Reports a block's problems in the order of the text.
    pub(super) fn report_all(
        &mut self,
        item: &LoadedBlock,
        severity: Severity,
        problems: &[Problem],
        connection: Option<&str>,
    ) {
        let mut problems: Vec<&Problem> = problems.iter().collect();
        problems.sort_by_key(|problem| problem.span.start);
        for problem in problems {
            self.report(item.file, item.base, severity, problem, connection);
        }
    }

    /// Returns the first of a block's problems in the form of a state's error.
    pub(super) fn error_of(&self, item: &LoadedBlock, problems: &[Problem]) -> Option<String> {
        let first = problems.iter().min_by_key(|problem| problem.span.start)?;
        let text = self.texts.get(item.file)?;
        let first = text.diagnostic(item.base, Severity::Error, first, None);
        let mut error = first.one_line();
        if problems.len() > 1 {
            error.push_str(&format!(" (and {} more)", problems.len() - 1));
        }
        Some(error)
    }

    pub(super) fn report_warnings(
        &mut self,
        item: &LoadedBlock,
        warnings: &[Problem],
        connection: Option<&str>,
    ) -> Vec<String> {
        for warning in warnings {
            self.report(item.file, item.base, Severity::Warning, warning, connection);
        }
        warnings
            .iter()
            .map(|warning| warning.message.clone())
            .collect()
    }

    /// Returns the lines of a block's braces.
    pub(super) fn brace_lines(&self, item: &LoadedBlock, block: &Block) -> (u32, u32) {
        let Some(text) = self.texts.get(item.file) else {
            return (0, 0);
        };
        let at = |offset: u32| item.base + offset as usize;
        match item.line {
            // Counting within the block is cheaper than an index of the whole file.
            Some(line) => {
                let newlines = |from: usize, to: usize| {
                    let bytes = text.text.as_bytes().get(from..to).unwrap_or(&[]);
                    u32::try_from(bytes.iter().filter(|&&b| b == b'\n').count()).unwrap_or(u32::MAX)
                };
                let start = line + newlines(item.base, at(block.open));
                (start, start + newlines(at(block.open), at(block.close)))
            }
            None => (
                text.position(at(block.open)).0,
                text.position(at(block.close)).0,
            ),
        }
    }

    /// Sorts the diagnostics and shortens the list of each file.
    pub(super) fn finish(mut self) -> Loaded {
        let mut diagnostics = std::mem::take(&mut self.loaded.diagnostics);
        let order: HashMap<&str, usize> = self
            .texts
            .iter()
            .enumerate()
            .map(|(index, text)| (text.path, index))
            .collect();
        let file =
            |diagnostic: &Diagnostic| order.get(diagnostic.file.as_str()).copied().unwrap_or(0);
        diagnostics.sort_by_key(|d| (file(d), d.span.start, d.severity));
        let mut kept: Vec<Diagnostic> = Vec::with_capacity(diagnostics.len());
        let mut in_file = (usize::MAX, 0, 0);
        let mut last = None;
        let close = |kept: &mut Vec<Diagnostic>, last: &mut Option<Diagnostic>, more: usize| {
            if let (Some(mut last), true) = (last.take(), more > 0) {
                last.message = format!("and {more} more in this file");
                last.hint = Some("fix the first ones, then check again".to_owned());
                last.span = 0..0;
                last.connection = None;
                kept.push(last);
            }
        };
        for diagnostic in diagnostics {
            let index = file(&diagnostic);
            if index != in_file.0 {
                close(&mut kept, &mut last, in_file.2);
                in_file = (index, 0, self.suppressed.get(&index).copied().unwrap_or(0));
            }
            in_file.1 += 1;
            if in_file.1 <= MAX_DIAGNOSTICS {
                last = Some(diagnostic.clone());
                kept.push(diagnostic);
            } else {
                in_file.2 += 1;
            }
        }
        close(&mut kept, &mut last, in_file.2);
        self.loaded.diagnostics = kept;
        self.loaded
    }
}
