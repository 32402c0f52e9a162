//! One leader. The lead is a lock on a table of spcd's own, held by a session that does nothing
//! else; each write carries the lead's epoch, so that a leader that lost it can write no more.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connect::{Endpoint, Session};
use super::{HubError, inputs};
use crate::service;

/// How often the leader says that it is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// A leader that was not heard of for so long is stopped or cut off: its sessions are ended.
const STALE: Duration = Duration::from_secs(20);
/// How long events are kept.
const KEEP_EVENTS: &str = "30 days";
/// How long answered requests are kept: longer than anybody waits for the answer.
const KEEP_REQUESTS: &str = "1 day";
/// How often the session that holds the lead is asked something, and how long the answer may take:
/// together less than the 15 s in which a hub that fell silent is to be noticed.
const PULSE: Duration = Duration::from_secs(4);
const ANSWER: Duration = Duration::from_secs(8);
/// How often one that waits looks whether the leader is still heard of.
const LOOK: Duration = Duration::from_secs(1);

/// The lead: nothing else conflicts with this lock, and no other role can reach the table.
const LOCK: &str = "LOCK TABLE spcd_lock.lead IN EXCLUSIVE MODE";

/// The lead, for as long as its lock is held.
pub struct Lead {
    /// What each write carries.
    pub epoch: i64,
    /// Holds the lock; taken by [`keep`]. When it closes, the lead is over.
    pub lock: Option<Session>,
    /// For looking, publishing and the heartbeat.
    pub control: Session,
}

/// The database is kept by a daemon of another instance.
#[derive(Debug, thiserror::Error)]
#[error(
    "this database is kept by the instance {theirs:?}, and this daemon is {ours:?}: \
     start it with --instance {theirs}, or with another database"
)]
pub struct OtherInstance {
    theirs: String,
    ours: String,
}

/// Takes the lead. If another daemon has it: waits for as long as it does where `wait` says so,
/// else gives `None`.
///
/// # Errors
/// Also where the applied state came from another instance, or from other directories than `config`
/// (`None`: from any).
pub async fn take(
    endpoint: &Arc<Endpoint>,
    instance: &str,
    config: Option<&[String]>,
    wait: bool,
) -> anyhow::Result<Option<Lead>> {
    let control = endpoint.connect("control").await?;
    match take_with(&control, endpoint, instance, config, wait).await {
        Ok(None) => Ok(None),
        Ok(Some((epoch, lock))) => Ok(Some(Lead {
            epoch,
            lock: Some(lock),
            control,
        })),
        Err(error) if is_blocked(&error) => {
            let holders = holders(&control.client).await?;
            Err(error.context(format!("cannot become the leader: {holders}")))
        }
        Err(error) => Err(error),
    }
}

/// Whether a lock of another session is the reason.
fn is_blocked(error: &anyhow::Error) -> bool {
    let of_driver = error.downcast_ref::<tokio_postgres::Error>();
    let of_hub = error.downcast_ref::<HubError>();
    of_driver.is_some_and(|error| error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
        || of_hub.is_some_and(HubError::is_blocked)
}

async fn take_with(
    control: &Session,
    endpoint: &Arc<Endpoint>,
    instance: &str,
    config: Option<&[String]>,
    wait: bool,
) -> anyhow::Result<Option<(i64, Session)>> {
    check_instance(&control.client, instance).await?;
    let lock = endpoint.connect("lead").await?;
    lock.client
        .batch_execute(
            "SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0; \
             SET lock_timeout = 0; BEGIN",
        )
        .await?;
    match lock.client.batch_execute(&format!("{LOCK} NOWAIT")).await {
        Ok(()) => {}
        Err(error) if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            return Err(error).context("cannot take the lead");
        }
        Err(_) if !wait => return Ok(None),
        Err(_) => {
            // One that could not lead does not wait for its turn.
            check_config(&control.client, config).await?;
            endpoint.shared().follows();
            lock.client.batch_execute("ROLLBACK; BEGIN").await?;
            wait_for_lock(&lock.client, &control.client).await?;
        }
    }
    // It may have changed while we waited.
    check_instance(&control.client, instance).await?;
    let renamed = check_config(&control.client, config).await?;

    let me = me();
    let take = "SELECT spcd.take_lead($1, $2, $3)";
    let epoch: i64 = (control.client)
        .query_one(take, &[&instance, &me, &env!("CARGO_PKG_VERSION")])
        .await
        .context("cannot become the leader")?
        .get(0);
    for session in [control, &lock] {
        register_pid(&control.client, epoch, &session.client).await?;
    }
    inputs::rename(&control.client, epoch, &renamed).await?;
    Ok(Some((epoch, lock)))
}

