//! Reads `plugin` blocks, and resolves a connection's `plugin` to one of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::key::{Key, key};
use super::sections;
use crate::plugin::{
    PluginDefinition, PluginName, STEAMPIPE_ATTRIBUTES, definition_of, is_shipped, shipped_near,
};
use spcd_lang::evaluate::DynEnvironment;
use spcd_lang::settings::Settings;
use spcd_lang::syntax::{Block, Problem};

/// Maximum number of labels that an unknown label is compared with.
const MAX_COMPARED: usize = 200;

/// `plugin` block, for `check`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PluginBlock {
    /// Label.
    pub label: String,
    /// Plugin that it defines: `source`, or the label.
    pub source: String,
    /// File that holds the block.
    pub file: String,
    /// Line of the opening brace.
    pub start_line: u32,
    /// Line of the closing brace.
    pub end_line: u32,
    /// Error.
    pub error: Option<String>,
}

/// `plugin` block with its definition.
#[derive(Debug, Clone)]
pub(super) struct PluginInstance {
    pub(super) view: PluginBlock,
    pub(super) name: PluginName,
    pub(super) definition: Arc<PluginDefinition>,
}

/// Plugin that a connection's `plugin` resolved to.
#[derive(Clone)]
pub(super) struct ResolvedPlugin {
    pub(super) instance: String,
    pub(super) definition: Arc<PluginDefinition>,
    /// Warning about a version without effect.
    pub(super) warning: Option<String>,
}

/// All `plugin` blocks of the files.
#[derive(Default)]
pub(super) struct PluginInstances {
    /// Wrappers can run in a gateway.
    pub(super) has_gateway: bool,
    list: Vec<PluginInstance>,
    by_label: BTreeMap<String, Vec<usize>>,
    by_name: BTreeMap<PluginName, Vec<usize>>,
    /// Cache of names without a block: thousands of connections use few of them.
    undefined: RefCell<HashMap<String, ResolvedPlugin>>,
}

/// Reads a `plugin` block. The caller sets the view's positions and error.
pub(super) fn instance(
    block: &Block,
    label: &str,
    lookup: &mut DynEnvironment<'_>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> PluginInstance {
    let settings = Settings::of(&block.body, &[], lookup, problems);
    let source = settings
        .text("source", problems)
        .unwrap_or_else(|| label.to_owned());
    let name = PluginName::new(&source);
    // The rule for undefined plugins does not apply to a block that names its own wrapper.
    let brings = ["extension", "wrapper"]
        .iter()
        .any(|own| settings.was_written(own));
    let mut definition = match brings && !is_shipped(&name) {
        true => PluginDefinition {
            dynamic: true,
            ..PluginDefinition::default()
        },
        false => definition_of(&name),
    };
    definition.apply_settings(&settings, problems);
    for setting in &settings.list {
        if STEAMPIPE_ATTRIBUTES.contains(&&*setting.name) {
            let message = format!(
                "`{}` has no effect: plugins run in the database's own processes",
                setting.name
            );
            warnings.push(Problem::new(setting.span, message).hint("remove it"));
        }
    }
    for section in &settings.blocks {
        if &*section.kind == "health" {
            definition.health = sections::health(section, problems);
        } else if &*section.kind == "limiter" {
            let message = "`limiter` has no effect: calls are not limited by spcd";
            warnings.push(Problem::new(section.span, message).hint("remove the block"));
        } else {
            let message = format!("a plugin block has no block `{}`", section.kind);
            problems.push(Problem::new(section.span, message));
        }
    }
    let view = PluginBlock {
        label: label.to_owned(),
        source,
        file: String::new(),
        start_line: 0,
        end_line: 0,
        error: None,
    };
    PluginInstance {
        view,
        name,
        definition: Arc::new(definition),
    }
}

