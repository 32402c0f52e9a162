//! Plugin blocks that were applied and cannot be read now. A connection of such a plugin keeps what it
//! has: without the block it would become a connection of a shipped plugin.

use std::sync::Arc;

use super::{AppliedFiles, Connection, ConnectionKind, DesiredState, PluginBlock, UnknownInput};
use crate::plugin::PluginName;

/// A `plugin` block of a file that vanished or cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostPlugin {
    /// Label of the block.
    pub label: String,
    /// Plugin that it defines.
    source: PluginName,
    /// Why its file is unknown; `None` if the file changes while it is read.
    reason: Option<String>,
}

impl AppliedFiles {
    /// Returns the recorded plugin blocks whose files are among `unknown`, unless one of the readable
    /// `blocks` has that label.
    pub fn lost_plugins(
        &self,
        blocks: &[PluginBlock],
        unknown: &[UnknownInput],
    ) -> Vec<LostPlugin> {
        let mut lost = Vec::new();
        for (path, input) in &self.0 {
            let Some(unread) = unknown
                .iter()
                .find(|unread| unread.mirror.is_none() && unread.holds(path))
            else {
                continue;
            };
            for (label, source) in &input.plugins {
                if blocks.iter().any(|block| block.label == *label) {
                    continue;
                }
                lost.push(LostPlugin {
                    label: label.clone(),
                    source: PluginName::new(source),
                    reason: unread.error.clone(),
                });
            }
        }
        lost
    }
}

impl LostPlugin {
    /// Returns whether a connection would be resolved to the block if it could be read.
    fn is_meant_by(&self, connection: &Connection, blocks: &[PluginBlock]) -> bool {
        if connection.mirror.is_some() {
            return false;
        }
        if connection.plugin == self.label {
            return true;
        }
        let is_block = |label: &str| blocks.iter().any(|block| block.label == label);
        !is_block(&connection.plugin_instance) && PluginName::new(&connection.plugin) == self.source
    }
}

impl DesiredState {
    /// Leaves connections of lost plugins as they are. `all` are the connections of all files, of which
    /// some may belong to another database, and `blocks` the readable plugin blocks.
    pub fn leave_connections_of<'a>(
        &mut self,
        lost: &[LostPlugin],
        blocks: &[PluginBlock],
        all: impl Iterator<Item = &'a Arc<Connection>>,
    ) {
        if lost.is_empty() {
            return;
        }
        for connection in all {
            let Some(plugin) = lost
                .iter()
                .find(|lost| lost.is_meant_by(connection, blocks))
            else {
                continue;
            };
            let error = plugin.reason.as_ref().map(|reason| {
                format!(
                    "{}:{}: its block `plugin \"{}\"` is unknown: {reason}",
                    connection.file, connection.start_line, plugin.label
                )
            });
            if let (Some(connection), Some(error)) =
                (self.connections.get_mut(&connection.name), &error)
            {
                let connection = Arc::make_mut(connection);
                connection.plugin_instance.clone_from(&plugin.label);
                if connection.kind == ConnectionKind::Plugin {
                    connection.target = Err(error.clone());
                }
                continue;
            }
            self.connections.remove(&connection.name);
            self.unknown_inputs.push(UnknownInput {
                mirror: None,
                path: connection.file.clone(),
                is_directory: false,
                error,
            });
        }
    }
}
