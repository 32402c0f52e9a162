//! What is to hold once all is well.

use spcd_core::observed::Written;
use spcd_protocol::Status;

use crate::script::{AGGREGATOR, NAMES};
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
        let aggregator = self.files.get(&AGGREGATOR);
        let is_all_shown = aggregator.is_some_and(|aggregator| aggregator.enabled);
        let is_wanted = |name: &&String| {
            let connection = desired.connections.get(*name);
            connection.is_some_and(|connection| connection.enabled || is_all_shown)
        };
        if let Some(name) = self.hub.crashes.keys().find(is_wanted) {
            return Some(format!("{name} is not asked again after its crash"));
        }
        if let Some(name) = self.hub.drifted.iter().next() {
            return Some(format!("{name} is not mended"));
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
            let wanted = match definition.enabled {
                true => Status::Ready,
                false => Status::Disabled,
            };
            if row.status != wanted {
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
                .says_the_same(&Written::of(&desired.connections[name]))
            {
                return Some(format!("the row of {name} repeats an earlier file"));
            }
            let hash = row
                .applied
                .as_ref()
                .map(|applied| applied.target_hash.as_str());
            let is_right = match (*index, definition.enabled) {
                (index, false) if index == AGGREGATOR || !is_all_shown => row.applied.is_none(),
                (AGGREGATOR, _) => {
                    let members = self.hub.reads.get(name).cloned().unwrap_or_default();
                    let shown = |name: &&str| desired.connections.contains_key(*name);
                    let all: Vec<&str> =
                        NAMES[..AGGREGATOR].iter().copied().filter(shown).collect();
                    members == all && hash == Some(&self.hub.aggregator_hash(&members))
                }
                (index, _) => {
                    let shape = format!("shape {}", self.sources[index].shape);
                    hash == Some(desired.target_hash(name)) && row.shape_hash == Some(shape)
                }
            };
            if !is_right {
                return Some(format!("{name} is not what its file says"));
            }
        }
        None
    }
}
