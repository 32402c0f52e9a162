//! Following the sources of mirrors.

use super::record::NextAttempt;
use super::state::State;
use crate::model::DesiredState;

impl State {
    /// Has the source of each mirrored connection asked whose tables may have changed there.
    pub(super) fn follow_mirrors(&mut self, desired: &DesiredState) {
        for (name, connection) in &desired.connections {
            let origin = connection.mirror.as_ref();
            let Some(stamp) = origin.and_then(|origin| origin.stamp.as_ref()) else {
                continue;
            };
            let record = self.record(name);
            if record.source_stamp.as_ref() == Some(stamp) {
                continue;
            }
            record.source_stamp = Some(stamp.clone());
            record.refresh = true;
            // The attempt before found the source at work, or not at all.
            record.locks.until = None;
            if let Some(failure) = &mut record.failure {
                failure.next = NextAttempt::Due;
            }
        }
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
}
