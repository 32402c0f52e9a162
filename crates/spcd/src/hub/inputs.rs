//! The record of the files that the applied state came from.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use spcd_core::config::{Input, Inputs};
use tokio_postgres::Client;

use super::HubError;

/// The applied state came from other config directories than those given.
#[derive(Debug, thiserror::Error)]
#[error(
    "what is in this database came from {}, and this command was given {}: start it with {}, or \
     move over: `spcd plan --adopt-config` shows what that would change, and \
     `spcd apply --adopt-config` does it",
    list(recorded),
    list(given),
    options(recorded)
)]
pub struct OtherConfig {
    recorded: Vec<String>,
    given: Vec<String>,
}

impl OtherConfig {
    /// The directories that the applied state came from.
    pub fn recorded(&self) -> String {
        list(&self.recorded)
    }
}

fn list(dirs: &[String]) -> String {
    dirs.join(" and ")
}

fn options(dirs: &[String]) -> String {
    let options: Vec<String> = dirs.iter().map(|dir| format!("--config {dir}")).collect();
    options.join(" ")
}

/// Everything that is recorded; nothing where spcd was never run.
pub async fn read(client: &Client) -> Result<Inputs, HubError> {
    let there = "SELECT pg_catalog.to_regclass('spcd.config_file') IS NOT NULL";
    if !client.query_one(there, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(Inputs::default());
    }
    let sql = "SELECT path, root, sets_path, vanished_with FROM spcd.config_file";
    let mut inputs = Inputs::default();
    for row in client.query(sql, &[]).await? {
        let input = Input {
            root: row.try_get(1)?,
            sets_path: row.try_get(2)?,
            vanished_with: row.try_get(3)?,
        };
        inputs.0.insert(row.try_get(0)?, input);
    }
    Ok(inputs)
}

/// The recorded files that vanished and were not given up.
pub async fn vanished(client: &Client) -> Result<BTreeSet<String>, HubError> {
    let sql = "SELECT path FROM spcd.config_file WHERE vanished_with IS NOT NULL";
    let rows = client.query(sql, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Gives up what vanished: from now on it counts as removed.
pub async fn give_up(client: &Client) -> Result<(), HubError> {
    let sql = "DELETE FROM spcd.config_file WHERE vanished_with IS NOT NULL";
    client.execute(sql, &[]).await?;
    Ok(())
}

/// Records what differs between two states of the record.
pub async fn write(
    client: &Client,
    epoch: i64,
    before: &Inputs,
    now: &Inputs,
) -> Result<(), HubError> {
    let is_gone = |path: &&String| !now.0.contains_key(*path);
    let gone: Vec<&String> = before.0.keys().filter(is_gone).collect();
    let differs = |(path, input): &(&String, &Input)| before.0.get(*path) != Some(input);
    let new: Vec<(&String, &Input)> = now.0.iter().filter(differs).collect();
    let paths: Vec<&String> = new.iter().map(|(path, _)| *path).collect();
    let roots: Vec<&String> = new.iter().map(|(_, input)| &input.root).collect();
    let vanished: Vec<Option<&String>> = (new.iter())
        .map(|(_, input)| input.vanished_with.as_ref())
        .collect();
    let set_path: Vec<bool> = new.iter().map(|(_, input)| input.sets_path).collect();
    let sql = "SELECT spcd.record_config($1, $2, $3, $4, $5, $6)";
    client
        .execute(sql, &[&epoch, &gone, &paths, &roots, &set_path, &vanished])
        .await?;
    Ok(())
}

/// Whether the applied state came from these directories, or from nowhere. Gives the recorded
/// directories that go by another name now.
///
/// # Errors
/// [`OtherConfig`] where one of the recorded directories is not among those given.
pub fn check(inputs: &Inputs, given: &[String]) -> Result<Vec<(String, String)>, OtherConfig> {
    let mut renamed = Vec::new();
    let mut others = Vec::new();
    for recorded in inputs.roots_besides(given) {
        match given.iter().find(|own| is_same_place(recorded, own)) {
            Some(own) => renamed.push((recorded.to_owned(), own.clone())),
            None => others.push(recorded.to_owned()),
        }
    }
    match others.is_empty() {
        true => Ok(renamed),
        false => Err(OtherConfig {
            recorded: inputs.roots().into_iter().map(str::to_owned).collect(),
            given: given.to_vec(),
        }),
    }
}

/// What is recorded under the names by which directories go now.
pub fn renamed(inputs: Inputs, renamed: &[(String, String)]) -> Inputs {
    let rename = |path: String| {
        let new = |(from, to): &(String, String)| match path.strip_prefix(from) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Some(format!("{to}{rest}")),
            _ => None,
        };
        renamed.iter().find_map(new).unwrap_or(path)
    };
    let rename_input = |(path, input): (String, Input)| {
        let input = Input {
            root: rename(input.root),
            sets_path: input.sets_path,
            vanished_with: input.vanished_with.map(rename),
        };
        (rename(path), input)
    };
    Inputs(inputs.0.into_iter().map(rename_input).collect())
}

/// Records that directories go by another name now.
pub async fn rename(
    client: &Client,
    epoch: i64,
    renamed: &[(String, String)],
) -> Result<(), HubError> {
    for (from, to) in renamed {
        tracing::info!(from, to, "the config directory goes by another name");
        let sql = "SELECT spcd.rename_config($1, $2, $3)";
        client.execute(sql, &[&epoch, from, to]).await?;
    }
    Ok(())
}

/// Whether two paths lead to one place now.
fn is_same_place(one: &str, other: &str) -> bool {
    let real = |path: &str| fs::canonicalize(Path::new(path)).ok();
    real(one).is_some_and(|one| real(other) == Some(one))
}
