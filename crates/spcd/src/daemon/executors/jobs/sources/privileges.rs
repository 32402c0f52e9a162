//! Checks which of the tables that connections share a connection's role cannot read.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use spcd_core::config::ForeignSource;
use spcd_core::planner::RemoteSchema;
use spcd_postgres::HubError;
use spcd_postgres::import::check_privileges;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{ImportContext, Sources, limited};

/// Checks by identity of the source. Connections with the same source and role share a check in each
/// pass.
#[derive(Default)]
pub(super) struct PrivilegeChecks(Mutex<BTreeMap<String, Arc<PrivilegeCheck>>>);

/// A check, and its result once it is known. Other jobs wait for it.
struct PrivilegeCheck {
    /// Generation of the pass that started it.
    generation: i64,
    answer: tokio::sync::Mutex<Option<Arc<Privileges>>>,
}

/// Result of a check.
#[derive(Default)]
pub(super) struct Privileges {
    warnings: Vec<String>,
    failed_check: Option<String>,
}

impl Privileges {
    /// Whether the role may read every table.
    pub(super) fn allow_all(&self) -> bool {
        self.warnings.is_empty()
    }

    /// Adds the warnings to a remote schema.
    pub(super) fn add_to(&self, remote: &mut RemoteSchema) {
        remote.warnings.extend(self.warnings.iter().cloned());
        remote.failed_check.clone_from(&self.failed_check);
    }
}

impl PrivilegeChecks {
    /// Returns the check of a source in this pass or a later one. Removes those of earlier passes: privileges
    /// may change at any time.
    fn of(&self, source: &str, generation: i64) -> Arc<PrivilegeCheck> {
        let mut checks = self.0.lock();
        checks.retain(|_, check| check.generation >= generation || Arc::strong_count(check) > 1);
        if let Some(check) = checks.get(source)
            && check.generation >= generation
        {
            return check.clone();
        }
        let check = Arc::new(PrivilegeCheck {
            generation,
            answer: tokio::sync::Mutex::default(),
        });
        checks.insert(source.to_owned(), check.clone());
        check
    }
}

impl Sources {
    /// Returns which of these shared tables a connection's role cannot read.
    ///
    /// # Errors
    /// A statement that the hub refuses, or a session that is lost. An error of the source is a
    /// warning.
    pub(super) async fn privileges(
        &self,
        target: &ForeignSource,
        context: ImportContext<'_>,
        tables: &RemoteSchema,
    ) -> Result<Arc<Privileges>, HubError> {
        let check = self.privileges.of(context.source, context.generation);
        let mut answer = check.answer.lock().await;
        if let Some(privileges) = &*answer {
            return Ok(privileges.clone());
        }
        let privileges = Arc::new(self.ask_privileges(target, context, tables).await?);
        *answer = Some(privileges.clone());
        Ok(privileges)
    }

    /// Asks the source, with a short time limit to connect: its tables are known, and it may be down.
    async fn ask_privileges(
        &self,
        target: &ForeignSource,
        context: ImportContext<'_>,
        tables: &RemoteSchema,
    ) -> Result<Privileges, HubError> {
        let mut remote = RemoteSchema::from(tables.tables.clone());
        if target.tunnel.is_some()
            && let Err(error) = self.tunnels.ready(target).await
        {
            remote.privileges_are_unknown(&error.to_string());
            return Ok(Privileges::of(remote));
        }
        let (limited, hasty) = limited(target);
        let target = hasty.as_ref().or(limited.as_ref()).unwrap_or(target);
        let asked = remote.clone();
        let check = async |client: &Client| check_privileges(client, target, asked).await;
        let checked = self.ask_after_imports(target, context.source, context.priority, check);
        match checked.await {
            Err(HubError::StatementFailed { text, code }) if code == SqlState::QUERY_CANCELED => {
                remote.privileges_are_unknown(&text);
                Ok(Privileges::of(remote))
            }
            checked => checked.map(Privileges::of),
        }
    }
}

impl Privileges {
    fn of(checked: RemoteSchema) -> Self {
        Self {
            warnings: checked.warnings,
            failed_check: checked.failed_check,
        }
    }
}
