//! Reads `plugin` and `options` blocks.

use std::collections::BTreeMap;

use super::{FileEnvironment, LoadedBlock, Loader};
use crate::config::{options, plugins};
use spcd_lang::settings::Settings;
use spcd_lang::syntax::{Block, Problem, Span};
use spcd_lang::value::Value;

impl Loader<'_, '_> {
    pub(super) fn plugin(
        &mut self,
        item: LoadedBlock,
        block: &Block,
        label: &str,
        mut problems: Vec<Problem>,
    ) {
        let mut warnings = Vec::new();
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let span = block.labels.first().map_or(block.span, |label| label.span);
        if label.is_empty() || label.contains('\0') {
            problems.push(Problem::new(
                span,
                "a plugin block's label is some text without NUL",
            ));
        }
        let mut lookup =
            FileEnvironment::of(self.given, path, &mut self.budget).with_locals(&self.locals);
        let mut instance =
            plugins::instance(block, label, &mut lookup, &mut problems, &mut warnings);
        instance.view.file = path.to_owned();
        (instance.view.start_line, instance.view.end_line) = self.brace_lines(&item, block);
        instance.view.error = self.report_errors(&item, &problems, None);
        self.report_warnings(&item, &warnings, None);
        self.instances.add(instance);
        self.instance_items.push((item, span));
    }

    /// Reports plugin blocks that share a label.
    pub(super) fn report_duplicate_plugins(&mut self) {
        let twins: Vec<Vec<usize>> = self.instances.duplicates().map(<[usize]>::to_vec).collect();
        for indexes in twins {
            let places: Vec<String> = indexes
                .iter()
                .filter_map(|index| self.instances.view(*index))
                .map(|view| format!("{}:{}", view.file, view.start_line))
                .collect();
            for (position, index) in indexes.iter().enumerate() {
                let Some((item, span)) = self.instance_items.get(*index).cloned() else {
                    continue;
                };
                let label = self.instances.view(*index).map_or("", |view| &view.label);
                let problem = duplicate_problem("plugin", label, position, &places, span);
                if let Some(error) = self.report_errors(&item, &[problem], None) {
                    self.instances.mark_invalid(*index, &error);
                }
            }
        }
        self.loaded.plugins = self.instances.views().cloned().collect();
    }

    pub(super) fn options(
        &mut self,
        item: &LoadedBlock,
        block: &Block,
        label: &str,
        mut problems: Vec<Problem>,
        written: &mut BTreeMap<String, (usize, u32)>,
    ) {
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let mut lookup =
            FileEnvironment::of(self.given, path, &mut self.budget).with_locals(&self.locals);
        let settings = Settings::of(&block.body, &[], &mut lookup, &mut problems);
        let mut warnings = Vec::new();
        let span = block.labels.first().map_or(block.span, |label| label.span);
        warnings.extend(options::no_effect_warning(label, span));
        let database = (label == "database")
            .then(|| options::database(&settings, &mut problems, &mut warnings));
        match written.get(label) {
            None => {
                let place = (item.file, self.brace_lines(item, block).0);
                written.insert(label.to_owned(), place);
                if let Some(mut database) = database {
                    database.file = Some(path.to_owned());
                    self.loaded.desired.database = database;
                }
            }
            Some((file, line)) => {
                let first = self.texts.get(*file).map_or("", |text| text.path);
                let label: String = label.chars().filter(|c| !c.is_control()).collect();
                let message =
                    format!("`options \"{label}\"` is written twice; {first}:{line} counts");
                problems.push(Problem::new(span, message).hint("join the two blocks"));
            }
        }
        if let Some(inspection) = &mut self.inspection {
            inspection
                .options
                .entry(label.to_owned())
                .or_insert_with(|| Value::Object(settings.object()));
        }
        self.report_errors(item, &problems, None);
        self.report_warnings(item, &warnings, None);
    }
}

/// Returns the problem of a block that exists more than once; it names the others.
pub(super) fn duplicate_problem(
    kind: &str,
    name: &str,
    position: usize,
    places: &[String],
    span: Span,
) -> Problem {
    let others: Vec<&str> = places
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != position)
        .map(|(_, place)| place.as_str())
        .take(5)
        .collect();
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let message = format!("{kind} `{name}` is also written at {}", others.join(", "));
    Problem::new(span, message).hint("rename or remove one of them")
}
