//! Reads the list of a source's connections from the rows of its table.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::{SourceConnection, SourceState};
use crate::hash::hash;
use crate::model::SourceKind;

/// A row of the list, and the digest of the connection's schema in the source's catalog.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The row, by column name. Other versions may have more or fewer columns.
    pub row: Value,
    /// Version of the row; `None` if the table has none.
    pub version: Option<String>,
    /// The schema's tables in the catalog; `None`: the source has no such schema.
    pub digest: Option<SchemaDigest>,
}

/// Digests of a schema's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaDigest {
    /// Hash that differs after each change of the tables.
    pub version: String,
    /// Hash that is equal for schemas whose tables have equal names and numbers of columns.
    pub names: String,
}

/// Number of successive reads in which a ready connection had no schema, by name.
pub type SchemalessReads = BTreeMap<String, u32>;

/// Number of reads after which a connection that is ready without a schema is in error.
const MAX_SCHEMALESS_READS: u32 = 8;

/// Returns the connections of a source.
///
/// # Errors
/// A required column is missing.
pub fn read_list<'a>(
    kind: SourceKind,
    listed: impl IntoIterator<Item = &'a Listed>,
    previous: &mut SchemalessReads,
) -> Result<BTreeMap<String, Arc<SourceConnection>>, String> {
    let mut connections = BTreeMap::new();
    let mut current = SchemalessReads::new();
    for one in listed {
        let [name, state] = kind.columns().map(|column| text(&one.row, column));
        let (Some(name), Some(status)) = (name, state) else {
            let (schema, table) = kind.table();
            let columns = kind.columns().join(" and ");
            return Err(format!(
                "{schema}.{table} has rows without {columns}: its version is not supported"
            ));
        };
        let state = match state_of(&one.row, status) {
            SourceState::Ready(_) => match &one.digest {
                Some(digest) => SourceState::Ready(stamp(kind, &one.row, &digest.version)),
                None => schemaless(name, previous, &mut current),
            },
            state => state,
        };
        let connection = SourceConnection {
            state,
            plugin: text(&one.row, "plugin").unwrap_or_default().to_owned(),
            kind: match text(&one.row, "type") {
                Some("aggregator") => "aggregator".to_owned(),
                _ => "plugin".to_owned(),
            },
            connections: texts(&one.row, "connections"),
            labels: labels(&one.row),
            is_mirrored: text(&one.row, "mirror").is_some_and(|mirror| !mirror.is_empty()),
            shape: (one.digest.as_ref()).and_then(|digest| shape(kind, &one.row, &digest.names)),
        };
        connections.insert(name.to_owned(), Arc::new(connection));
    }
    *previous = current;
    Ok(connections)
}

/// Returns the state of a row. Treats statuses of newer versions as work in progress.
fn state_of(row: &Value, status: &str) -> SourceState {
    match status {
        "ready" => SourceState::Ready(String::new()),
        "error" => {
            let error = text(row, "error").filter(|error| !error.is_empty());
            SourceState::Error(error.unwrap_or("the source gives no reason").to_owned())
        }
        "disabled" => SourceState::Disabled,
        _ => SourceState::AtWork,
    }
}

/// Returns the state of a connection that is `ready` without a schema. The source may commit the schema
/// a moment after the state.
fn schemaless(
    name: &str,
    previous: &SchemalessReads,
    current: &mut SchemalessReads,
) -> SourceState {
    let reads = previous
        .get(name)
        .map_or(1, |reads| reads.saturating_add(1));
    current.insert(name.to_owned(), reads);
    match reads < MAX_SCHEMALESS_READS {
        true => SourceState::AtWork,
        false => SourceState::Error(format!(
            "the source says that it is ready, and has no schema {name:?} there"
        )),
    }
}

fn stamp(kind: SourceKind, row: &Value, digest: &str) -> String {
    let versions = kind.versions().iter();
    let versions = versions.map(|column| row.get(*column).map_or(String::new(), Value::to_string));
    let parts: Vec<String> = versions.chain([digest.to_owned()]).collect();
    hash(parts.iter().map(String::as_str))
}

/// Returns a text that is equal for connections with equal tables. `None` if the source does not
/// guarantee equality, by a hash of the tables or by a plugin whose connections all have the same
/// tables.
fn shape(kind: SourceKind, row: &Value, names: &str) -> Option<String> {
    let column = |name: &str| row.get(name).map_or(String::new(), Value::to_string);
    let same = match kind {
        SourceKind::Spcd => {
            let hash = text(row, "schema_hash").filter(|hash| !hash.is_empty())?;
            vec![hash.to_owned()]
        }
        SourceKind::Steampipe if text(row, "schema_mode") == Some("static") => {
            ["plugin", "plugin_instance", "plugin_mod_time"]
                .map(column)
                .into()
        }
        SourceKind::Steampipe => return None,
    };
    let parts = same.iter().map(String::as_str);
    Some(hash(parts.chain([kind.name(), names])))
}

fn text<'a>(row: &'a Value, column: &str) -> Option<&'a str> {
    row.get(column)?.as_str()
}

fn texts(row: &Value, column: &str) -> Vec<String> {
    let list = row
        .get(column)
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    list.filter_map(|one| one.as_str().map(str::to_owned))
        .collect()
}

