//! What clients of Steampipe's database ask it for: made, kept and taken away again, as
//! `compat = "steampipe"` says. The objects follow the states by triggers; here is what they cannot
//! do. None of it is needed for anything else, so what fails costs a warning.

use std::collections::BTreeSet;

use spcd_core::config::Desired;
use spcd_core::observed::Observed;
use spcd_core::{plan, search_path, sql};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{HubError, transaction};

const ON: &str = include_str!("../../../../migrations/compat/steampipe.sql");
const OFF: &str = include_str!("../../../../migrations/compat/steampipe_off.sql");

/// The schema, last on the path of those who read it.
const SCHEMA: &str = "steampipe_internal";

/// What was found out, so that it is said once.
#[derive(Debug, Default)]
pub struct Steampipe {
    said: BTreeSet<String>,
}

/// What clients are to find.
pub struct Wanted<'a> {
    /// The search path without spcd's own schema; `None`: paths are not to be set.
    pub path: Option<Vec<&'a str>>,
    /// The first connection of each plugin on the path.
    pub first: Vec<&'a str>,
}

impl<'a> Wanted<'a> {
    /// What follows from the files, and from the rows of those whose block cannot be read now.
    pub fn of(desired: &'a Desired, observed: &'a Observed) -> Self {
        let mut path = search_path::path(desired, &plan::kept(desired, observed));
        // The path ends with the schema of the state; these clients look for their own there.
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
    /// When a lead begins: makes the objects, or takes them away.
    ///
    /// # Errors
    /// When the lead or the session is lost.
    pub async fn begin(
        client: &Client,
        epoch: i64,
        wanted: bool,
    ) -> Result<Option<Self>, HubError> {
        let there = is_there(client).await?;
        let mut steampipe = Self::default();
        if !wanted {
            if there {
                let gone = in_one(client, epoch, async |client| {
                    Ok(client.batch_execute(OFF).await?)
                });
                if steampipe.passed(gone.await, "what it made cannot be removed")? {
                    tracing::info!("compat steampipe: removed");
                }
            }
            return Ok(None);
        }
        let current = match there {
            true => {
                let sql = "SELECT version = pg_catalog.md5($1) FROM spcd.steampipe";
                let row = client.query_opt(sql, &[&ON]).await?;
                row.map(|row| row.try_get(0)).transpose()?.unwrap_or(false)
            }
            false => false,
        };
        if !current && !steampipe.make(client, epoch, there).await? {
            return Ok(None);
        }
        let started = in_one(client, epoch, async |client| {
            let sql =
                "UPDATE steampipe_internal.steampipe_server_settings s SET start_time = d.since
                       FROM spcd.daemon d WHERE d.since IS NOT NULL";
            client.execute(sql, &[]).await?;
            Ok(())
        });
        steampipe.passed(started.await, "its start cannot be told")?;
        steampipe.admit(client, epoch).await?;
        Ok(Some(steampipe))
    }

    /// In each pass: sees that all is there, and sets what is not the triggers' to set.
    ///
    /// # Errors
    /// As [`Steampipe::begin`].
    pub async fn follow(
        &mut self,
        client: &Client,
        epoch: i64,
        wanted: Wanted<'_>,
    ) -> Result<(), HubError> {
        let path = wanted.path.map(|path| {
            let names = path.into_iter().chain([SCHEMA]).map(sql::ident);
            names.collect::<Vec<_>>().join(", ")
        });
        let sql = "SELECT whole, admitted, paths_set, first FROM spcd.steampipe_look($1)";
        let mut row = match client
            .query_one(sql, &[&path])
            .await
            .map_err(HubError::from)
        {
            Ok(row) => row,
            Err(error) => return self.passed(Err(error), "it cannot be looked at").map(drop),
        };
        if !row.try_get::<_, bool>(0)? {
            tracing::warn!("compat steampipe: a part of it is gone; making it again");
            if !self.make(client, epoch, true).await? {
                return Ok(());
            }
            row = client.query_one(sql, &[&path]).await?;
        }
        if !row.try_get::<_, bool>(1)? {
            self.admit(client, epoch).await?;
        }
        if row.try_get::<_, Vec<&str>>(3)? != wanted.first {
            let first = in_one(client, epoch, async |client| {
                let sql = "UPDATE spcd.steampipe SET first = $1";
                client.execute(sql, &[&wanted.first]).await?;
                Ok(())
            });
            self.passed(first.await, "the first connections cannot be told")?;
        }
        match path {
            Some(path) if !row.try_get::<_, bool>(2)? => self.set_path(client, epoch, &path).await,
            _ => Ok(()),
        }
    }

    /// Makes everything, in place of what is `there`; false if that is refused.
    async fn make(&mut self, client: &Client, epoch: i64, there: bool) -> Result<bool, HubError> {
        let made = in_one(client, epoch, async |client| {
            let mut roles: Vec<String> = Vec::new();
            if there {
                // Roles have passwords: they stay as they are.
                let sql = "UPDATE spcd.steampipe s SET roles = '{}'
                           FROM spcd.steampipe o RETURNING o.roles";
                if let Some(row) = client.query_opt(sql, &[]).await? {
                    roles = row.try_get(0)?;
                }
                client.batch_execute(OFF).await?;
            }
            client.batch_execute(ON).await?;
            let sql = "UPDATE spcd.steampipe SET version = pg_catalog.md5($1), roles = $2";
            client.execute(sql, &[&ON, &roles]).await?;
            Ok(())
        });
        let made = match made.await {
            Err(HubError::Refused { code, .. }) if code == SqlState::DUPLICATE_SCHEMA => {
                Err(HubError::Refused {
                    text: format!(
                        "a schema named \"{SCHEMA}\" exists that spcd did not make: rename or drop it"
                    ),
                    code,
                })
            }
            made => made,
        };
        let made = self.passed(made, "it cannot be made")?;
        if made {
            tracing::info!("compat steampipe: made");
        }
        Ok(made)
    }

    /// Makes the roles that are missing and lets them read.
    async fn admit(&mut self, client: &Client, epoch: i64) -> Result<(), HubError> {
        let admitted = in_one(client, epoch, async |client| {
            let sql = "SELECT spcd.steampipe_admit()
                       WHERE NOT spcd.steampipe_is_admitted()";
            client.batch_execute(sql).await?;
            Ok(())
        });
        let what = "its roles cannot be made (as a superuser: CREATE ROLE spcd_users; CREATE ROLE \
                    steampipe_users IN ROLE spcd_users; CREATE ROLE steampipe LOGIN IN ROLE \
                    steampipe_users; GRANT steampipe_users TO spcd's own role WITH ADMIN OPTION)";
        self.passed(admitted.await, what).map(drop)
    }

    async fn set_path(&mut self, client: &Client, epoch: i64, path: &str) -> Result<(), HubError> {
        let mut failed = Vec::new();
        let set = in_one(client, epoch, async |client| {
            let sql = "SELECT role_name, reason FROM spcd.steampipe_set_path($1)";
            failed = client.query(sql, &[&path]).await?;
            Ok(())
        });
        let set = set.await;
        self.passed(set, "search paths cannot be set")?;
        for row in &failed {
            let (role, reason): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
            self.say(format!(
                "the search path of the role {role:?} cannot be set: {reason}"
            ));
        }
        Ok(())
    }

    /// Whether it was done; what the server refuses is said, and only what ends the lead is an
    /// error.
    fn passed(&mut self, result: Result<(), HubError>, what: &str) -> Result<bool, HubError> {
        match result {
            Ok(()) => Ok(true),
            Err(HubError::Refused { text, .. }) => {
                self.say(format!("{what}: {text}"));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn say(&mut self, text: String) {
        if self.said.insert(text.clone()) {
            tracing::warn!("compat steampipe: {text}");
        }
    }
}

/// Whether it is made in this database.
///
/// # Errors
/// As the server says.
pub async fn is_there(client: &Client) -> Result<bool, HubError> {
    let sql = "SELECT pg_catalog.to_regclass('spcd.steampipe') IS NOT NULL";
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}

/// Does something in one transaction of the leader's.
async fn in_one(
    client: &Client,
    epoch: i64,
    work: impl AsyncFnOnce(&Client) -> Result<(), HubError>,
) -> Result<(), HubError> {
    transaction::begin(client, epoch).await?;
    let result = work(client).await;
    transaction::end(client, result).await
}