/// Waits until the leader is gone, and sees to it that one that hangs goes.
async fn wait_for_lock(lock: &Client, control: &Client) -> anyhow::Result<()> {
    let leader = look_at_leader(control).await?;
    tracing::info!(leader, "another daemon leads; waiting to take over");
    let granted = lock.batch_execute(LOCK);
    tokio::pin!(granted);
    loop {
        service::alive();
        tokio::select! {
            result = &mut granted => return result.context("cannot take the lead"),
            () = tokio::time::sleep(LOOK) => {
                look_at_leader(control).await?;
            }
        }
    }
}

/// One with other config directories does not lead: it would remove what those hold. Gives the
/// recorded directories that go by another name now.
async fn check_config(
    client: &Client,
    config: Option<&[String]>,
) -> anyhow::Result<Vec<(String, String)>> {
    match config {
        Some(config) => Ok(inputs::check(&inputs::read(client).await?, config)?),
        None => Ok(Vec::new()),
    }
}

/// One of another instance does not lead here.
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

/// Returns the sessions of others that hold a lock on a table of spcd's own which its writes meet.
pub async fn holders(client: &Client) -> Result<String, HubError> {
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

/// Whether another session waits for a lock with which nothing of spcd's goes on: it drops or
/// alters the schema.
pub async fn is_in_the_way(client: &Client) -> Result<bool, HubError> {
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

/// Ends the sessions of a leader that was not heard of for long; returns who leads.
async fn look_at_leader(client: &Client) -> Result<String, HubError> {
    let row = client
        .query_opt(
            &format!(
                "SELECT coalesce(leader, 'nobody'),
                        coalesce(heartbeat < pg_catalog.clock_timestamp() - interval '{} s', false)
                 FROM spcd.daemon",
                STALE.as_secs()
            ),
            &[],
        )
        .await?;
    let Some(row) = row else {
        return Ok("nobody".into());
    };
    let leader: String = row.get(0);
    if row.get(1) {
        tracing::warn!(
            leader,
            "the leader was not heard of for {} s: ending its sessions",
            STALE.as_secs()
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

/// Records a session of the leader's, so that it can be ended when the leader hangs.
pub async fn register(client: &Client, epoch: i64) -> Result<(), HubError> {
    register_pid(client, epoch, client).await
}

async fn register_pid(by: &Client, epoch: i64, session: &Client) -> Result<(), HubError> {
    let pid: i32 = session
        .query_one("SELECT pg_catalog.pg_backend_pid()", &[])
        .await?
        .get(0);
    // A server that shuts down may have ended the session already: then there is no row.
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

/// Returns when the lead is over: its session ended, the server stopped answering, or another session
/// waits to drop or alter the schema.
pub async fn keep(lock: &mut Session) -> Result<(), HubError> {
    let mut pulse = tokio::time::interval(PULSE);
    pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = lock.messages.recv() => {
                if message.is_none() {
                    return Err(HubError::LeadLost);
                }
            }
            _ = pulse.tick() => {
                let asked = timeout(ANSWER, is_in_the_way(&lock.client)).await;
                if asked.map_err(|_| HubError::Silent)?? {
                    return Err(HubError::InTheWay);
                }
            }
        }
    }
}

/// Says that the leader is alive; fails when it leads no more, and when the server does not answer
/// until others take this one for dead.
pub async fn beat(client: &Client, epoch: i64) -> Result<(), HubError> {
    let beat = "UPDATE spcd.daemon SET heartbeat = pg_catalog.clock_timestamp() WHERE epoch = $1";
    let beaten = timeout(STALE, client.execute(beat, &[&epoch])).await;
    match beaten.map_err(|_| HubError::Silent)?? {
        0 => Err(HubError::NotLeading),
        _ => Ok(()),
    }
}

/// Removes events and answered requests that are too old to be kept.
pub async fn sweep(client: &Client, epoch: i64) -> Result<(), HubError> {
    let sql = format!(
        "DELETE FROM spcd.connection_event
         WHERE time < pg_catalog.clock_timestamp() - interval '{KEEP_EVENTS}'
           AND EXISTS (SELECT FROM spcd.daemon WHERE epoch = {epoch});
         DELETE FROM spcd.refresh_request
         WHERE done_at < pg_catalog.clock_timestamp() - interval '{KEEP_REQUESTS}'
           AND EXISTS (SELECT FROM spcd.daemon WHERE epoch = {epoch})"
    );
    Ok(client.batch_execute(&sql).await?)
}

/// Says that this process leads no more, so that nobody waits for its next heartbeat.
pub async fn resign(client: &Client) -> Result<(), HubError> {
    let resign = "UPDATE spcd.daemon SET leader = NULL, heartbeat = NULL WHERE leader = $1";
    client.execute(resign, &[&me()]).await?;
    Ok(())
}

/// How this process calls itself in `spcd.daemon`.
fn me() -> String {
    format!("{}:{}", hostname(), std::process::id())
}

fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".into())
}