fn labels(row: &Value) -> BTreeMap<String, String> {
    let object = row
        .get("labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    object
        .filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listed(row: Value, digest: Option<&str>) -> Listed {
        Listed {
            row,
            version: None,
            digest: digest.map(|version| SchemaDigest {
                version: version.to_owned(),
                names: "n".to_owned(),
            }),
        }
    }

    fn states(kind: SourceKind, rows: &[Listed]) -> Vec<(String, SourceState)> {
        let read = read_list(kind, rows, &mut SchemalessReads::new()).unwrap();
        read.into_iter()
            .map(|(name, one)| (name, one.state.clone()))
            .collect()
    }

    #[test]
    fn a_row_is_understood_with_columns_that_are_not_known_and_without_others() {
        let row = json!({
            "name": "aws", "state": "ready", "plugin": "hub.steampipe.io/plugins/turbot/aws@latest",
            "type": null, "connections": null, "new_column": {"a": 1},
        });
        let rows = [listed(row, Some("d"))];
        let read = read_list(SourceKind::Steampipe, &rows, &mut SchemalessReads::new()).unwrap();
        let aws = &read["aws"];
        assert!(matches!(aws.state, SourceState::Ready(_)));
        assert_eq!(aws.kind, "plugin");
        assert_eq!(aws.plugin, "hub.steampipe.io/plugins/turbot/aws@latest");
        let error = read_list(
            SourceKind::Steampipe,
            &[listed(json!({"name": "aws"}), None)],
            &mut SchemalessReads::new(),
        );
        assert!(error.unwrap_err().contains("name and state"));
    }

    #[test]
    fn each_state_of_the_source_has_its_meaning_here() {
        let row = |name: &str, state: &str, error: Value| {
            listed(
                json!({"name": name, "state": state, "error": error}),
                Some("d"),
            )
        };
        let rows = [
            row("a", "pending", Value::Null),
            row("b", "incomplete", Value::Null),
            row("c", "updating", Value::Null),
            row("d", "deleting", Value::Null),
            row("e", "error", json!("no token")),
            row("f", "error", json!("")),
            row("g", "disabled", Value::Null),
            row("h", "a state of a later version", Value::Null),
        ];
        let expected = [
            SourceState::AtWork,
            SourceState::AtWork,
            SourceState::AtWork,
            SourceState::AtWork,
            SourceState::Error("no token".into()),
            SourceState::Error("the source gives no reason".into()),
            SourceState::Disabled,
            SourceState::AtWork,
        ];
        let states = states(SourceKind::Steampipe, &rows).into_iter();
        assert_eq!(states.map(|(_, state)| state).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn other_tables_and_another_hash_are_another_stamp_and_another_time_is_not() {
        let stamp = |hash: &str, time: &str, digest: &str| {
            let row = json!({
                "connection_name": "a", "status": "ready", "schema_hash": hash, "time_changed": time,
            });
            states(SourceKind::Spcd, &[listed(row, Some(digest))])
                .remove(0)
                .1
        };
        let first = stamp("h", "1", "d");
        assert_eq!(first, stamp("h", "2", "d"));
        assert_ne!(first, stamp("i", "1", "d"));
        assert_ne!(first, stamp("h", "1", "e"));
    }

    #[test]
    fn connections_have_one_shape_where_the_source_vouches_for_it() {
        let shape = |kind, row: Value, names: &str| {
            let digest = SchemaDigest {
                version: "v".into(),
                names: names.into(),
            };
            let listed = Listed {
                row,
                version: None,
                digest: Some(digest),
            };
            let read = read_list(kind, &[listed], &mut SchemalessReads::new()).unwrap();
            read["a"].shape.clone()
        };
        let hub = |hash: Value, names: &str| {
            let row = json!({"connection_name": "a", "status": "ready", "schema_hash": hash});
            shape(SourceKind::Spcd, row, names)
        };
        assert_eq!(hub(json!("h"), "n"), hub(json!("h"), "n"));
        assert_ne!(hub(json!("h"), "n"), hub(json!("i"), "n"));
        assert_ne!(hub(json!("h"), "n"), hub(json!("h"), "m"));
        assert_eq!(hub(Value::Null, "n"), None);
        let service = |mode: &str, time: &str| {
            let row = json!({"name": "a", "state": "ready", "schema_mode": mode, "plugin": "p",
                             "plugin_mod_time": time});
            shape(SourceKind::Steampipe, row, "n")
        };
        assert!(service("static", "1").is_some());
        assert_ne!(service("static", "1"), service("static", "2"));
        assert_eq!(service("dynamic", "1"), None);
    }

    #[test]
    fn ready_without_a_schema_is_an_error_only_if_it_stays_so() {
        let rows = [listed(json!({"name": "a", "state": "ready"}), None)];
        let mut waits = SchemalessReads::new();
        let mut look = |rows: &[Listed]| {
            let read = read_list(SourceKind::Steampipe, rows, &mut waits).unwrap();
            read["a"].state.clone()
        };
        for _ in 1..MAX_SCHEMALESS_READS {
            assert_eq!(look(&rows), SourceState::AtWork);
        }
        let SourceState::Error(error) = look(&rows) else {
            panic!("it is no error");
        };
        assert!(error.contains("no schema \"a\""), "{error}");
        let there = [listed(json!({"name": "a", "state": "ready"}), Some("d"))];
        assert!(matches!(look(&there), SourceState::Ready(_)));
        assert_eq!(look(&rows), SourceState::AtWork);
    }
}
