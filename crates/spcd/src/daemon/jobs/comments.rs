//! The source's comments, once a connection is ready and nobody waits for anything else.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use spcd_core::config::Target;
use spcd_core::plan;
use tokio::time::timeout;

use super::work::Shared;
use crate::daemon::gate::Place;
use crate::hub::{HubError, comments};

/// After all that somebody waits for.
const TURN: u8 = 3;
/// How long jobs under way are let go first: some may wait for a source for ever.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often comments are looked for anew when tables changed meanwhile.
const TRIES: usize = 3;

/// What is wanted of a connection's comments, and by which job.
pub struct Commenting {
    pub name: String,
    pub target: Target,
    pub number: u64,
    pub generation: i64,
}

impl Shared {
    /// Whether a connection's comments were looked for, or are being, since the daemon started.
    pub fn has_commented(&self, name: &str) -> bool {
        self.commenting().contains_key(name)
    }

    /// Takes note that from now on the job of this number looks for a connection's comments.
    pub fn will_comment(&self, name: &str, number: u64) {
        self.commenting().insert(name.to_owned(), number);
    }

    /// Gives up looking for a connection's comments, until they are wanted anew.
    pub fn leave_comments(&self, name: &str) {
        self.commenting().remove(name);
    }

    /// Puts the source's comments on the tables of a connection that is ready. Where that fails, the
    /// next answer of its source is an occasion to try again.
    pub async fn comment(&self, wanted: &Commenting) {
        let mut busy = self.busy.subscribe();
        let quiet = busy.wait_for(|jobs| *jobs == 0);
        // It ends by an error only with the daemon.
        let _ = timeout(PATIENCE, quiet).await;
        for _ in 0..TRIES {
            // A later job asks the source as it is to be asked now.
            if self.commenting().get(&wanted.name) != Some(&wanted.number) {
                return;
            }
            match self.try_comment(wanted).await {
                Ok(()) => return,
                Err(error) if error.is_passing() || error.is_stale() => {
                    tracing::debug!(connection = wanted.name, "its comments: {error}, again");
                }
                Err(error) => {
                    let name = &wanted.name;
                    return tracing::info!(connection = name, "its comments are not set: {error}");
                }
            }
        }
        tracing::info!(connection = wanted.name, "its comments are not set for now");
    }

    async fn try_comment(&self, wanted: &Commenting) -> Result<(), HubError> {
        let name = wanted.name.as_str();
        let (turn, number) = (TURN, wanted.number);
        let place = Place { turn, number };
        let said = self.sources.comments(&wanted.target, place).await?;
        let found = {
            let session = self.sources.session(place).await?;
            let found = comments::compare(session.client(), name, &said).await;
            session.give_back_after(&found);
            found?
        };
        let Some(found) = found else { return Ok(()) };
        if found.known && found.changes.is_empty() {
            return Ok(());
        }
        let (seen, generation) = (found.generation, wanted.generation.max(found.generation));
        for unit in plan::comment_units(name, &found.changes, seen, generation) {
            self.writer.write(unit, generation).await?;
        }
        Ok(())
    }

    fn commenting(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.commenting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
