//! Resolves the members of aggregators.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{LoadedBlock, Loader};
use crate::aggregator::{MemberCandidate, ResolvedMembers, resolve_members};
use crate::config::ConnectionKind;
use spcd_lang::syntax::{Problem, Span};

impl Loader<'_, '_> {
    pub(super) fn aggregators(&mut self, spans: &BTreeMap<String, (LoadedBlock, Span)>) {
        let chosen = {
            let candidates: BTreeMap<&str, MemberCandidate> = self
                .loaded
                .desired
                .connections
                .iter()
                .map(|(name, connection)| {
                    let patterns = match &connection.kind {
                        ConnectionKind::Plugin => None,
                        ConnectionKind::Aggregator { patterns, .. } => Some(patterns.clone()),
                    };
                    let plugin_instance = connection.plugin_instance.clone();
                    (
                        name.as_str(),
                        MemberCandidate {
                            plugin_instance,
                            patterns,
                        },
                    )
                })
                .collect();
            match spans.is_empty() {
                true => ResolvedMembers::default(),
                false => resolve_members(&candidates, &mut |work| self.budget.spend(work)),
            }
        };
        let ResolvedMembers {
            members,
            circles,
            excessive,
        } = chosen;
        for (name, found) in members {
            let Some((item, span)) = spans.get(&name) else {
                continue;
            };
            let mut error = None;
            if let Some(circle) = circles.get(&name) {
                let problem = Problem::new(
                    *span,
                    format!("this aggregator is a member of itself: {circle}"),
                );
                let problem = problem.hint("leave out one of them");
                error = self.report_errors(item, &[problem], Some(&name));
            }
            let mut warnings = Vec::new();
            if excessive.contains(&name) {
                let message = "the aggregators of all files together show too many connections";
                let problem = Problem::new(*span, message);
                let problem = problem.hint("list fewer here or in the blocks before");
                error = self.report_errors(item, &[problem], Some(&name));
            } else if found.is_empty() && self.has_patterns(&name) {
                let problem = Problem::new(
                    *span,
                    "no connection matches: the schema is empty until one does",
                );
                warnings = self.report_warnings(item, &[problem], Some(&name));
            }
            let Some(connection) = self.loaded.desired.connections.get_mut(&name) else {
                continue;
            };
            let connection = Arc::make_mut(connection);
            connection.warnings.append(&mut warnings);
            if let (Some(error), Ok(_)) = (&error, &connection.target) {
                connection.target = Err(error.clone());
            }
            if let ConnectionKind::Aggregator { members, .. } = &mut connection.kind {
                *members = found;
            }
            let connection = connection.clone();
            let views = self
                .inspection
                .iter_mut()
                .flat_map(|inspection| &mut inspection.connections);
            for view in views.filter(|view| view.name == name) {
                view.error = view.error.take().or_else(|| error.clone());
                view.connection.kind = connection.kind.clone();
            }
        }
    }

    /// Returns whether an aggregator's list of connections could be read and is not empty.
    fn has_patterns(&self, name: &str) -> bool {
        let connection = self.loaded.desired.connections.get(name);
        connection.is_some_and(|connection| match &connection.kind {
            ConnectionKind::Plugin => false,
            ConnectionKind::Aggregator { patterns, .. } => !patterns.is_empty(),
        })
    }
}
