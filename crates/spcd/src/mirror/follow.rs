//! Follows the source of one mirror.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::{ForeignSource, Mirror};
use spcd_core::mirror::{MirrorProblem, MirrorView, refuses};
use spcd_postgres::mirror::{HubIdentity, Reader, SourceError};
use spcd_protocol::Backoff;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::Shared;

/// Pauses between attempts to open a session with the source, in milliseconds.
const RETRY: Backoff = Backoff::new(250, 15_000);
/// Pauses after the source has rejected the credentials, in milliseconds: each attempt may lock the
/// account.
const RETRY_CREDENTIALS: Backoff = Backoff::new(30_000, 600_000);
/// Time for which a source may be unreachable before that is reported: services restart.
const UNREACHABLE_GRACE: Duration = Duration::from_secs(5);
/// Minimum average interval between reads, as a multiple of the duration of a read.
const PAUSE_FACTOR: u32 = 4;
/// Time by which reads may run ahead of that average, so that a change after a quiet period is read at
/// once.
const MAX_LEAD: Duration = Duration::from_secs(1);
/// Pauses between reads while a connection is in a state that ends without a notification, in
/// milliseconds.
const UNANNOUNCED: Backoff = Backoff::new(100, 1_000);
/// Number of reads with the first of these pauses.
const UNANNOUNCED_READS: u32 = 50;
/// Interval of reads of a refused source: the circle may have been opened.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// Interval of checks that the session is alive.
const PING: Duration = Duration::from_secs(15);

/// Follows a source until the task is dropped. Reopens its session whenever it ends.
pub async fn follow(
    mirror: Mirror,
    source: ForeignSource,
    shared: Arc<Shared>,
    read_request: Arc<Notify>,
) {
    let mut failures = 0_u32;
    let mut lost: Option<Instant> = None;
    let mut told = None;
    loop {
        let mut has_answered = false;
        let ended =
            follow_session(&mirror, &source, &shared, &read_request, &mut has_answered).await;
        let Err(error) = ended;
        if has_answered {
            (failures, lost, told) = (0, None, None);
        }
        failures = failures.saturating_add(1);
        let is_rejected = matches!(error, SourceError::Credentials(_));
        let is_new = shared.is_unanswered(&mirror.name);
        let since = *lost.get_or_insert_with(Instant::now);
        let text = error.to_string();
        let is_final = is_rejected || matches!(error, SourceError::Unusable(_));
        if (is_new || is_final || since.elapsed() >= UNREACHABLE_GRACE)
            && told.as_ref() != Some(&text)
        {
            tracing::warn!(
                mirror = mirror.name,
                error = text,
                "the source of a mirror cannot be followed"
            );
            shared.set(&mirror.name, |view| {
                view.problem = Some(MirrorProblem::Unreachable(text.clone()));
            });
            told = Some(text);
        }
        let pause = match is_rejected {
            true => RETRY_CREDENTIALS.pause(failures),
            false => RETRY.pause(failures),
        };
        tokio::select! {
            () = sleep(Duration::from_millis(pause)) => {}
            () = read_request.notified() => {}
        }
    }
}

/// Follows a source in one session. Returns the error that ends the session.
async fn follow_session(
    mirror: &Mirror,
    source: &ForeignSource,
    shared: &Shared,
    read_request: &Notify,
    has_answered: &mut bool,
) -> Result<Infallible, SourceError> {
    let mut reader = Reader::open(source).await?;
    let interval = Duration::from_secs(mirror.refresh_interval);
    let mut full_at = Instant::now();
    let mut waited = 0_u32;
    // Time of the next read according to the average interval.
    let mut due = full_at;
    loop {
        let began = Instant::now();
        let is_full = began >= full_at;
        let origins = reader.origins().await?;
        let refused = circle(mirror, shared, &reader.identity, &origins);
        let mut soon = None;
        if let Some(text) = refused {
            shared.refuse(mirror, text);
            soon = Some(REFUSED_PAUSE);
        } else {
            let mut view = reader.read(is_full).await?;
            view.origins = origins;
            if reader.is_waiting(&view) {
                waited = waited.saturating_add(1);
                let times = waited.saturating_sub(UNANNOUNCED_READS).max(1);
                soon = Some(Duration::from_millis(UNANNOUNCED.pause(times)));
            } else {
                waited = 0;
            }
            shared.set(&mirror.name, |known| *known = view);
        }
        *has_answered = true;
        let took = began.elapsed();
        tracing::debug!(
            mirror = mirror.name,
            micros = took.as_micros(),
            "read the list of a mirror's source"
        );
        if is_full {
            full_at = match interval.is_zero() {
                // A hundred years: without an interval no full read is scheduled.
                true => began + Duration::from_secs(3_155_760_000),
                false => began + interval,
            };
        }
        let next_at = soon.map_or(full_at, |pause| full_at.min(Instant::now() + pause));
        if wait(&mut reader, read_request, next_at).await? {
            full_at = Instant::now();
        }
        // Notifications that arrive during this pause cause one read.
        due = due.max(began) + took * PAUSE_FACTOR;
        sleep_until(due.checked_sub(MAX_LEAD).unwrap_or(due)).await;
    }
}

/// Waits until the list should be read. Returns whether a read was requested.
async fn wait(
    reader: &mut Reader,
    read_request: &Notify,
    next_at: Instant,
) -> Result<bool, SourceError> {
    loop {
        let ping_at = Instant::now() + PING;
        tokio::select! {
            notified = reader.notified() => return notified.map(|()| false),
            () = read_request.notified() => return Ok(true),
            () = sleep_until(next_at) => return Ok(false),
            () = sleep_until(ping_at) => {}
        }
        reader.ping().await?;
    }
}

/// Returns why a source is refused, if it leads back to this hub.
fn circle(
    mirror: &Mirror,
    shared: &Shared,
    source: &HubIdentity,
    origins: &BTreeSet<String>,
) -> Option<String> {
    if shared.ours.is_same(source) {
        return Some("its source is this hub's own database, which would mirror itself".to_owned());
    }
    let is_followed = !shared.is_unanswered(&mirror.name);
    let (ours, theirs) = (shared.ours.id.as_deref(), source.id.as_deref());
    refuses(ours, theirs, origins, is_followed).then(|| {
        "its source mirrors this hub, directly or through another one: that is a circle, which one of \
         them has to open"
            .to_owned()
    })
}

impl Shared {
    /// Returns whether a source has never answered, or is refused.
    fn is_unanswered(&self, name: &str) -> bool {
        let views = self.views.lock();
        let is_answered = |view: &Arc<MirrorView>| {
            view.kind.is_some() && !matches!(view.problem, Some(MirrorProblem::Refused(_)))
        };
        !views.get(name).is_some_and(is_answered)
    }

    /// Records a refusal, and clears the origins: other hubs must not see those of a source that is not
    /// followed.
    fn refuse(&self, mirror: &Mirror, text: String) {
        let before = self.views.lock().get(&mirror.name).cloned();
        let problem = MirrorProblem::Refused(text);
        if before.is_none_or(|before| before.problem.as_ref() != Some(&problem)) {
            let error = problem.text();
            tracing::error!(mirror = mirror.name, error, "a mirror is refused");
        }
        self.set(&mirror.name, |view| {
            view.origins.clear();
            view.problem = Some(problem);
        });
    }
}
