//! What is in the catalog for a connection, and the fingerprint that tells whether it was altered.

use std::collections::BTreeMap;

use spcd_core::config::DesiredState;
use spcd_core::diff::{self, Table, WrapperTraits};
use spcd_core::observed::{Detail, Views};

use crate::hub::Hub;

/// What was made for a connection. A fingerprint is the version that was found.
#[derive(Debug, Default)]
pub struct Objects {
    /// Rises with every change of a catalog row.
    pub version: u64,
    /// The recorded fingerprint.
    pub recorded: Option<u64>,
    /// Which tables are there.
    pub shape: u64,
    /// Another session altered what counts.
    pub is_damaged: bool,
    pub is_schema_readable: bool,
    pub are_tables_readable: bool,
}

impl Objects {
    pub fn is_readable(&self) -> bool {
        self.is_schema_readable && self.are_tables_readable
    }

    /// Whether it differs from the recorded fingerprint.
    pub fn has_drifted(&self) -> bool {
        self.recorded != Some(self.version)
    }

    /// Takes note that a job wrote it.
    pub fn made(&mut self, shape: u64, readers: bool, is_looked_at_again: bool) {
        self.version += 1;
        self.shape = shape;
        self.is_damaged = false;
        if readers {
            self.is_schema_readable = true;
            self.are_tables_readable = true;
        }
        self.recorded = (!is_looked_at_again).then_some(self.version);
    }
}

impl Hub {
    /// Returns the connections whose fingerprint is not the recorded one, with the one found.
    pub fn drifted(&self) -> BTreeMap<String, String> {
        let drifted = self.objects.iter().filter(|(_, one)| one.has_drifted());
        drifted
            .map(|(name, one)| (name.clone(), one.version.to_string()))
            .collect()
    }

    /// Records a fingerprint: the one that was found, or that of now.
    pub fn record_fingerprint(&mut self, name: &str, found: Option<&str>) -> Result<(), String> {
        let Some(objects) = self.objects.get_mut(name) else {
            return Err(format!(
                "nothing is there whose fingerprint is recorded for {name}"
            ));
        };
        objects.recorded = match found {
            Some(found) => found.parse().ok(),
            None => Some(objects.version),
        };
        let known = self.rows.get(name);
        let applied = known.and_then(|known| known.applied.as_ref());
        let is_hidden = applied.is_some_and(|applied| applied.hidden_schema.is_some());
        let is_closed = self.readers && !is_hidden && !objects.is_readable();
        match !objects.has_drifted() && (objects.is_damaged || is_closed) {
            true => Err(format!("a fingerprint hides what became of {name}")),
            false => Ok(()),
        }
    }

    /// What a closer look at a connection finds.
    pub fn detail(&self, name: &str, desired: &DesiredState) -> Detail {
        let objects = self.objects.get(name);
        let connection = desired.connections.get(name);
        let target = connection.and_then(|connection| connection.target.as_ref().ok());
        let (Some(objects), Some(target)) = (objects, target) else {
            return Detail::default();
        };
        if objects.is_damaged {
            return Detail::default();
        }
        let is_closed = self.readers && !objects.are_tables_readable;
        Detail {
            server: Some((target.wrapper.clone(), target.server_options())),
            mapping: Some(target.mapping.clone()),
            tables: tables(objects.shape),
            unreadable: is_closed.then(|| "t".to_owned()).into_iter().collect(),
            ..Detail::default()
        }
    }

    /// What a closer look at an aggregator finds.
    pub fn views(&self, name: &str) -> Views {
        let Some(objects) = self.objects.get(name) else {
            return Views::default();
        };
        let view = |is_so: bool| is_so.then(|| "v".to_owned()).into_iter().collect();
        Views {
            altered: view(objects.is_damaged),
            unreadable: view(self.readers && !objects.are_tables_readable),
        }
    }

    /// The role `spcd_users` is created, without rights, or dropped with those that it has.
    pub fn set_readers(&mut self, is_there: bool) {
        if self.readers == is_there {
            return;
        }
        self.readers = is_there;
        self.is_admitted = false;
        for objects in self.objects.values_mut() {
            objects.version += u64::from(objects.is_schema_readable);
            objects.is_schema_readable = false;
            objects.are_tables_readable = false;
        }
    }
}

/// Returns the tables of a shape.
fn tables(shape: u64) -> Vec<Table> {
    vec![Table {
        name: format!("t{shape}"),
        ..Table::default()
    }]
}

/// Returns the hash of the tables of a shape.
pub fn schema_hash(shape: u64, traits: WrapperTraits<'_>) -> String {
    diff::hash(&tables(shape), traits)
}
