//! Writes to the hub that need no job.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use spcd_core::observed::Extension;
use spcd_core::planner::{LaneChange, RowChange};
use spcd_core::scheduler::Event;
use spcd_core::search_path::SearchPathChange;

use crate::daemon::LeaderSession;
use spcd_postgres::catalog::lanes;
use spcd_postgres::{HubError, extension, probe, search_path, writer};

impl LeaderSession<'_> {
    /// Publishes changes, and returns a generation for the jobs that follow.
    pub(super) async fn publish(
        &mut self,
        rows: &[RowChange],
        refresh_fingerprints: &[(String, Option<String>)],
        diagnostics: Option<&Value>,
    ) -> Result<Event, HubError> {
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        let next = "SELECT pg_catalog.nextval('spcd.generation')";
        let generation = client.query_one(next, &[]).await?.try_get(0)?;
        if !rows.is_empty() || !refresh_fingerprints.is_empty() || diagnostics.is_some() {
            let refresh_fingerprints: Vec<_> = (refresh_fingerprints.iter())
                .map(|(name, fingerprint)| (name.as_str(), fingerprint.as_deref()))
                .collect();
            writer::publish(
                client,
                epoch,
                generation,
                rows,
                &refresh_fingerprints,
                diagnostics,
            )
            .await?;
            self.log_rows(rows);
            if let Some(gateway) = self.config.gateway() {
                gateway.rows_written();
            }
        }
        Ok(Event::Published { generation })
    }

    /// Records that connections are paused or resumed.
    pub(super) async fn record_pause(
        &mut self,
        names: Vec<String>,
        is_pause: bool,
    ) -> Result<Event, HubError> {
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        probe::set_paused(client, epoch, &names, is_pause).await?;
        for name in &names {
            match is_pause {
                true => {
                    tracing::info!(connection = name, "connection paused");
                    self.jobs.leave_comments(name);
                }
                false => tracing::info!(connection = name, "connection resumed"),
            }
        }
        Ok(Event::PausesRecorded(names))
    }

    /// Sets search paths.
    pub(super) async fn set_search_path(
        &mut self,
        change: &SearchPathChange,
    ) -> Result<Event, HubError> {
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        let (mut refused, mut is_passing) = (Vec::new(), false);
        for failed in search_path::set(client, epoch, change).await? {
            if failed.is_transient {
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

    /// Creates extensions, each in its own transaction. An error affects only the connections that need it.
    pub(super) async fn create_extensions(
        &mut self,
        names: &BTreeSet<String>,
    ) -> Result<Event, HubError> {
        let mut refused = BTreeMap::new();
        for name in names {
            // Each needs its own session: the libraries of two wrappers may crash the server process.
            let session = self.endpoint.connect("extension").await;
            let session = session.map_err(|error| {
                tracing::warn!("cannot open a session: {error:#}");
                HubError::NoSession
            })?;
            let epoch = Some(self.lead.epoch);
            match extension::create(&session.client, epoch, name).await? {
                Extension::Refused(text) => {
                    tracing::warn!(extension = name, "cannot be created: {text}");
                    refused.insert(name.clone(), text);
                }
                _ => tracing::info!(extension = name, "created"),
            }
        }
        Ok(Event::ExtensionsCreated(refused))
    }

    /// Creates, alters and drops the servers of lanes, each in its own transaction.
    pub(super) async fn change_lanes(&mut self, changes: &[LaneChange]) -> Result<Event, HubError> {
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        let mut refused = BTreeMap::new();
        for change in changes {
            let server = change.server.as_str();
            match lanes::change(client, epoch, change).await {
                Ok(()) => tracing::debug!(server, "changed"),
                Err(HubError::StatementFailed { text, .. }) => {
                    tracing::warn!(server, "cannot be changed: {text}");
                    refused.insert(change.server.clone(), text);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Event::LanesChanged(refused))
    }
}