impl PluginInstances {
    pub(super) fn new(has_gateway: bool) -> Self {
        Self {
            has_gateway,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, instance: PluginInstance) {
        let index = self.list.len();
        self.by_label
            .entry(instance.view.label.clone())
            .or_default()
            .push(index);
        self.by_name
            .entry(instance.name.clone())
            .or_default()
            .push(index);
        self.list.push(instance);
    }

    /// Returns the key of everything here that connections depend on.
    pub(super) fn key(&self) -> Key {
        key([&format!("{:?}", self.list), ""])
    }

    pub(super) fn views(&self) -> impl Iterator<Item = &PluginBlock> {
        self.list.iter().map(|instance| &instance.view)
    }

    pub(super) fn view(&self, index: usize) -> Option<&PluginBlock> {
        self.list.get(index).map(|instance| &instance.view)
    }

    /// Returns the indexes of blocks that share their label with another.
    pub(super) fn duplicates(&self) -> impl Iterator<Item = &[usize]> {
        self.by_label
            .values()
            .filter(|twins| twins.len() > 1)
            .map(Vec::as_slice)
    }

    /// Sets the error of a block that was added before.
    pub(super) fn mark_invalid(&mut self, index: usize, error: &str) {
        if let Some(instance) = self.list.get_mut(index) {
            instance.view.error.get_or_insert_with(|| error.to_owned());
        }
    }

    /// Resolves `plugin = plugin.label`.
    pub(super) fn reference(
        &self,
        label: &str,
    ) -> Result<ResolvedPlugin, (String, Option<String>)> {
        match self.by_label.get(label).map(Vec::as_slice) {
            Some([index, ..]) => self.resolved(*index),
            _ => {
                // Searching thousands of labels for the nearest one costs too much.
                let labels = self.by_label.keys().take(MAX_COMPARED).map(String::as_str);
                let hint = spcd_lang::nearest::nearest(label, labels)
                    .map(|near| format!("did you mean `plugin.{near}`?"));
                let hint =
                    hint.or_else(|| Some(format!("write a block `plugin \"{label}\" {{ … }}`")));
                Err((format!("there is no block `plugin \"{label}\"`"), hint))
            }
        }
    }

    /// Resolves `plugin = "…"`.
    pub(super) fn named(&self, written: &str) -> Result<ResolvedPlugin, (String, Option<String>)> {
        if let Some([index, ..]) = self.by_label.get(written).map(Vec::as_slice) {
            return self.resolved(*index);
        }
        if let Some(resolved) = self.undefined.borrow().get(written) {
            return Ok(resolved.clone());
        }
        let name = PluginName::new(written);
        match self.by_name.get(&name).map(Vec::as_slice) {
            Some([index]) => return self.resolved(*index),
            Some(several) => {
                let labels: Vec<&str> = several
                    .iter()
                    .filter_map(|i| self.list.get(*i))
                    .map(|i| i.view.label.as_str())
                    .collect();
                let message = format!(
                    "`{written}` is the source of {} plugin blocks",
                    several.len()
                );
                let hint = labels
                    .first()
                    .map(|label| format!("choose one: `plugin = plugin.{label}`"));
                return Err((message, hint));
            }
            None => {}
        }
        if let (false, Some(near)) = (is_shipped(&name), shipped_near(&name)) {
            let message = format!("there is no plugin `{}`", name.short());
            return Err((message, Some(format!("did you mean `{near}`?"))));
        }
        let warning = (is_shipped(&name) && name.version != "latest").then(|| {
            format!(
                "the version `{}` has no effect: the extension that is installed is used",
                name.version
            )
        });
        let instance = if is_shipped(&name) {
            name.name.clone()
        } else {
            name.short()
        };
        let resolved = ResolvedPlugin {
            instance,
            definition: Arc::new(definition_of(&name)),
            warning,
        };
        self.undefined
            .borrow_mut()
            .insert(written.to_owned(), resolved.clone());
        Ok(resolved)
    }

    fn resolved(&self, index: usize) -> Result<ResolvedPlugin, (String, Option<String>)> {
        let none = || (String::new(), None);
        let instance = self.list.get(index).ok_or_else(none)?;
        if let Some(error) = &instance.view.error {
            return Err((
                format!(
                    "its block `plugin \"{}\"` is in error: {error}",
                    instance.view.label
                ),
                None,
            ));
        }
        Ok(ResolvedPlugin {
            instance: instance.view.label.clone(),
            definition: instance.definition.clone(),
            warning: None,
        })
    }
}
