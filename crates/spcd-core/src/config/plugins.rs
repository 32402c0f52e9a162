//! The user's `plugin` blocks, and which of them a connection means.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::key::{Key, key};
use super::sections;
use crate::plugin::{
    Definition, PluginName, STEAMPIPE_ATTRIBUTES, definition_of, is_shipped, shipped_near,
};
use spcd_lang::evaluate::Lookup;
use spcd_lang::settings::Settings;
use spcd_lang::syntax::{Block, Problem};

/// How many labels a label that is not there is compared with.
const MAX_COMPARED: usize = 200;

/// A `plugin` block, for `check`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PluginBlock {
    /// Its label.
    pub label: String,
    /// The plugin it is about: `source`, or the label.
    pub source: String,
    /// The file it is in.
    pub file: String,
    /// The line of its opening brace.
    pub start_line: u32,
    /// The line of its closing brace.
    pub end_line: u32,
    /// What is wrong with it.
    pub error: Option<String>,
}

/// A `plugin` block as connections see it.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) view: PluginBlock,
    pub(super) name: PluginName,
    pub(super) definition: Arc<Definition>,
}

/// What a connection's `plugin` means.
#[derive(Clone)]
pub(super) struct Resolved {
    pub(super) instance: String,
    pub(super) definition: Arc<Definition>,
    /// What has no effect.
    pub(super) warning: Option<String>,
}

/// All of the user's `plugin` blocks, by label.
#[derive(Default)]
pub(super) struct Instances {
    list: Vec<Instance>,
    by_label: BTreeMap<String, Vec<usize>>,
    by_name: BTreeMap<PluginName, Vec<usize>>,
    /// What names meant that no block of the user's defines: thousands of connections use few.
    undefined: RefCell<HashMap<String, Resolved>>,
}

/// Reads a `plugin` block. The view's places and error are filled in by the caller.
pub(super) fn instance(
    block: &Block,
    label: &str,
    lookup: &mut Lookup<'_>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Instance {
    let settings = Settings::of(&block.body, &[], lookup, problems);
    let source = settings
        .text("source", problems)
        .unwrap_or_else(|| label.to_owned());
    let name = PluginName::new(&source);
    // A block that brings a wrapper of its own owes nothing to the rule for undefined plugins.
    let brings = ["extension", "wrapper"]
        .iter()
        .any(|own| settings.was_written(own));
    let mut definition = match brings && !is_shipped(&name) {
        true => Definition {
            dynamic: true,
            ..Definition::default()
        },
        false => definition_of(&name),
    };
    definition.change(&settings, problems);
    for setting in &settings.list {
        if STEAMPIPE_ATTRIBUTES.contains(&&*setting.name) {
            let message = format!(
                "`{}` has no effect: plugins run in the database's own processes",
                setting.name
            );
            warnings.push(Problem::new(setting.span, message).hint("remove it"));
        }
    }
    for section in &settings.sections {
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
    Instance {
        view,
        name,
        definition: Arc::new(definition),
    }
}

impl Instances {
    pub(super) fn add(&mut self, instance: Instance) {
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

    /// Stands for everything that connections can learn here.
    pub(super) fn key(&self) -> Key {
        key([&format!("{:?}", self.list), ""])
    }

    pub(super) fn views(&self) -> impl Iterator<Item = &PluginBlock> {
        self.list.iter().map(|instance| &instance.view)
    }

    pub(super) fn view(&self, index: usize) -> Option<&PluginBlock> {
        self.list.get(index).map(|instance| &instance.view)
    }

    /// The indexes of blocks that share their label with another.
    pub(super) fn twins(&self) -> impl Iterator<Item = &[usize]> {
        self.by_label
            .values()
            .filter(|twins| twins.len() > 1)
            .map(Vec::as_slice)
    }

    /// Notes what is wrong with a block after it was added.
    pub(super) fn spoil(&mut self, index: usize, error: &str) {
        if let Some(instance) = self.list.get_mut(index) {
            instance.view.error.get_or_insert_with(|| error.to_owned());
        }
    }

    /// What `plugin = plugin.label` means.
    pub(super) fn reference(&self, label: &str) -> Result<Resolved, (String, Option<String>)> {
        match self.by_label.get(label).map(Vec::as_slice) {
            Some([index, ..]) => self.resolved(*index),
            _ => {
                // Of thousands the nearest is not worth the search.
                let labels = self.by_label.keys().take(MAX_COMPARED).map(String::as_str);
                let hint = spcd_lang::nearest::nearest(label, labels)
                    .map(|near| format!("did you mean `plugin.{near}`?"));
                let hint =
                    hint.or_else(|| Some(format!("write a block `plugin \"{label}\" {{ … }}`")));
                Err((format!("there is no block `plugin \"{label}\"`"), hint))
            }
        }
    }

    /// What `plugin = "…"` means.
    pub(super) fn named(&self, written: &str) -> Result<Resolved, (String, Option<String>)> {
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
        let resolved = Resolved {
            instance,
            definition: Arc::new(definition_of(&name)),
            warning,
        };
        self.undefined
            .borrow_mut()
            .insert(written.to_owned(), resolved.clone());
        Ok(resolved)
    }

    fn resolved(&self, index: usize) -> Result<Resolved, (String, Option<String>)> {
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
        Ok(Resolved {
            instance: instance.view.label.clone(),
            definition: instance.definition.clone(),
            warning: None,
        })
    }
}
