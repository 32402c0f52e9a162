//! Reads the files and observes the database.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use spcd_core::config::{Diagnostic, Loaded};
use spcd_core::observed::Observed;
use spcd_core::scheduler::{DriftReport, Event, PassInput};

use crate::config::Config;
use crate::daemon::LeaderSession;
use crate::watch::Watcher;
use spcd_postgres::catalog::{lanes, observe};
use spcd_postgres::config_files;
use spcd_postgres::{HubError, steampipe};

impl LeaderSession<'_> {
    /// Reads the files and observes the database, for a pass.
    pub(super) async fn observe_all(
        &mut self,
        waits_for_drift: bool,
        drift: Option<DriftReport>,
        is_awaited: bool,
    ) -> Result<Event, HubError> {
        let (mut observed, diagnostics) = match self.diagnostics.take() {
            Some(diagnostics) => (
                observe::observe_database(&self.lead.control.client).await?,
                diagnostics,
            ),
            None => self.read_files_and_hub().await?,
        };
        let desired = self.desired.clone();
        observe::complete_observation(&self.lead.control.client, &desired, &mut observed).await?;
        let files = self.csv.scan(&desired, is_awaited).await;
        let health = *self.health.borrow();
        self.observation_took = self.pass_began.elapsed();
        let drift = match waits_for_drift {
            true => Some(self.drift.answer().await?),
            false => drift,
        };
        let client = &self.lead.control.client;
        if let Some((links, parts)) = self.config.gateways() {
            let mut lanes = lanes::hub_lanes(client).await?;
            // Includes what running jobs will create.
            lanes.to_read = parts.servers_to_read(&desired);
            links.set_hub(lanes);
        }
        if let Some(drift) = &drift {
            observed.mark(drift.names.keys());
            observe::complete_observation(client, &desired, &mut observed).await?;
        }
        if let Some(steampipe) = &mut self.steampipe {
            let objects = steampipe::DesiredObjects::new(&desired, &observed);
            steampipe
                .reconcile(client, self.lead.epoch, objects)
                .await?;
        }
        Ok(Event::AllObserved(Box::new(PassInput {
            desired,
            observed,
            diagnostics,
            files,
            health,
            drift,
        })))
    }

    /// Reads the files alone. The following observation uses this result.
    pub(super) async fn read_files(&mut self) -> Result<Event, HubError> {
        self.take_mirrors().await?;
        let loaded = load(&mut self.watcher, self.config).await;
        let vanished = config_files::vanished(&self.lead.control.client).await?;
        let diagnostics = self.take_files(loaded, &vanished).await?;
        self.diagnostics = Some(diagnostics);
        Ok(Event::FilesRead(self.desired.clone()))
    }

    /// Observes these connections alone.
    pub(super) async fn observe(&mut self, names: &[String]) -> Result<Event, HubError> {
        let client = &self.lead.control.client;
        let mut observed = observe::observe_connections(client, names).await?;
        observe::complete_observation(client, &self.desired.only(names), &mut observed).await?;
        Ok(Event::Observed(Box::new(observed)))
    }

    /// Reads the files once they have settled, while the database answers.
    async fn read_files_and_hub(&mut self) -> Result<(Observed, Value), HubError> {
        self.take_mirrors().await?;
        let client = &self.lead.control.client;
        let (observed, vanished, loaded) = tokio::join!(
            observe::observe_database(client),
            config_files::vanished(client),
            load(&mut self.watcher, self.config)
        );
        let diagnostics = self.take_files(loaded, &vanished?).await?;
        Ok((observed?, diagnostics))
    }

    /// Records the lists of the mirrors' sources, then uses them.
    async fn take_mirrors(&mut self) -> Result<(), HubError> {
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        let views = self.mirrors.views(client, epoch).await?;
        self.config.set_mirror_views(views);
        Ok(())
    }

    /// Waits for the first answers of the sources of mirrors.
    pub(in crate::daemon) async fn read_mirrors(&mut self) {
        let loaded = load(&mut self.watcher, self.config).await;
        self.mirrors.keep(&loaded.desired.mirrors);
        self.mirrors.answered().await;
    }

    /// Uses the loaded files. Returns their diagnostics.
    async fn take_files(
        &mut self,
        loaded: Loaded,
        vanished: &BTreeSet<String>,
    ) -> Result<Value, HubError> {
        let mut desired = loaded.desired;
        // Vanished files that another session gave up.
        self.inputs.give_up(vanished);
        let inputs = self.config.keep_vanished(&self.inputs, &mut desired);
        if inputs != self.inputs {
            // Recorded before it is used: later disappearances must be detected.
            let client = &self.lead.control.client;
            config_files::write(client, self.lead.epoch, &self.inputs, &inputs).await?;
            self.inputs = inputs;
        }
        self.tunnels.keep(&desired);
        self.mirrors.keep(&desired.mirrors);
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        self.mirrors
            .delete_stale(client, epoch, &desired.mirrors)
            .await?;
        self.desired = Arc::new(desired);
        Ok(diagnostics_json(&loaded.diagnostics))
    }
}

/// Reads the files once they have settled.
async fn load(watcher: &mut Option<&mut Watcher>, config: &mut Config) -> Loaded {
    if let Some(watcher) = watcher
        && watcher.is_stirred()
    {
        watcher.settled().await;
    }
    tokio::task::block_in_place(|| config.load())
}

/// Returns the rows of `spcd.config_diagnostic`.
fn diagnostics_json(diagnostics: &[Diagnostic]) -> Value {
    let row = |diagnostic: &Diagnostic| {
        json!({
            "severity": diagnostic.severity,
            "file_name": diagnostic.file,
            "line": diagnostic.line,
            "column_number": diagnostic.column,
            "message": diagnostic.message,
            "hint": diagnostic.hint,
            "connection_name": diagnostic.connection,
        })
    };
    Value::Array(diagnostics.iter().map(row).collect())
}
