//! Leader election. The leader holds a lock on the table `spcd_lock.lead` in a session of its own.
//! Each write asserts the leader's epoch, so that a former leader cannot write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::HubError;
use crate::config_files;
use crate::connection::{Endpoint, Session};

/// Interval between the leader's heartbeats.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Age of the last heartbeat from which a waiting daemon terminates the leader's sessions.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(20);
/// Retention of rows in `spcd.connection_event`.
const EVENT_RETENTION: &str = "30 days";
/// Retention of answered rows in `spcd.refresh_request`. No client waits this long for an answer.
const REQUEST_RETENTION: &str = "1 day";
/// Interval between checks of the session that holds the leader lock. Together with
/// `LOCK_CHECK_TIMEOUT` it is less than the 15 s within which an unresponsive hub must be detected.
const LOCK_CHECK_INTERVAL: Duration = Duration::from_secs(4);
/// Time limit of one such check.
const LOCK_CHECK_TIMEOUT: Duration = Duration::from_secs(8);
/// Interval at which a waiting daemon checks the leader's heartbeat.
const LEADER_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Takes the leader lock. Only another daemon conflicts with it: no other role can reach the table.
const LOCK_LEAD: &str = "LOCK TABLE spcd_lock.lead IN EXCLUSIVE MODE";

/// The leadership of the hub, for as long as its lock is held.
pub struct Leadership {
    /// Number that each write asserts.
    pub epoch: i64,
    /// Session that holds the lock, until [`watch`] takes it. Leadership ends when it closes.
    pub lock: Option<Session>,
    /// Session for observing, publishing and heartbeats.
    pub control: Session,
}

/// The database is managed by a daemon of another instance.
#[derive(Debug, thiserror::Error)]
#[error(
    "this database is managed by the instance {theirs:?}, and this daemon is {ours:?}: \
     start it with --instance {theirs}, or with another database"
)]
pub struct OtherInstance {
    theirs: String,
    ours: String,
}

/// Becomes the leader. While another daemon leads, waits if `wait` is set, calling `alive` at each
/// poll; otherwise returns `None`.
///
/// # Errors
/// Fails also if the applied state belongs to another instance, or to other directories than
/// `config` (`None` accepts any).
pub async fn acquire(
    endpoint: &Arc<Endpoint>,
    instance: &str,
    config: Option<&[String]>,
    wait: bool,
    alive: fn(),
) -> anyhow::Result<Option<Leadership>> {
    let control = endpoint.connect("control").await?;
    match acquire_with(&control, endpoint, instance, config, wait.then_some(alive)).await {
        Ok(None) => Ok(None),
        Ok(Some((epoch, lock))) => Ok(Some(Leadership {
            epoch,
            lock: Some(lock),
            control,
        })),
        Err(error) if is_lock_timeout(&error) => {
            let holders = lock_holders(&control.client).await?;
            Err(error.context(format!("cannot become the leader: {holders}")))
        }
        Err(error) => Err(error),
    }
}

