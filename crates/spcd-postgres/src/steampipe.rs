//! Objects that clients of Steampipe expect, for `compat = "steampipe"`. This module creates, repairs
//! and drops them; triggers keep their contents up to date. Nothing else depends on them, so an error
//! causes only a warning.

use std::collections::BTreeSet;

use spcd_core::config::DesiredState;
use spcd_core::observed::Observed;
use spcd_core::{planner, search_path, sql};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::{HubError, transaction};

const CREATE_SCRIPT: &str = include_str!("../../../migrations/compat/steampipe.sql");
const DROP_SCRIPT: &str = include_str!("../../../migrations/compat/steampipe_off.sql");

/// Schema of the objects, last on the search path of the clients.
const SCHEMA: &str = "steampipe_internal";

/// Warnings that were logged, so that each is logged once.
#[derive(Debug, Default)]
pub struct Steampipe {
    logged: BTreeSet<String>,
}

/// Desired state of the objects.
pub struct DesiredObjects<'a> {
    /// Search path without spcd's own schema; `None` if search paths are not managed.
    pub path: Option<Vec<&'a str>>,
    /// First connection of each plugin on the path.
    pub first: Vec<&'a str>,
}

impl<'a> DesiredObjects<'a> {
    /// Derives the state from the files, and from recorded connections whose block is invalid.
    pub fn new(desired: &'a DesiredState, observed: &'a Observed) -> Self {
        let mut path = search_path::search_path(desired, &planner::retained(desired, observed));
        // The path ends with the schema `spcd`. These clients expect their own schema at this place.
        path.pop();
        let (mut plugins, mut first) = (BTreeSet::new(), Vec::new());
        for name in &path {
            if let Some(connection) = desired.connections.get(*name)
                && connection.enabled
                && plugins.insert(connection.plugin_instance.as_str())
            {
                first.push(*name);
            }
        }
        let manage = desired.database.manage_search_path.unwrap_or(true);
        Self {
            path: manage.then_some(path),
            first,
        }
    }
}

impl Steampipe {
    /// Creates or drops the objects at the start of a leader session.
    ///
    /// # Errors
    /// The leadership or the session is lost.
    pub async fn start(
        client: &Client,
        epoch: i64,
        desired: bool,
    ) -> Result<Option<Self>, HubError> {
        let is_installed = is_installed(client).await?;
        let mut steampipe = Self::default();
        if !desired {
            if is_installed {
                let dropped = in_transaction(client, epoch, async |client| {
                    Ok(client.batch_execute(DROP_SCRIPT).await?)
                });
                if steampipe.warn_if_refused(dropped.await, "its objects cannot be removed")? {
                    tracing::info!("compat steampipe: removed");
                }
            }
            return Ok(None);
        }
        let current = match is_installed {
            true => {
                let sql = "SELECT version = pg_catalog.md5($1) FROM spcd.steampipe";
                let row = client.query_opt(sql, &[&CREATE_SCRIPT]).await?;
                row.map(|row| row.try_get(0)).transpose()?.unwrap_or(false)
            }
            false => false,
        };
        if !current && !steampipe.create(client, epoch, is_installed).await? {
            return Ok(None);
        }
        let started = in_transaction(client, epoch, async |client| {
            let sql =
                "UPDATE steampipe_internal.steampipe_server_settings s SET start_time = d.since
                       FROM spcd.daemon d WHERE d.since IS NOT NULL";
            client.execute(sql, &[]).await?;
            Ok(())
        });
        steampipe.warn_if_refused(started.await, "the start time cannot be recorded")?;
        steampipe.grant_access(client, epoch).await?;
        Ok(Some(steampipe))
    }

    /// Repairs missing objects, and sets the values that triggers do not maintain. Runs in each pass.
    ///
    /// # Errors
    /// As [`Steampipe::start`].
    pub async fn reconcile(
        &mut self,
        client: &Client,
        epoch: i64,
        desired: DesiredObjects<'_>,
    ) -> Result<(), HubError> {
        let path = desired.path.map(|path| {
            let names = path.into_iter().chain([SCHEMA]).map(sql::ident);
            names.collect::<Vec<_>>().join(", ")
        });
        let sql = "SELECT is_complete, has_access, paths_set, first FROM spcd.steampipe_state($1)";
        let mut row = match client
            .query_one(sql, &[&path])
            .await
            .map_err(HubError::from)
        {
            Ok(row) => row,
            Err(error) => {
                return self
                    .warn_if_refused(Err(error), "its objects cannot be read")
                    .map(drop);
            }
        };
        if !row.try_get::<_, bool>(0)? {
            tracing::warn!("compat steampipe: some objects are missing; creating them again");
            if !self.create(client, epoch, true).await? {
                return Ok(());
            }
            row = client.query_one(sql, &[&path]).await?;
        }
        if !row.try_get::<_, bool>(1)? {
            self.grant_access(client, epoch).await?;
        }
        if row.try_get::<_, Vec<&str>>(3)? != desired.first {
            let first = in_transaction(client, epoch, async |client| {
                let sql = "UPDATE spcd.steampipe SET first = $1";
                client.execute(sql, &[&desired.first]).await?;
                Ok(())
            });
            self.warn_if_refused(first.await, "the first connections cannot be recorded")?;
        }
        match path {
            Some(path) if !row.try_get::<_, bool>(2)? => self.set_path(client, epoch, &path).await,
            _ => Ok(()),
        }
    }

