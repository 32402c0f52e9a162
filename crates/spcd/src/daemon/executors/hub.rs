//! Writing to the hub what needs no job.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use spcd_core::plan::RowChange;
use spcd_core::scheduler::Event;
use spcd_core::search_path::PathChange;
use spcd_core::sql;

use crate::daemon::LeaderSession;
use crate::hub::{HubError, apply, probe, search_path};

impl LeaderSession<'_> {
    /// Publishes changes, and takes a generation for the jobs that follow.
    pub(super) async fn publish(
        &mut self,
        rows: &[RowChange],
        touched: &[(String, Option<String>)],
        diagnostics: Option<&Value>,
    ) -> Result<Event, HubError> {
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        let next = "SELECT pg_catalog.nextval('spcd.generation')";
        let generation = client.query_one(next, &[]).await?.try_get(0)?;
        if !rows.is_empty() || !touched.is_empty() || diagnostics.is_some() {
            let touched: Vec<_> = (touched.iter())
                .map(|(name, look)| (name.as_str(), look.as_deref()))
                .collect();
            apply::publish(client, epoch, generation, rows, &touched, diagnostics).await?;
            self.log_rows(rows);
        }
        Ok(Event::Published { generation })
    }

    /// Records which sources are left alone from now on, or no longer.
    pub(super) async fn record_pause(
        &mut self,
        names: Vec<String>,
        is_pause: bool,
    ) -> Result<Event, HubError> {
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        probe::hold(client, epoch, &names, is_pause).await?;
        for name in &names {
            match is_pause {
                true => {
                    tracing::info!(connection = name, "its source is left alone from now on");
                    self.jobs.leave_comments(name);
                }
                false => tracing::info!(connection = name, "its source is to be tried now"),
            }
        }
        Ok(Event::PausesRecorded(names))
    }

    /// Sets search paths.
    pub(super) async fn set_search_path(&mut self, change: &PathChange) -> Result<Event, HubError> {
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        let (mut refused, mut is_passing) = (Vec::new(), false);
        for failed in search_path::set(client, epoch, change).await? {
            if failed.passing {
                is_passing = true;
                continue;
            }
            let role = failed.role;
            tracing::warn!(role, "its search path cannot be set: {}", failed.reason);
            refused.push(role);
        }
        Ok(Event::SearchPathSet {
            hash: change.hash.clone(),
            refused,
            is_passing,
        })
    }

    /// Creates extensions, each by itself: one that is refused costs only its own connections.
    pub(super) async fn create_extensions(
        &mut self,
        names: &BTreeSet<String>,
    ) -> Result<Event, HubError> {
        let mut refused = BTreeMap::new();
        for name in names {
            // Where people expect it, and not in pg_catalog, which is our sessions' path.
            let create = format!(
                "SET search_path = public, spcd; CREATE EXTENSION IF NOT EXISTS {}; SET search_path = pg_catalog",
                sql::ident(name)
            );
            // In a session of its own: the script loads the wrapper's library, and two of them may
            // end the server process.
            let session = self.endpoint.connect("extension").await;
            let session = session.map_err(|error| {
                tracing::warn!("cannot open a session: {error:#}");
                HubError::NoSession
            })?;
            let created = session.client.batch_execute(&create).await;
            match created.map_err(HubError::from) {
                Ok(()) => tracing::info!(extension = name, "created"),
                Err(HubError::Refused { text, .. }) => {
                    tracing::warn!(extension = name, "cannot be created: {text}");
                    refused.insert(name.clone(), text);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Event::ExtensionsCreated(refused))
    }
}
