//! The model of the database.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::config::Desired;
use spcd_core::observed::{Applied, Detail, Extension, Known, Observed, Presence, Written};
use spcd_core::plan::{self, RowChange};
use spcd_core::scheduler::Request;
use spcd_core::union;
use spcd_protocol::Status;

#[derive(Debug, Default)]
pub struct Hub {
    pub epoch: u64,
    pub rows: BTreeMap<String, Known>,
    /// What was altered since spcd wrote it.
    pub drifted: BTreeSet<String>,
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
    /// What a look finds.
    pub fn observe(&self, desired: &Desired, drifted: Option<&BTreeSet<String>>) -> Observed {
        let extension = match self.has_extension {
            true => Extension::Installed,
            false => Extension::Available,
        };
        let mut observed = Observed {
            connections: self.rows.clone(),
            admitted: true,
            extensions: [("postgres_fdw".to_owned(), extension)].into(),
            ..Observed::default()
        };
        if let Some(drifted) = drifted {
            observed.mark(drifted.iter());
        }
        let needs = plan::needs_detail(desired, &observed);
        for name in needs.details {
            observed.details.insert(name, Detail::default());
        }
        observed
    }

    /// Writes rows, as `spcd.publish` does: only along the permitted transitions.
    pub fn publish(&mut self, rows: &[RowChange], desired: &Desired) -> Result<(), String> {
        for row in rows {
            if row.remove {
                self.remove(&row.name)?;
                continue;
            }
            let written = desired
                .connections
                .get(&row.name)
                .map(|one| Written::of(one));
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
            None if Status::FIRST.contains(&status) => {
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

    /// Writes what a job made.
    pub fn made(&mut self, name: &str, status: Status, made: Made) -> Result<bool, String> {
        let hidden_schema = made.hidden.then(|| format!("spcd_hidden_{name}"));
        let applied = Applied {
            target_hash: made.target_hash,
            schema: Presence::Ours,
            server: Presence::Ours,
            intact: true,
            readable: true,
            warnings: Vec::new(),
            hidden_schema,
            version: None,
            types: Default::default(),
        };
        let Some(known) = self.rows.get_mut(name) else {
            return Err(format!("no row of {name:?}"));
        };
        let shape = Some(made.shape);
        let differs = known.applied.as_ref() != Some(&applied)
            || known.shape_hash != shape
            || known.status != status
            || self.drifted.contains(name);
        known.applied = Some(applied);
        known.shape_hash = shape;
        self.drifted.remove(name);
        for step in Status::route(Some(known.status), status) {
            self.set_status(name, step, None)?;
        }
        Ok(differs)
    }

    /// Drops what was made, and the row unless it stays, disabled.
    pub fn dropped(&mut self, name: &str, keep: Option<Written>) -> Result<(), String> {
        self.drifted.remove(name);
        self.reads.remove(name);
        let Some(known) = self.rows.get_mut(name) else {
            return Err(format!("no row of {name:?}"));
        };
        known.applied = None;
        known.shape_hash = None;
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
            let takes_part = !union::is_of_aggregator(&applied.target_hash);
            known.shape_hash.as_deref().filter(|_| takes_part)
        };
        union::target_hash(members.iter().map(|name| (name.as_str(), shape(name))))
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
    pub shape: String,
    pub hidden: bool,
}

fn is_hidden(applied: &Applied) -> bool {
    applied.hidden_schema.is_some()
}

fn new_row(status: Status) -> Known {
    Known {
        status,
        error: None,
        warnings: Vec::new(),
        comments_set: true,
        written: Written::default(),
        shape_hash: None,
        applied: None,
        waits_for: None,
    }
}