/// Whether a lock of another session caused the error.
fn is_lock_timeout(error: &anyhow::Error) -> bool {
    let of_driver = error.downcast_ref::<tokio_postgres::Error>();
    let of_hub = error.downcast_ref::<HubError>();
    of_driver.is_some_and(|error| error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
        || of_hub.is_some_and(HubError::is_lock_timeout)
}

async fn acquire_with(
    control: &Session,
    endpoint: &Arc<Endpoint>,
    instance: &str,
    config: Option<&[String]>,
    alive: Option<fn()>,
) -> anyhow::Result<Option<(i64, Session)>> {
    check_instance(&control.client, instance).await?;
    let lock = endpoint.connect("lead").await?;
    lock.client
        .batch_execute(
            "SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0; \
             SET lock_timeout = 0",
        )
        .await?;
    // Not in one message with the settings: the rollback below would take these back.
    lock.client.batch_execute("BEGIN").await?;
    match lock
        .client
        .batch_execute(&format!("{LOCK_LEAD} NOWAIT"))
        .await
    {
        Ok(()) => {}
        Err(error) if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            return Err(error).context("cannot take the leader lock");
        }
        Err(_) => {
            let Some(alive) = alive else {
                return Ok(None);
            };
            // A daemon with other directories could never lead, so it does not wait.
            check_config(&control.client, config).await?;
            endpoint.context().set_following();
            lock.client.batch_execute("ROLLBACK; BEGIN").await?;
            wait_for_lock(&lock.client, &control.client, alive).await?;
        }
    }
    // A former leader may have changed both during the wait.
    check_instance(&control.client, instance).await?;
    let renamed = check_config(&control.client, config).await?;

    let me = process_name();
    let take = "SELECT spcd.take_lead($1, $2, $3)";
    let epoch: i64 = (control.client)
        .query_one(take, &[&instance, &me, &env!("CARGO_PKG_VERSION")])
        .await
        .context("cannot become the leader")?
        .get(0);
    for session in [control, &lock] {
        register_pid(&control.client, epoch, &session.client).await?;
    }
    config_files::rename(&control.client, epoch, &renamed).await?;
    Ok(Some((epoch, lock)))
}

/// Waits for the leader lock, and terminates the sessions of a leader whose heartbeat is stale.
async fn wait_for_lock(lock: &Client, control: &Client, alive: fn()) -> anyhow::Result<()> {
    let mut heartbeat = LastHeartbeat::default();
    let leader = check_heartbeat(control, &mut heartbeat).await?;
    tracing::info!(leader, "another daemon leads; waiting to take over");
    let granted = lock.batch_execute(LOCK_LEAD);
    tokio::pin!(granted);
    loop {
        alive();
        tokio::select! {
            result = &mut granted => return result.context("cannot take the leader lock"),
            () = tokio::time::sleep(LEADER_POLL_INTERVAL) => {
                check_heartbeat(control, &mut heartbeat).await?;
            }
        }
    }
}

/// Refuses other configuration directories than the recorded ones: this leader would drop their
/// connections. Returns the recorded directories whose name has changed.
async fn check_config(
    client: &Client,
    config: Option<&[String]>,
) -> anyhow::Result<Vec<(String, String)>> {
    match config {
        Some(config) => Ok(config_files::check(
            &config_files::read(client).await?,
            config,
        )?),
        None => Ok(Vec::new()),
    }
}

/// Refuses a database that another instance manages.
async fn check_instance(client: &Client, instance: &str) -> anyhow::Result<()> {
    let row = client
        .query_opt("SELECT instance FROM spcd.daemon", &[])
        .await?;
    let Some(row) = row else {
        return Ok(());
    };
    let theirs: String = row.get(0);
    if theirs != instance {
        return Err(OtherInstance {
            theirs,
            ours: instance.to_owned(),
        }
        .into());
    }
    Ok(())
}

/// Describes the other sessions that hold a lock on spcd's own tables which blocks its writes.
pub async fn lock_holders(client: &Client) -> Result<String, HubError> {
    let sql = "SELECT coalesce(pg_catalog.string_agg(DISTINCT pg_catalog.format(
                   'process %s%s%s holds a lock on %I.%I', l.pid, ' of ' || a.usename,
                   ' (' || nullif(a.application_name, '') || ')', n.nspname, c.relname), '; '),
                   'the holder is gone by now')
               FROM pg_catalog.pg_namespace n
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
               JOIN pg_catalog.pg_locks l ON l.locktype = 'relation' AND l.relation = c.oid
                    AND l.granted AND l.pid <> pg_catalog.pg_backend_pid()
                    AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                                   'AccessExclusiveLock')
                    AND l.database = (SELECT oid FROM pg_catalog.pg_database
                                      WHERE datname = pg_catalog.current_database())
               LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
               WHERE n.nspname IN ('spcd', 'spcd_lock') AND c.relname <> 'lead'";
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}

