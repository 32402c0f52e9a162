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
use tokio::time::{Instant, sleep_until, timeout};

use spcd_postgres::HubError;
use spcd_postgres::catalog::observe;
use spcd_postgres::connection::Session;

/// Maximum delay of the detection, after the last result or while jobs run: it uses a core for about half
/// a second among 50,000 tables, which would delay each of several changes in a row.
const MAX_DELAY: Duration = Duration::from_secs(3);
/// Minimum delay after a result, as a multiple of the time that the detection took.
const DELAY_FACTOR: u32 = 4;

/// Drift detection, which runs at most once at a time.
pub struct Drift {
    observer: Arc<Session>,
    running: JoinSet<Result<DriftReport, HubError>>,
    /// Start of the pass that requested it.
    began: Instant,
    /// Time from the start of its pass to the result, of the last detection.
    since: Duration,
    /// Earliest start of the next detection that is not urgent.
    next_start: Instant,
    /// Whether a later pass has requested another one.
    again: Option<(u64, Instant)>,
    /// Connections whose jobs have ended since its start: it may not have seen what they wrote.
    ended: BTreeSet<String>,
    /// Number of running jobs.
    jobs: watch::Receiver<usize>,
    /// Whether a client waits for the result.
    urgent: Arc<Notify>,
}

impl Drift {
    /// Returns a value without a running detection.
    pub fn new(observer: Session, jobs: watch::Receiver<usize>) -> Self {
        Self {
            observer: Arc::new(observer),
            running: JoinSet::new(),
            began: Instant::now(),
            since: Duration::ZERO,
            next_start: Instant::now(),
            again: None,
            ended: BTreeSet::new(),
            jobs,
            urgent: Arc::default(),
        }
    }

    /// Starts the detection for a pass that began at that time, or after the running one. Unless it
    /// `is_urgent`, the last result and running jobs delay it.
    pub fn ask(&mut self, pass: u64, began: Instant, is_urgent: bool) {
        if is_urgent {
            self.urgent.notify_one();
        }
        if !self.running.is_empty() {
            self.again = Some((pass, began));
            return;
        }
        self.ended.clear();
        self.began = began;
        let (observer, mut jobs, urgent) = (
            self.observer.clone(),
            self.jobs.clone(),
            self.urgent.clone(),
        );
        let next_start = self.next_start;
        self.running.spawn(async move {
            let delay = async {
                sleep_until(next_start).await;
                let _ = timeout(MAX_DELAY, jobs.wait_for(|jobs| *jobs == 0)).await;
            };
            tokio::select! {
                biased;
                () = urgent.notified() => {}
                () = delay => {}
            }
            let asked = Instant::now();
            Ok(DriftReport {
                names: observe::drifted(&observer.client).await?,
                pass,
                took: u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX),
            })
        });
    }

    /// Waits for the result, or forever if no detection runs. Cancel safe.
    pub async fn answer(&mut self) -> Result<DriftReport, HubError> {
        loop {
            let Some(answer) = self.running.join_next().await else {
                return std::future::pending().await;
            };
            let report = answer.map_err(|_| HubError::NoSession)??;
            // A result from before the job would hide the same change if another session repeats it.
            let is_stale = (report.names.keys()).any(|name| self.ended.contains(name));
            let again = self.again.take();
            self.since = self.began.elapsed();
            let took = Duration::from_millis(report.took);
            self.next_start = Instant::now() + (took * DELAY_FACTOR).min(MAX_DELAY);
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

    /// Records the end of a connection's job.
    pub fn ended(&mut self, name: &str) {
        if !self.running.is_empty() {
            self.ended.insert(name.to_owned());
        }
    }

    /// Checks that the server answers, unless a detection runs.
    pub async fn keep_alive(&mut self, settings: HubSettings) -> Result<(), HubError> {
        match Arc::get_mut(&mut self.observer) {
            Some(observer) => {
                observer.apply_settings(settings).await?;
                observer.ping().await
            }
            None => Ok(()),
        }
    }

    /// Returns the time from the start of its pass to the result, of the last detection.
    pub fn since(&self) -> Duration {
        self.since
    }
}
