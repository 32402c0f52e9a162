//! Reading files and database.

use std::sync::Arc;

use serde_json::{Value, json};
use spcd_core::config::{Desired, Diagnostic, Severity};
use spcd_core::observed::Observed;
use spcd_core::scheduler::{DriftReport, Event, Look};

use crate::daemon::LeaderSession;
use crate::hub::{HubError, inputs, observe, steampipe};

impl LeaderSession<'_> {
    /// Reads everything that a pass decides from.
    pub(super) async fn look(
        &mut self,
        waits_for_drift: bool,
        drift: Option<DriftReport>,
        is_awaited: bool,
    ) -> Result<Event, HubError> {
        let (desired, diagnostics, mut observed) = self.look_at_files_and_hub().await?;
        self.tunnels.keep(&desired);
        let files = self.csv.look(&desired, is_awaited).await;
        let health = *self.health.borrow();
        self.looked_for = self.pass_began.elapsed();
        let drift = match waits_for_drift {
            true => Some(self.drift.answer().await?),
            false => drift,
        };
        let client = &self.lead.control.client;
        if let Some(drift) = &drift {
            observed.mark(drift.names.keys());
            observe::complete(client, &desired, &mut observed).await?;
        }
        if let Some(steampipe) = &mut self.steampipe {
            let wanted = steampipe::Wanted::of(&desired, &observed);
            steampipe.follow(client, self.lead.epoch, wanted).await?;
        }
        self.desired = Arc::new(desired);
        Ok(Event::Looked(Box::new(Look {
            desired: self.desired.clone(),
            observed,
            diagnostics,
            files,
            health,
            drift,
        })))
    }

    /// Reads the files while the database answers and the files settle.
    async fn look_at_files_and_hub(&mut self) -> Result<(Desired, Value, Observed), HubError> {
        let client = &self.lead.control.client;
        let reading = async {
            if let Some(watcher) = &mut self.watcher
                && watcher.is_stirred()
            {
                watcher.settled().await;
            }
            tokio::task::block_in_place(|| self.config.load())
        };
        let (observed, vanished, loaded) =
            tokio::join!(observe::first(client), inputs::vanished(client), reading);
        let (mut observed, mut desired) = (observed?, loaded.desired);
        // Those that another session gave up.
        self.inputs.give_up(&vanished?);
        let inputs = self.config.doubt_vanished(&self.inputs, &mut desired);
        observe::complete(client, &desired, &mut observed).await?;
        if inputs != self.inputs {
            // Before anything is made of it: what follows must not vanish unseen.
            inputs::write(client, self.lead.epoch, &self.inputs, &inputs).await?;
            self.inputs = inputs;
        }
        Ok((desired, diagnostics_json(&loaded.diagnostics), observed))
    }
}

/// Returns the rows of `spcd.config_diagnostic`.
fn diagnostics_json(diagnostics: &[Diagnostic]) -> Value {
    let row = |diagnostic: &Diagnostic| {
        json!({
            "severity": match diagnostic.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
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