/// Whether another session waits for an ACCESS EXCLUSIVE lock on a table of spcd's own, to drop or
/// alter the schema.
async fn has_waiting_schema_change(client: &Client) -> Result<bool, HubError> {
    let sql = "SELECT EXISTS (
                   SELECT FROM pg_catalog.pg_locks l
                   JOIN pg_catalog.pg_class c ON c.oid = l.relation
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE l.locktype = 'relation' AND NOT l.granted AND l.mode = 'AccessExclusiveLock'
                     AND n.nspname IN ('spcd', 'spcd_lock')
                     AND l.database = (SELECT oid FROM pg_catalog.pg_database
                                       WHERE datname = pg_catalog.current_database()))";
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}

/// The heartbeat as a waiting daemon saw it last, and since when it has not changed.
#[derive(Debug, Default)]
struct LastHeartbeat(Option<(Option<String>, Instant)>);

impl LastHeartbeat {
    /// Whether the leader is considered dead. The server's clock, by which the heartbeat `looks_stale`,
    /// may have been set: it is believed only if the leader then misses a heartbeat.
    fn is_stale(&mut self, heartbeat: Option<String>, looks_stale: bool, now: Instant) -> bool {
        let unchanged = match &self.0 {
            Some((last, since)) if *last == heartbeat => now.saturating_duration_since(*since),
            _ => {
                self.0 = Some((heartbeat, now));
                Duration::ZERO
            }
        };
        let has_heartbeat = matches!(&self.0, Some((Some(_), _)));
        has_heartbeat
            && (unchanged >= HEARTBEAT_TIMEOUT
                || looks_stale && unchanged >= 2 * HEARTBEAT_INTERVAL)
    }
}

/// Terminates the sessions of a leader whose heartbeat is stale. Returns the leader's name.
async fn check_heartbeat(client: &Client, last: &mut LastHeartbeat) -> Result<String, HubError> {
    let row = client
        .query_opt(
            &format!(
                "SELECT coalesce(leader, 'none'), heartbeat::text,
                        coalesce(heartbeat < pg_catalog.clock_timestamp() - interval '{} s', false)
                 FROM spcd.daemon",
                HEARTBEAT_TIMEOUT.as_secs()
            ),
            &[],
        )
        .await?;
    let Some(row) = row else {
        return Ok("none".into());
    };
    let leader: String = row.try_get(0)?;
    if last.is_stale(row.try_get(1)?, row.try_get(2)?, Instant::now()) {
        tracing::warn!(
            leader,
            timeout_seconds = HEARTBEAT_TIMEOUT.as_secs(),
            "the leader's heartbeat is stale; ending its sessions"
        );
        client
            .execute(
                "SELECT pg_catalog.pg_terminate_backend(a.pid)
                 FROM spcd.daemon d
                 CROSS JOIN LATERAL pg_catalog.jsonb_to_recordset(d.backends)
                      AS b (pid integer, backend_start timestamptz)
                 JOIN pg_catalog.pg_stat_activity a
                      ON a.pid = b.pid AND a.backend_start = b.backend_start",
                &[],
            )
            .await?;
    }
    Ok(leader)
}

/// Records a session of the leader, so that another daemon can terminate it when the leader hangs.
pub async fn register(client: &Client, epoch: i64) -> Result<(), HubError> {
    register_pid(client, epoch, client).await
}

async fn register_pid(by: &Client, epoch: i64, session: &Client) -> Result<(), HubError> {
    let pid: i32 = session
        .query_one("SELECT pg_catalog.pg_backend_pid()", &[])
        .await?
        .get(0);
    // There is no row if a server that shuts down has ended the session already.
    by.execute(
        "UPDATE spcd.daemon
         SET backends = backends || pg_catalog.jsonb_build_object('pid', a.pid,
                                                                  'backend_start', a.backend_start)
         FROM pg_catalog.pg_stat_activity a
         WHERE epoch = $1 AND a.pid = $2",
        &[&epoch, &pid],
    )
    .await?;
    Ok(())
}

