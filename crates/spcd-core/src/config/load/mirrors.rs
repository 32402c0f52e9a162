//! Reads `mirror` blocks into the desired state.

use std::collections::BTreeMap;

use super::blocks::duplicate_problem;
use super::{FileEnvironment, LoadedBlock, Loader};
use crate::config::mirror::{self, invalid_name};
use spcd_lang::settings::Settings;
use spcd_lang::syntax::{Problem, Span};

impl Loader<'_, '_> {
    /// Reads the mirrors. Two of one name are both in error, and the first one keeps its connections.
    pub(super) fn mirrors(&mut self, items: &[LoadedBlock]) {
        let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for item in items {
            let Some((name, _)) = label(item) else {
                continue;
            };
            let path = self.texts.get(item.file).map_or("", |text| text.path);
            let line = item
                .block()
                .map_or(0, |block| self.brace_lines(item, block).0);
            named
                .entry(name)
                .or_default()
                .push(format!("{path}:{line}"));
        }
        let mut counted: BTreeMap<String, usize> = BTreeMap::new();
        for item in items {
            let Some((name, span)) = label(item) else {
                continue;
            };
            let mut problems: Vec<Problem> = (item.parsed())
                .map(|parsed| parsed.problems.clone())
                .unwrap_or_default();
            problems.extend(item.extra.iter().cloned());
            let whole = problems.is_empty();
            problems.extend(invalid_name(&name, span));
            if let Some(twins) = named.get(&name).filter(|twins| twins.len() > 1) {
                let position = counted.entry(name.clone()).or_default();
                problems.push(duplicate_problem("mirror", &name, *position, twins, span));
                *position += 1;
            }
            self.mirror(item, &name, problems, whole);
        }
    }

    fn mirror(&mut self, item: &LoadedBlock, name: &str, mut problems: Vec<Problem>, whole: bool) {
        let Some(block) = item.block() else { return };
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let mut lookup =
            FileEnvironment::of(self.given, path, &mut self.budget).with_locals(&self.locals);
        let settings = Settings::of(&block.body, &[], &mut lookup, &mut problems);
        let mut read = mirror::read(&settings, name, path, block.span, whole, &mut problems);
        (read.start_line, read.end_line) = self.brace_lines(item, block);
        if let Some(error) = self.report_errors(item, &problems, None) {
            read.target = Err(error);
        }
        let mirrors = &mut self.loaded.desired.mirrors;
        mirrors.entry(name.to_owned()).or_insert(read);
    }
}

fn label(item: &LoadedBlock) -> Option<(String, Span)> {
    let label = item.block()?.labels.first()?;
    Some((label.text.to_string(), label.span))
}
