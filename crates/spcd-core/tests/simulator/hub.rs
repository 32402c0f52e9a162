//! The model of the database.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::aggregator;
use spcd_core::config::DesiredState;
use spcd_core::observed::{Applied, ConfigSnapshot, Extension, Observed, ObservedConnection};
use spcd_core::planner::{self, RowChange};
use spcd_core::scheduler::Request;
use spcd_protocol::Status;

use crate::objects::Objects;
use crate::roles::ModelRole;

#[derive(Debug, Default)]
pub struct Hub {
    pub epoch: u64,
    pub rows: BTreeMap<String, ObservedConnection>,
    /// What is in the catalog for each connection.
    pub objects: BTreeMap<String, Objects>,
    pub roles: BTreeMap<&'static str, ModelRole>,
    pub refuses_paths: bool,
    /// The role `spcd_users` exists.
    pub readers: bool,
    /// It may use spcd's own schema.
    pub is_admitted: bool,
    /// What another session has locked.
    pub locked: BTreeSet<String>,
    pub is_full: bool,
    pub requests: BTreeMap<i64, HubRequest>,
    pub paused: BTreeSet<String>,
    pub reachable: BTreeMap<String, bool>,
    /// How often in a row asking ended the server, which target, and when it is asked again.
    pub crashes: BTreeMap<String, (String, u32, u64)>,
    pub has_extension: bool,
    pub refuses_extension: bool,
    pub diagnostics: Option<serde_json::Value>,
    /// The members whose tables an aggregator's views read.
    pub reads: BTreeMap<String, Vec<String>>,
    pub generation: i64,
    /// How often something was written.
    pub writes: u64,
}

#[derive(Debug)]
pub struct HubRequest {
    pub request: Request,
    pub answer: Option<Option<String>>,
}

impl Hub {
    /// Begins a transaction that writes: only the current epoch may.
    pub fn begin_write(&mut self, epoch: u64) -> Result<(), String> {
        self.writes += 1;
        match epoch == self.epoch {
            true => Ok(()),
            false => Err(format!("{epoch} writes though {} leads", self.epoch)),
        }
    }

    /// What a look finds.
    pub fn observe(&self, desired: &DesiredState, drifted: Option<&BTreeSet<String>>) -> Observed {
        let extension = match self.has_extension {
            true => Extension::Installed,
            false => Extension::Available,
        };
        let mut observed = Observed {
            connections: self.rows.clone(),
            readers: self.readers,
            admitted: !self.readers || self.is_admitted,
            extensions: [
                ("postgres_fdw".to_owned(), extension),
                ("file_fdw".to_owned(), Extension::Installed),
            ]
            .into(),
            roles: self.roles(),
            ..Observed::default()
        };
        for (name, objects) in &self.objects {
            let known = observed.connections.get_mut(name);
            if let Some(applied) = known.and_then(|known| known.applied.as_mut()) {
                let is_hidden = applied.hidden_schema.is_some();
                applied.readable = !self.readers || is_hidden || objects.is_schema_readable;
            }
        }
        if let Some(drifted) = drifted {
            observed.mark(drifted.iter());
        }
        let needs = planner::needs_detail(desired, &observed);
        for name in needs.details {
            let detail = self.detail(&name, desired);
            observed.details.insert(name, detail);
        }
        for name in needs.views {
            let views = self.views(&name);
            observed.views.insert(name, views);
        }
        observed
    }

    /// Writes rows, as `spcd.publish` does: only along the permitted transitions.
    pub fn publish(&mut self, rows: &[RowChange], desired: &DesiredState) -> Result<(), String> {
        for row in rows {
            if row.remove {
                self.remove(&row.name)?;
                continue;
            }
            let written = desired
                .connections
                .get(&row.name)
                .map(|one| ConfigSnapshot::of(one));
            for status in &row.route {
                self.set_status(&row.name, *status, row.error.clone())?;
            }
            let Some(known) = self.rows.get_mut(&row.name) else {
                return Err(format!("no row of {:?}", row.name));
            };
            if let (Some(_), Some(written)) = (&row.written, written) {
                known.written = written;
            }
            if let Some(warnings) = &row.warnings {
                known.warnings.clone_from(warnings);
            }
        }
        Ok(())
    }

    pub fn set_status(
        &mut self,
        name: &str,
        status: Status,
        error: Option<String>,
    ) -> Result<(), String> {
        let known = match self.rows.get_mut(name) {
            None if Status::INITIAL.contains(&status) => {
                (self.rows.entry(name.to_owned())).or_insert_with(|| new_row(status))
            }
            None => return Err(format!("{name} begins as {status}")),
            Some(known) if known.status.may_become(status) => known,
            Some(known) => return Err(format!("{name} is {} and became {status}", known.status)),
        };
        known.status = status;
        known.error = error.filter(|_| status == Status::Error);
        if status == Status::Ready && known.applied.as_ref().is_none_or(is_hidden) {
            return Err(format!("{name} is ready without its tables"));
        }
        Ok(())
    }

