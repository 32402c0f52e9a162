//! The recorded configuration files of the applied state.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use spcd_core::config::{AppliedFile, AppliedFiles};
use tokio_postgres::Client;

use crate::HubError;

/// The applied state came from other config directories than those given.
#[derive(Debug, thiserror::Error)]
#[error(
    "the objects in this database come from {}, and this command was given {}: start it with {}, or \
     switch directories: `spcd plan --adopt-config` shows what that would change, and \
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
    /// Returns the directories that the applied state came from.
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

/// Returns the recorded files; none if spcd's schema does not exist.
pub async fn read(client: &Client) -> Result<AppliedFiles, HubError> {
    if !crate::has_relation(client, "spcd.config_file").await? {
        return Ok(AppliedFiles::default());
    }
    // An earlier schema has no column `plugins`.
    let sql = "SELECT f.path, f.root, f.sets_path, f.vanished_with,
                      coalesce(pg_catalog.to_jsonb(f) OPERATOR(pg_catalog.->) 'plugins', '{}')
               FROM spcd.config_file f";
    let mut inputs = AppliedFiles::default();
    for row in client.query(sql, &[]).await? {
        let input = AppliedFile {
            root: row.try_get(1)?,
            sets_path: row.try_get(2)?,
            vanished_with: row.try_get(3)?,
            plugins: plugins_of(&row.try_get(4)?),
        };
        inputs.0.insert(row.try_get(0)?, input);
    }
    Ok(inputs)
}

fn plugins_of(recorded: &serde_json::Value) -> BTreeMap<String, String> {
    let object = recorded.as_object().into_iter().flatten();
    object
        .filter_map(|(label, source)| Some((label.clone(), source.as_str()?.to_owned())))
        .collect()
}

/// Returns the recorded files that vanished and still protect their connections.
pub async fn vanished(client: &Client) -> Result<BTreeSet<String>, HubError> {
    let sql = "SELECT path FROM spcd.config_file WHERE vanished_with IS NOT NULL";
    let rows = client.query(sql, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Deletes the records of vanished files, so that their connections count as removed.
pub async fn give_up(client: &Client) -> Result<(), HubError> {
    let sql = "DELETE FROM spcd.config_file WHERE vanished_with IS NOT NULL";
    client.execute(sql, &[]).await?;
    Ok(())
}

/// Writes the differences between two states of the record.
pub async fn write(
    client: &Client,
    epoch: i64,
    before: &AppliedFiles,
    now: &AppliedFiles,
) -> Result<(), HubError> {
    let is_gone = |path: &&String| !now.0.contains_key(*path);
    let gone: Vec<&String> = before.0.keys().filter(is_gone).collect();
    let differs = |(path, input): &(&String, &AppliedFile)| before.0.get(*path) != Some(input);
    let new: Vec<(&String, &AppliedFile)> = now.0.iter().filter(differs).collect();
    let paths: Vec<&String> = new.iter().map(|(path, _)| *path).collect();
    let roots: Vec<&String> = new.iter().map(|(_, input)| &input.root).collect();
    let vanished: Vec<Option<&String>> = (new.iter())
        .map(|(_, input)| input.vanished_with.as_ref())
        .collect();
    let set_path: Vec<bool> = new.iter().map(|(_, input)| input.sets_path).collect();
    let plugins: Vec<serde_json::Value> = (new.iter())
        .map(|(_, input)| serde_json::json!(input.plugins))
        .collect();
    let sql = "SELECT spcd.record_config($1, $2, $3, $4, $5, $6, $7)";
    client
        .execute(
            sql,
            &[
                &epoch, &gone, &paths, &roots, &set_path, &vanished, &plugins,
            ],
        )
        .await?;
    Ok(())
}

/// Checks that the applied state came from these directories. Returns the recorded directories whose
/// name has changed.
///
/// # Errors
/// [`OtherConfig`] if a recorded directory is not given.
pub fn check(
    inputs: &AppliedFiles,
    given: &[String],
) -> Result<Vec<(String, String)>, OtherConfig> {
    let mut renamed = Vec::new();
    let mut others = Vec::new();
    for recorded in inputs.other_roots(given) {
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

/// Replaces the names of renamed directories in the record.
pub fn renamed(inputs: AppliedFiles, renamed: &[(String, String)]) -> AppliedFiles {
    let rename = |path: String| {
        let new = |(from, to): &(String, String)| match path.strip_prefix(from) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Some(format!("{to}{rest}")),
            _ => None,
        };
        renamed.iter().find_map(new).unwrap_or(path)
    };
    let rename_input = |(path, input): (String, AppliedFile)| {
        let input = AppliedFile {
            root: rename(input.root),
            sets_path: input.sets_path,
            plugins: input.plugins,
            vanished_with: input.vanished_with.map(rename),
        };
        (rename(path), input)
    };
    AppliedFiles(inputs.0.into_iter().map(rename_input).collect())
}

/// Records the new names of directories.
pub async fn rename(
    client: &Client,
    epoch: i64,
    renamed: &[(String, String)],
) -> Result<(), HubError> {
    for (from, to) in renamed {
        tracing::info!(from, to, "the config directory has another name now");
        let sql = "SELECT spcd.rename_config($1, $2, $3)";
        client.execute(sql, &[&epoch, from, to]).await?;
    }
    Ok(())
}

/// Whether two paths resolve to the same directory.
fn is_same_place(one: &str, other: &str) -> bool {
    let real = |path: &str| fs::canonicalize(Path::new(path)).ok();
    real(one).is_some_and(|one| real(other) == Some(one))
}