    /// Creates the objects, replacing existing ones. Returns false if the server refuses it.
    async fn create(
        &mut self,
        client: &Client,
        epoch: i64,
        is_installed: bool,
    ) -> Result<bool, HubError> {
        let created = in_transaction(client, epoch, async |client| {
            let mut roles: Vec<String> = Vec::new();
            if is_installed {
                // Keeps the roles, which have passwords.
                let sql = "UPDATE spcd.steampipe s SET roles = '{}'
                           FROM spcd.steampipe o RETURNING o.roles";
                if let Some(row) = client.query_opt(sql, &[]).await? {
                    roles = row.try_get(0)?;
                }
                client.batch_execute(DROP_SCRIPT).await?;
            }
            client.batch_execute(CREATE_SCRIPT).await?;
            let sql = "UPDATE spcd.steampipe SET version = pg_catalog.md5($1), roles = $2";
            client.execute(sql, &[&CREATE_SCRIPT, &roles]).await?;
            Ok(())
        });
        let created = match created.await {
            Err(HubError::StatementFailed { code, .. }) if code == SqlState::DUPLICATE_SCHEMA => {
                Err(HubError::StatementFailed {
                    text: format!(
                        "a schema named \"{SCHEMA}\" exists that spcd did not create: rename or drop it"
                    ),
                    code,
                })
            }
            result => result,
        };
        let created = self.warn_if_refused(created, "its objects cannot be created")?;
        if created {
            tracing::info!("compat steampipe: created");
        }
        Ok(created)
    }

    /// Creates missing roles and grants them access.
    async fn grant_access(&mut self, client: &Client, epoch: i64) -> Result<(), HubError> {
        let admitted = in_transaction(client, epoch, async |client| {
            let sql = "SELECT spcd.steampipe_grant_access()
                       WHERE NOT spcd.steampipe_has_access()";
            client.batch_execute(sql).await?;
            Ok(())
        });
        let action = "its roles cannot be created (as a superuser: CREATE ROLE spcd_users; CREATE ROLE \
                    steampipe_users IN ROLE spcd_users; CREATE ROLE steampipe LOGIN IN ROLE \
                    steampipe_users; GRANT steampipe_users TO spcd's own role WITH ADMIN OPTION)";
        self.warn_if_refused(admitted.await, action).map(drop)
    }

    async fn set_path(&mut self, client: &Client, epoch: i64, path: &str) -> Result<(), HubError> {
        let mut failed = Vec::new();
        let set = in_transaction(client, epoch, async |client| {
            let sql = "SELECT role_name, reason FROM spcd.steampipe_set_path($1)";
            failed = client.query(sql, &[&path]).await?;
            Ok(())
        });
        let set = set.await;
        self.warn_if_refused(set, "search paths cannot be set")?;
        for row in &failed {
            let (role, reason): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
            self.warn_once(format!(
                "the search path of the role {role:?} cannot be set: {reason}"
            ));
        }
        Ok(())
    }

    /// Returns whether an action succeeded. Logs an error of the statement, and returns other errors.
    fn warn_if_refused(
        &mut self,
        result: Result<(), HubError>,
        action: &str,
    ) -> Result<bool, HubError> {
        match result {
            Ok(()) => Ok(true),
            Err(HubError::StatementFailed { text, .. }) => {
                self.warn_once(format!("{action}: {text}"));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn warn_once(&mut self, text: String) {
        if self.logged.insert(text.clone()) {
            tracing::warn!("compat steampipe: {text}");
        }
    }
}

/// Returns whether the objects exist in this database.
pub async fn is_installed(client: &Client) -> Result<bool, HubError> {
    crate::has_relation(client, "spcd.steampipe").await
}

/// Runs statements in a transaction that asserts the epoch.
async fn in_transaction(
    client: &Client,
    epoch: i64,
    work: impl AsyncFnOnce(&Client) -> Result<(), HubError>,
) -> Result<(), HubError> {
    transaction::begin(client, epoch).await?;
    let result = work(client).await;
    transaction::end(client, result).await
}