/// Returns an error when leadership ends: the session was closed, the server does not answer, or
/// another session waits to drop or alter the schema.
pub async fn watch(lock: &mut Session) -> Result<(), HubError> {
    let mut checks = tokio::time::interval(LOCK_CHECK_INTERVAL);
    checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = lock.messages.recv() => {
                if message.is_none() {
                    return Err(HubError::LeadershipLost);
                }
            }
            _ = checks.tick() => {
                let check = has_waiting_schema_change(&lock.client);
                let is_waiting = timeout(LOCK_CHECK_TIMEOUT, check).await;
                if is_waiting.map_err(|_| HubError::Unresponsive)?? {
                    return Err(HubError::SchemaChangeWaiting);
                }
            }
        }
    }
}

/// Records the leader's heartbeat.
///
/// # Errors
/// [`HubError::NotLeader`] if another daemon leads, and [`HubError::Unresponsive`] after the time
/// from which other daemons consider this one dead.
pub async fn send_heartbeat(client: &Client, epoch: i64) -> Result<(), HubError> {
    let sql = "UPDATE spcd.daemon SET heartbeat = pg_catalog.clock_timestamp() WHERE epoch = $1";
    let updated = timeout(HEARTBEAT_TIMEOUT, client.execute(sql, &[&epoch])).await;
    match updated.map_err(|_| HubError::Unresponsive)?? {
        0 => Err(HubError::NotLeader),
        _ => Ok(()),
    }
}

/// Deletes events and answered requests that are older than their retention.
pub async fn delete_expired_rows(client: &Client, epoch: i64) -> Result<(), HubError> {
    let sql = format!(
        "DELETE FROM spcd.connection_event
         WHERE time < pg_catalog.clock_timestamp() - interval '{EVENT_RETENTION}'
           AND EXISTS (SELECT FROM spcd.daemon WHERE epoch = {epoch});
         DELETE FROM spcd.refresh_request
         WHERE done_at < pg_catalog.clock_timestamp() - interval '{REQUEST_RETENTION}'
           AND EXISTS (SELECT FROM spcd.daemon WHERE epoch = {epoch})"
    );
    Ok(client.batch_execute(&sql).await?)
}

/// Records that this process no longer leads, so that its successor does not wait for the heartbeat to
/// become stale.
pub async fn resign(client: &Client) -> Result<(), HubError> {
    let sql = "UPDATE spcd.daemon SET leader = NULL, heartbeat = NULL WHERE leader = $1";
    client.execute(sql, &[&process_name()]).await?;
    Ok(())
}

/// Name of this process in `spcd.daemon`: `host:pid`.
fn process_name() -> String {
    format!("{}:{}", hostname(), std::process::id())
}

fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_stale_when_it_stops_and_not_when_the_clock_is_set() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let beat = |number: u64| Some(number.to_string());
        // The clock is set ahead: until the next heartbeat the last one looks old.
        let mut last = LastHeartbeat::default();
        assert!(!last.is_stale(beat(1), false, at(0)));
        assert!(!last.is_stale(beat(1), true, at(4)));
        assert!(!last.is_stale(beat(2), false, at(5)));
        // The leader hangs. A daemon that comes later believes the clock after two missed heartbeats.
        assert!(!last.is_stale(beat(2), false, at(24)));
        assert!(last.is_stale(beat(2), true, at(25)));
        let mut late = LastHeartbeat::default();
        assert!(!late.is_stale(beat(2), true, at(60)));
        assert!(!late.is_stale(beat(2), true, at(69)));
        assert!(late.is_stale(beat(2), true, at(70)));
        // The clock was set back, and the leader hangs before its next heartbeat.
        let mut last = LastHeartbeat::default();
        assert!(!last.is_stale(beat(9), false, at(0)));
        assert!(!last.is_stale(beat(9), false, at(19)));
        assert!(last.is_stale(beat(9), false, at(20)));
        // No daemon leads.
        let mut none = LastHeartbeat::default();
        assert!(!none.is_stale(None, false, at(0)));
        assert!(!none.is_stale(None, false, at(100)));
    }
}
