//! Writes a batch of units in one transaction, or after an error each unit in its own.

use std::fmt::Write as _;

use spcd_core::planner::{self, Bookkeeping, WriteUnit};
use spcd_core::sql;
use tokio_postgres::Client;

use super::publish::publish_statement;
use super::{Committed, QueuedUnit};
use crate::lock_holders::with_holders;
use crate::{HubError, secrets, transaction};

/// Maximum number of attempts of a write that fails with a transient error.
const MAX_ATTEMPTS: usize = 3;

/// A session that writes for the leader of an epoch.
pub(super) struct BatchWriter<'a> {
    pub(super) client: &'a Client,
    pub(super) epoch: i64,
    pub(super) on_commit: &'a (dyn Fn(Committed) + Sync),
}

impl BatchWriter<'_> {
    /// Writes a batch. After an error, writes each unit by itself, so that only the faulty one fails.
    pub(super) async fn write_batch(&self, mut batch: Vec<QueuedUnit>, max_locks: usize) {
        // A single unit may exceed the limits of a batch.
        if let [one] = batch.as_mut_slice()
            && one.unit.locks > max_locks
        {
            match self.write_pieces(&mut one.unit, max_locks).await {
                Ok(()) => {}
                Err(error @ HubError::StatementFailed { .. }) => {
                    let error = with_holders(self.client, &one.unit.name, error).await;
                    return reply_error(batch, error);
                }
                Err(error) => {
                    return tracing::warn!(%error, "the write of a part was interrupted");
                }
            }
        }
        let units: Vec<_> = batch.iter().map(|one| &one.unit).collect();
        let generation = batch
            .iter()
            .map(|one| one.generation)
            .max()
            .unwrap_or_default();
        match self.write(generation, &units).await {
            Err(error @ HubError::StatementFailed { .. })
                if batch.len() == 1 && !error.is_retryable_at_once() =>
            {
                let error = with_holders(self.client, &units[0].name, error).await;
                reply_error(batch, error);
            }
            Err(HubError::StatementFailed { .. }) => {
                for one in batch {
                    let result = self.write_one(&one).await;
                    let _ = one.reply.send(result);
                }
            }
            Ok(()) => batch.into_iter().for_each(|one| {
                let _ = one.reply.send(Ok(()));
            }),
            // The outcome of the commit is unknown. The jobs end without a result, and the next
            // observation shows it.
            Err(error) => tracing::warn!(%error, "the write of a batch was interrupted"),
        }
    }

    async fn write_one(&self, one: &QueuedUnit) -> Result<(), HubError> {
        let mut result = Ok(());
        for _ in 0..MAX_ATTEMPTS {
            result = self.write(one.generation, &[&one.unit]).await;
            match &result {
                Err(error) if error.is_retryable_at_once() => {
                    tracing::debug!(connection = one.unit.name, %error, "writing again")
                }
                _ => break,
            }
        }
        match result {
            Err(error) => Err(with_holders(self.client, &one.unit.name, error).await),
            Ok(()) => Ok(()),
        }
    }

    /// Commits the unit's chunks ahead of the rest. If tables to be removed have dependent objects, they are
    /// dropped all at once with the rest instead.
    async fn write_pieces(&self, unit: &mut WriteUnit, max_locks: usize) -> Result<(), HubError> {
        let sql = "SELECT EXISTS (
                   SELECT 1
                   FROM spcd.applied a
                   JOIN pg_catalog.pg_depend s
                        ON s.refclassid = 'pg_catalog.pg_namespace'::regclass
                       AND s.refobjid = a.schema_oid
                       AND s.classid = 'pg_catalog.pg_class'::regclass
                   JOIN pg_catalog.pg_depend d
                        ON d.refclassid = s.classid AND d.refobjid = s.objid AND d.deptype = 'n'
                       AND d.classid <> 'pg_catalog.pg_attrdef'::regclass
                   WHERE a.connection_name = $1)";
        if matches!(unit.record, Bookkeeping::Forget) {
            let has_dependents: bool = self
                .client
                .query_one(sql, &[&unit.name])
                .await?
                .try_get(0)?;
            if has_dependents {
                return Ok(());
            }
        }
        let mut chunks = std::mem::take(&mut unit.chunks).into_iter().peekable();
        while let Some(mut chunk) = chunks.next() {
            // Combines chunks up to the limit.
            while let Some(next) = chunks.next_if(|next| chunk.locks + next.locks <= max_locks) {
                chunk.sql.push_str(&next.sql);
                chunk.record = next.record;
                chunk.locks += next.locks;
            }
            transaction::begin(self.client, self.epoch).await?;
            let text = chunk.sql + &chunk.record;
            let result = self
                .client
                .batch_execute(&text)
                .await
                .map_err(HubError::from);
            transaction::end(self.client, result).await?;
        }
        if let Bookkeeping::Made(record) = &mut unit.record {
            // Column fingerprints of several transactions cannot be combined.
            record.columns = None;
        }
        Ok(())
    }

    /// Writes units in one transaction.
    async fn write(&self, generation: i64, units: &[&WriteUnit]) -> Result<(), HubError> {
        transaction::begin(self.client, self.epoch).await?;
        let result = async {
            let secrets = units
                .iter()
                .filter_map(|unit| Some((unit.name.as_str(), unit.mapping.as_ref()?)));
            let secrets: Vec<_> = secrets.collect();
            if !secrets.is_empty() {
                secrets::prepare(self.client).await?;
                secrets::send(self.client, secrets).await?;
            }
            let text = statements(generation, units);
            self.client.batch_execute(&text).await?;
            Ok(text)
        };
        let (result, text) = match result.await {
            Ok(text) => (Ok(()), text),
            Err(error) => (Err(error), String::new()),
        };
        transaction::end(self.client, result).await?;
        (self.on_commit)(Committed {
            connections: units.len(),
            tables: units.iter().map(|unit| unit.tables).sum(),
            // Each statement ends a line. A literal with such a line makes little difference.
            bytes: text.len(),
            statements: text.lines().filter(|line| line.ends_with(';')).count(),
        });
        Ok(())
    }
}

