//! Executes the scheduler's commands. Makes no decisions.

pub mod drift;
pub mod files;
pub mod forward;
mod hub;
pub mod jobs;
mod observe;
mod requests;

use spcd_core::planner::Task;
use spcd_core::scheduler::{Command, Event, ProbeCommand};
use tokio::time::Instant;

use super::LeaderSession;
use spcd_postgres::HubError;
use spcd_postgres::crash_guard;

impl LeaderSession<'_> {
    /// Executes a command. Returns the event that reports its result, if there is one already.
    pub(super) async fn execute(&mut self, command: Command) -> Result<Option<Event>, HubError> {
        match command {
            Command::ReadRequests { open } => {
                self.pass_began = Instant::now();
                self.diagnostics = None;
                self.notice_files().await;
                let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
                let mut read = requests::read(client, epoch, &open).await?;
                if matches!(&read, Event::Requested { requests, .. } if !requests.is_empty()) {
                    self.mirrors.request_reads();
                }
                if let (Some((links, parts)), Event::Requested { requests, .. }) =
                    (self.config.gateways(), &mut read)
                {
                    self.forwarded.defer_answers(links, parts, requests);
                }
                return Ok(Some(read));
            }
            Command::AskDrift { pass, is_urgent } => {
                self.drift.ask(pass, self.pass_began, is_urgent);
            }
            Command::ReadFiles => return self.read_files().await.map(Some),
            Command::Observe(names) => return self.observe(&names).await.map(Some),
            Command::ObserveAll {
                waits_for_drift,
                drift,
                is_awaited,
            } => return (self.observe_all(waits_for_drift, drift, is_awaited).await).map(Some),
            Command::CreateExtensions(names) => {
                return self.create_extensions(&names).await.map(Some);
            }
            Command::ChangeLanes(changes) => {
                return self.change_lanes(&changes).await.map(Some);
            }
            Command::RecordPause { names, is_pause } => {
                return self.record_pause(names, is_pause).await.map(Some);
            }
            Command::AdmitReaders => {
                // In one transaction: a former leader must not admit roles.
                let epoch = self.lead.epoch;
                let admit =
                    format!("SELECT spcd.assert_lead({epoch}); SELECT spcd.admit_readers()");
                self.lead.control.client.batch_execute(&admit).await?;
            }
            Command::SetSearchPath(change) => {
                return self.set_search_path(&change).await.map(Some);
            }
            Command::Publish {
                rows,
                refresh_fingerprints,
                diagnostics,
            } => {
                return (self
                    .publish(&rows, &refresh_fingerprints, diagnostics.as_ref())
                    .await)
                    .map(Some);
            }
            Command::Answer { id, error } => {
                let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
                let error = error.or_else(|| self.forwarded.take_error(id));
                requests::answer(client, epoch, id, error).await?;
                return Ok(Some(Event::Answered(id)));
            }
            Command::ForgetCrash(name) => {
                crash_guard::delete_record(&self.lead.control.client, self.lead.epoch, &name)
                    .await?;
                return Ok(Some(Event::CrashForgotten(name)));
            }
            Command::ReportStart { running } => self.log_start(running).await?,
            command => self.execute_beside(command),
        }
        Ok(None)
    }

    /// Executes a command that needs no session of the loop.
    fn execute_beside(&mut self, command: Command) {
        match command {
            Command::Start {
                work,
                generation,
                urgency,
            } => {
                if let Task::Import(_) = &work.task {
                    self.csv.begin_read(&work.name);
                }
                self.follow_change(&work);
                let connection = self.desired.connections.get(&work.name).cloned();
                self.jobs.start(work, connection, generation, urgency);
            }
            Command::Cancel(name) => self.jobs.cancel(&name),
            Command::Prioritize(name) => self.jobs.prioritize(&name),
            Command::FilesUnread(name) => self.csv.cancel_read(&name),
            Command::Comment(names) => {
                for name in names {
                    if let Some(connection) = self.desired.connections.get(&name) {
                        self.jobs.comment(&name, connection);
                    }
                }
            }
            Command::Probe(command) => self.tell_probes(command),
            Command::Report(outcome) => self.report(outcome),
            Command::ReportNoDrift { pass } => {
                let micros = self.drift.since().as_micros() as u64;
                tracing::debug!(pass, micros, "nothing was altered");
            }
            // `execute` handles these.
            _ => {}
        }
    }

    fn tell_probes(&self, command: ProbeCommand) {
        if let Some(probes) = &self.probes {
            probes.send(command);
        }
    }
}
