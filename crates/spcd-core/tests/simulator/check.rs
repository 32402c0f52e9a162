//! What is to hold once all is well.

use spcd_core::observed::ConfigSnapshot;
use spcd_protocol::Status;

use crate::objects::schema_hash;
use crate::script::{AGGREGATOR, FILE, NAMES};
use crate::world::{ANOTHER_SESSION, World};

impl World {
    /// What is not as the files say, if anything.
    pub fn difference(&mut self) -> Option<String> {
        let desired = self.desired();
        if let Some((id, _)) = self
            .hub
            .requests
            .iter()
            .find(|(_, one)| one.answer.is_none())
        {
            return Some(format!("request {id} has no answer"));
        }
        let Some(daemon) = &self.daemon else {
            return Some("no daemon leads".to_owned());
        };
        if let Some(name) = daemon.jobs.keys().next() {
            return Some(format!("a job of {name} runs"));
        }
        let usage = daemon.budget.to_string();
        if usage
            .split(", ")
            .any(|used| !used.contains(" 0/") && used != "stuck 0")
        {
            return Some(format!("permits are in use: {usage}"));
        }
        let aggregator = self.files.get(&AGGREGATOR);
        let is_all_shown = aggregator.is_some_and(|aggregator| aggregator.enabled);
        let is_desired = |name: &&String| {
            let connection = desired.connections.get(*name);
            connection.is_some_and(|connection| connection.enabled || is_all_shown)
        };
        if let Some(name) = self.hub.crashes.keys().find(is_desired) {
            return Some(format!("{name} is not asked again after its crash"));
        }
        if self.hub.readers && !self.hub.is_admitted {
            return Some("readers are not admitted".to_owned());
        }
        for (name, objects) in &self.hub.objects {
            let known = self.hub.rows.get(name);
            let is_enabled = known.is_some_and(|known| known.status != Status::Disabled);
            if objects.has_drifted() || objects.is_damaged {
                return Some(format!("{name} is not mended"));
            }
            if self.hub.readers && is_enabled && !objects.is_readable() {
                return Some(format!("{name} cannot be read"));
            }
        }
        if let Some(what) = self.hub.path_difference(&desired) {
            return Some(what);
        }
        if let Some(name) =
            (self.hub.rows.keys()).find(|name| !desired.connections.contains_key(*name))
        {
            return Some(format!("{name} has a row"));
        }
        for (index, definition) in &self.files {
            let name = NAMES[*index];
            let Some(row) = self.hub.rows.get(name) else {
                return Some(format!("{name} has no row"));
            };
            let expected = match definition.enabled {
                true => Status::Ready,
                false => Status::Disabled,
            };
            if row.status != expected {
                return Some(format!("{name} is {} ({:?})", row.status, row.error));
            }
            if row
                .warnings
                .iter()
                .any(|warning| warning == ANOTHER_SESSION)
            {
                return Some(format!("{name} warns of {:?}", row.warnings));
            }
            if !row
                .written
                .is_equivalent(&ConfigSnapshot::of(&desired.connections[name]))
            {
                return Some(format!("the row of {name} repeats an earlier file"));
            }
            let hash = row
                .applied
                .as_ref()
                .map(|applied| applied.target_hash.as_str());
            let is_right = match (*index, definition.enabled) {
                (AGGREGATOR | FILE, false) => row.applied.is_none(),
                (_, false) if !is_all_shown => row.applied.is_none(),
                (AGGREGATOR, _) => {
                    let members = self.hub.reads.get(name).cloned().unwrap_or_default();
                    let shown = |name: &&str| desired.connections.contains_key(*name);
                    let all: Vec<&str> =
                        NAMES[..AGGREGATOR].iter().copied().filter(shown).collect();
                    members == all && hash == Some(&self.hub.aggregator_hash(&members))
                }
                (index, _) => {
                    let target = desired.connections[name].target.as_ref().ok();
                    let traits = target
                        .map(|target| target.wrapper_traits())
                        .unwrap_or_default();
                    let shape = schema_hash(self.sources[index].shape, traits);
                    hash == Some(desired.target_hash(name)) && row.schema_hash == Some(shape)
                }
            };
            if !is_right {
                return Some(format!("{name} is not what its file says"));
            }
        }
        None
    }
}

impl World {
    /// Which of these are not as their files say, if any.
    pub fn unsettled(&mut self, names: &[&str]) -> Option<String> {
        let desired = self.desired();
        let is_settled = |name: &&&str| {
            let Some(row) = self.hub.rows.get(**name) else {
                return false;
            };
            let applied = row.applied.as_ref();
            let hash = applied.map(|applied| applied.target_hash.as_str());
            row.status == Status::Ready && hash == Some(desired.target_hash(name))
        };
        let name = names.iter().find(|name| !is_settled(name))?;
        let row = self.hub.rows.get(*name);
        let row = row.map(|row| format!("{} ({:?})", row.status, row.error));
        Some(format!("{name} waits for a source that hangs: {row:?}"))
    }
}