/// Sends an error to the single unit of a batch.
fn reply_error(mut batch: Vec<QueuedUnit>, error: HubError) {
    if let Some(one) = batch.pop() {
        let _ = one.reply.send(Err(error));
    }
}

fn statements(generation: i64, units: &[&WriteUnit]) -> String {
    let mut text = String::new();
    let (mut written, mut removed) = (Vec::new(), Vec::new());
    let mut new_mappings = Vec::new();
    for unit in units {
        for chunk in &unit.chunks {
            text.push_str(&chunk.sql);
        }
        text.push_str(&unit.sql);
        match unit.mapping {
            Some(_) if unit.mapping_is_new => new_mappings.push(unit.name.as_str()),
            Some(_) => text.push_str(&sql::set_user_mapping(&unit.name)),
            None => {}
        }
        match &unit.record {
            Bookkeeping::Keep => {}
            Bookkeeping::Forget => removed.push(unit.name.as_str()),
            Bookkeeping::Made(record) => written.push((unit.name.as_str(), record.as_ref())),
        }
    }
    if !new_mappings.is_empty() {
        text.push_str(&sql::create_user_mappings(new_mappings));
    }
    if !written.is_empty() {
        text.push_str(&planner::record_statement(&written));
    }
    if !removed.is_empty() {
        let _ = writeln!(
            text,
            "DELETE FROM spcd.applied WHERE connection_name = ANY ({});",
            sql::text_array(removed)
        );
    }
    let rows = units.iter().map(|unit| &unit.row);
    publish_statement(generation, rows.filter(|row| !row.is_empty()), &mut text);
    text
}
