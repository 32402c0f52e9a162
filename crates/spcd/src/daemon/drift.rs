//! Whether something was altered behind our back, asked beside the loop.
//!
//! The sums of row versions take ten times as long to read as all else of a look, so no saved file
//! waits for them: the answer is one more wake.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::HubSettings;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::hub::connect::Session;
use crate::hub::{HubError, observe};
use crate::source::MANY_JOBS;

/// How long the question rests while many jobs are under way: it takes about half a second of a core
/// where there are fifty thousand tables.
const REST: Duration = Duration::from_secs(3);

/// The question, of which one is under way at a time.
pub struct Drift {
    observer: Arc<Session>,
    question: JoinSet<Result<Altered, HubError>>,
    /// A later pass wants to know too.
    again: Option<(u64, Instant)>,
    /// The connections whose jobs ended since it was put: it may not have seen what they wrote.
    ended: BTreeSet<String>,
    /// How many jobs are under way.
    jobs: watch::Receiver<usize>,
    /// Somebody waits for the answer.
    hurry: Arc<Notify>,
    took: Duration,
}

/// What was altered since spcd wrote it.
#[derive(Debug)]
pub struct Altered {
    /// The connections, and what they looked like then.
    pub names: BTreeMap<String, String>,
    /// The pass that asked. What it had seen was there when the question was asked.
    pub pass: u64,
    began: Instant,
    took: Duration,
}

impl Altered {
    /// How long it is since the pass that asked began.
    pub fn since(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drift {
    /// Nothing is asked yet.
    pub fn new(observer: Session, jobs: watch::Receiver<usize>) -> Self {
        Self {
            observer: Arc::new(observer),
            question: JoinSet::new(),
            again: None,
            ended: BTreeSet::new(),
            jobs,
            hurry: Arc::default(),
            took: Duration::ZERO,
        }
    }

    /// Asks on behalf of a pass that began then; once more after the answer that is still to come.
    /// Where nobody waits for it (`leisure`), what many jobs do may go first.
    pub fn ask(&mut self, pass: u64, began: Instant, leisure: bool) {
        if !leisure {
            self.hurry.notify_one();
        }
        if !self.question.is_empty() {
            self.again = Some((pass, began));
            return;
        }
        self.ended.clear();
        let (observer, mut jobs, hurry) =
            (self.observer.clone(), self.jobs.clone(), self.hurry.clone());
        self.question.spawn(async move {
            tokio::select! {
                biased;
                () = hurry.notified() => {}
                _ = timeout(REST, jobs.wait_for(|jobs| *jobs < MANY_JOBS)) => {}
            }
            let asked = Instant::now();
            Ok(Altered {
                names: observe::drifted(&observer.client).await?,
                pass,
                began,
                took: asked.elapsed(),
            })
        });
    }

    /// Waits for the answer; for ever if nothing was asked. Nothing is lost if this is not awaited
    /// to its end.
    pub async fn answer(&mut self) -> Result<Altered, HubError> {
        loop {
            let Some(answer) = self.question.join_next().await else {
                return std::future::pending().await;
            };
            let altered = answer.map_err(|_| HubError::NoSession)??;
            self.took = altered.took;
            // To take what was before a job for what is there now would hide the same damage the
            // next time that somebody does it.
            let is_stale = (altered.names.keys()).any(|name| self.ended.contains(name));
            let again = self.again.take();
            if is_stale {
                let (pass, began) = again.unwrap_or((altered.pass, altered.began));
                self.ask(pass, began, false);
                continue;
            }
            if let Some((pass, began)) = again {
                self.ask(pass, began, true);
            }
            return Ok(altered);
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
                observer.limit(settings).await?;
                observer.ping().await
            }
            None => Ok(()),
        }
    }

    /// How long the last answer took.
    pub fn took(&self) -> Duration {
        self.took
    }
}
