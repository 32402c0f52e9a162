//! Imports that changes at the sources of mirrors require.

use super::record::NextAttempt;
use super::state::State;
use crate::model::{Connection, DesiredState};

impl State {
    /// Requests an import of each mirrored connection whose tables may have changed at the source.
    pub(super) fn follow_mirrors(&mut self, desired: &DesiredState) {
        self.follow_sources(desired);
        for (name, record) in &mut self.connections {
            let is_mirrored = |name: &str| {
                desired
                    .connections
                    .get(name)
                    .is_some_and(|one| one.mirror.is_some())
            };
            if record.source_stamp.is_some() && !is_mirrored(name) {
                record.source_stamp = None;
            }
        }
    }

    /// The same for a part of the desired connections.
    pub(super) fn follow_sources(&mut self, part: &DesiredState) {
        for (name, connection) in &part.connections {
            let Some(stamp) = self.changed_stamp(name, connection).cloned() else {
                continue;
            };
            let record = self.record(name);
            record.source_stamp = Some(stamp);
            record.refresh = true;
            // The previous attempt found the source at work or did not reach it.
            record.locks.until = None;
            if let Some(failure) = &mut record.failure {
                failure.next = NextAttempt::Due;
            }
        }
    }

    /// Returns the stamp of a mirrored connection whose tables may have changed at its source.
    pub(super) fn changed_stamp<'a>(
        &self,
        name: &str,
        connection: &'a Connection,
    ) -> Option<&'a String> {
        let stamp = connection.mirror.as_ref()?.stamp.as_ref()?;
        let known = self
            .get(name)
            .and_then(|record| record.source_stamp.as_ref());
        (known != Some(stamp)).then_some(stamp)
    }
}