    /// Writes what a job made. Returns whether anything differed.
    pub fn made(&mut self, name: &str, status: Status, made: Made) -> Result<bool, String> {
        let hidden_schema = made.hidden.then(|| format!("spcd_hidden_{name}"));
        let applied = Applied {
            hidden_schema,
            ..Applied::complete(&made.target_hash)
        };
        let Some(known) = self.rows.get_mut(name) else {
            return Err(format!("no row of {name:?}"));
        };
        let objects = self.objects.entry(name.to_owned()).or_default();
        let schema_hash = Some(made.schema_hash);
        let is_unreadable = self.readers && !made.hidden && !objects.is_readable();
        let differs = known.applied.as_ref() != Some(&applied)
            || known.schema_hash != schema_hash
            || known.status != status
            || objects.is_damaged
            || is_unreadable
            || !made.is_refresh;
        if !differs {
            return Ok(false);
        }
        known.applied = Some(applied);
        known.schema_hash = schema_hash;
        let readers = self.readers && !made.hidden;
        objects.made(made.shape, readers, made.is_looked_at_again);
        for step in Status::route(Some(known.status), status) {
            self.set_status(name, step, None)?;
        }
        Ok(true)
    }

    /// Grants readers what they lack. The fingerprint that is recorded stays as it was.
    pub fn granted(&mut self, name: &str) -> Result<(), String> {
        let (Some(known), Some(objects)) = (self.rows.get(name), self.objects.get_mut(name)) else {
            return Err(format!("nothing of {name} is there to be read"));
        };
        objects.version += 1;
        objects.is_schema_readable = self.readers;
        objects.are_tables_readable = self.readers;
        let route = match known.status {
            Status::Ready => vec![Status::Updating, Status::Ready],
            status => Status::route(Some(status), Status::Ready),
        };
        for step in route {
            self.set_status(name, step, None)?;
        }
        Ok(())
    }

    /// Drops what was made, and the row unless it stays, disabled.
    pub fn dropped(&mut self, name: &str, keep: Option<ConfigSnapshot>) -> Result<(), String> {
        self.objects.remove(name);
        self.reads.remove(name);
        let Some(known) = self.rows.get_mut(name) else {
            return Err(format!("no row of {name:?}"));
        };
        known.applied = None;
        known.schema_hash = None;
        match keep {
            Some(written) => {
                known.written = written;
                for step in Status::route(Some(known.status), Status::Disabled) {
                    self.set_status(name, step, None)?;
                }
                Ok(())
            }
            None => self.remove(name),
        }
    }

    fn remove(&mut self, name: &str) -> Result<(), String> {
        match self.rows.remove(name) {
            Some(known) if known.applied.is_none() => Ok(()),
            _ => Err(format!("the row of {name} went, and its tables did not")),
        }
    }

    /// The hash that an aggregator of these members is to have.
    pub fn aggregator_hash(&self, members: &[String]) -> String {
        let shape = |name: &str| {
            let known = self.rows.get(name)?;
            let applied = known.applied.as_ref()?;
            let takes_part = !aggregator::is_aggregator_hash(&applied.target_hash);
            known.schema_hash.as_deref().filter(|_| takes_part)
        };
        aggregator::target_hash(members.iter().map(|name| (name.as_str(), shape(name))))
    }

    /// The aggregators whose views read a connection's tables.
    pub fn readers(&self, name: &str) -> Vec<&String> {
        let reads = self.reads.iter();
        reads
            .filter(|(_, members)| members.iter().any(|member| member == name))
            .map(|(aggregator, _)| aggregator)
            .collect()
    }

    /// A new leader: every row that is not disabled is pending.
    pub fn take_lead(&mut self) {
        self.epoch += 1;
        for known in self.rows.values_mut() {
            if known.status != Status::Disabled {
                known.status = Status::Pending;
                known.error = None;
            }
        }
    }
}

/// What an import or an aggregator made.
pub struct Made {
    pub target_hash: String,
    pub shape: u64,
    pub schema_hash: String,
    pub hidden: bool,
    /// Nothing was known to differ.
    pub is_refresh: bool,
    /// No fingerprint of it is recorded.
    pub is_looked_at_again: bool,
}

fn is_hidden(applied: &Applied) -> bool {
    applied.hidden_schema.is_some()
}

fn new_row(status: Status) -> ObservedConnection {
    ObservedConnection {
        status,
        error: None,
        warnings: Vec::new(),
        comments_set: true,
        written: ConfigSnapshot::default(),
        schema_hash: None,
        applied: None,
        waits_for: None,
    }
}
