//! Drift detection, beside the loop.
//!
//! Reading the sums of row versions takes about 10 times as long as the rest of the observation, so no
//! saved file waits for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::HubSettings;
use spcd_core::scheduler::DriftReport;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::source::MANY_JOBS;
use spcd_postgres::HubError;
use spcd_postgres::catalog::observe;
use spcd_postgres::connection::Session;

/// How long the question rests while many jobs are under way: it takes about half a second of a core
/// where there are fifty thousand tables.
const REST: Duration = Duration::from_secs(3);

/// The question, of which one is under way at a time.
pub struct Drift {
    observer: Arc<Session>,
    question: JoinSet<Result<DriftReport, HubError>>,
    /// When the pass began that asked.
    began: Instant,
    /// How long the last answer came after the begin of its pass.
    since: Duration,
    /// A later pass has asked, too.
    again: Option<(u64, Instant)>,
    /// The connections whose jobs ended since it was put: it may not have seen what they wrote.
    ended: BTreeSet<String>,
    /// How many jobs are under way.
    jobs: watch::Receiver<usize>,
    /// The answer is waited for.
    hurry: Arc<Notify>,
}

impl Drift {
    /// Nothing is asked yet.
    pub fn new(observer: Session, jobs: watch::Receiver<usize>) -> Self {
        Self {
            observer: Arc::new(observer),
            question: JoinSet::new(),
            began: Instant::now(),
            since: Duration::ZERO,
            again: None,
            ended: BTreeSet::new(),
            jobs,
            hurry: Arc::default(),
        }
    }

    /// Asks on behalf of a pass that began then; once more after the answer that is still to come.
    /// Unless it `is_urgent`, many jobs may go first.
    pub fn ask(&mut self, pass: u64, began: Instant, is_urgent: bool) {
        if is_urgent {
            self.hurry.notify_one();
        }
        if !self.question.is_empty() {
            self.again = Some((pass, began));
            return;
        }
        self.ended.clear();
        self.began = began;
        let (observer, mut jobs, hurry) =
            (self.observer.clone(), self.jobs.clone(), self.hurry.clone());
        self.question.spawn(async move {
            tokio::select! {
                biased;
                () = hurry.notified() => {}
                _ = timeout(REST, jobs.wait_for(|jobs| *jobs < MANY_JOBS)) => {}
            }
            let asked = Instant::now();
            Ok(DriftReport {
                names: observe::drifted(&observer.client).await?,
                pass,
                took: u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX),
            })
        });
    }

    /// Waits for the answer; for ever if nothing was asked. Nothing is lost if this is not awaited
    /// to its end.
    pub async fn answer(&mut self) -> Result<DriftReport, HubError> {
        loop {
            let Some(answer) = self.question.join_next().await else {
                return std::future::pending().await;
            };
            let report = answer.map_err(|_| HubError::NoSession)??;
            // A result from before a job would hide the same alteration when another session repeats it.
            let is_stale = (report.names.keys()).any(|name| self.ended.contains(name));
            let again = self.again.take();
            self.since = self.began.elapsed();
            if is_stale {
                let (pass, began) = again.unwrap_or((report.pass, self.began));
                self.ask(pass, began, true);
                continue;
            }
            if let Some((pass, began)) = again {
                self.ask(pass, began, false);
            }
            return Ok(report);
        }
    }

    /// Takes note of the end of a connection's job.
    pub fn ended(&mut self, name: &str) {
        if !self.question.is_empty() {
            self.ended.insert(name.to_owned());
        }
    }

    /// Whether the server still answers, where nothing is asked of it anyway.
    pub async fn keep_alive(&mut self, settings: HubSettings) -> Result<(), HubError> {
        match Arc::get_mut(&mut self.observer) {
            Some(observer) => {
                observer.apply_settings(settings).await?;
                observer.ping().await
            }
            None => Ok(()),
        }
    }

    /// How long the last answer came after the begin of its pass.
    pub fn since(&self) -> Duration {
        self.since
    }
}
