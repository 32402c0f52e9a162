//! The tables of a source, from its catalog where that is readable, and otherwise from an IMPORT
//! FOREIGN SCHEMA that is rolled back.

pub mod comments;
pub mod csv;
pub mod lanes;
mod many;
mod partial;
pub mod preview;
mod privileges;
mod shared_extensions;
pub(crate) mod source_catalog;
pub mod source_info;
mod source_state;
pub(crate) mod temporary_server;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use spcd_core::config::ForeignSource;
use spcd_core::diff;
use spcd_core::planner::RemoteSchema;
use spcd_core::secret;
use spcd_core::sql;
use spcd_core::tuning;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::HubError;
use crate::connection::Session;
use crate::import::temporary_server::prepare;
use crate::transaction::rolled_back;

pub use many::fetch_remote_schemas;

/// Suffix of the next temporary name.
static NEXT_NAME: AtomicU64 = AtomicU64::new(1);

/// Returns the tables of a source, normalized. Leaves nothing in the database: server, mapping and
/// schema have temporary names and are rolled back, so that no other session waits for their locks.
pub async fn fetch_remote_schema(
    session: &Session,
    target: &ForeignSource,
) -> Result<RemoteSchema, HubError> {
    let client = &session.client;
    let name = unique_name("spcd_ask");
    let mut answer = None;
    if source_catalog::is_supported(target) {
        let mut read = rolled_back(client, read_catalog(session, &name, target, false)).await;
        if read.as_ref().is_err_and(HubError::is_encoding_error) {
            read = rolled_back(client, read_catalog(session, &name, target, true)).await;
        }
        answer = match read {
            Ok(remote) => remote.map(Ok),
            Err(error) if is_source_error(&error) => Some(Err(error)),
            // The source has another catalog than PostgreSQL's. An import may still work.
            Err(_) => None,
        };
    }
    let answer = match answer {
        Some(answer) => answer,
        None => rolled_back(client, import_schema(session, &name, target)).await,
    };
    match answer {
        Ok(remote) => Ok(redact_schema(remote, &name, target)),
        Err(error) => Err(redact_error(error, &name, target)),
    }
}

/// Whether the catalog of this kind of source lists the privileges of its role.
pub fn reports_privileges(target: &ForeignSource) -> bool {
    target.wrapper == source_catalog::POSTGRES_FDW
}

/// Adds a warning for each remote table that the role of this source may not read. The remote schema
/// comes from another connection that shares its tables.
///
/// # Errors
/// A statement that the hub refuses, or a session that is lost. An error of the source is a warning.
pub async fn check_privileges(
    client: &Client,
    target: &ForeignSource,
    mut remote: RemoteSchema,
) -> Result<RemoteSchema, HubError> {
    let name = unique_name("spcd_privileges");
    let checked = async {
        let text = prepare(client, &name, target).await?;
        client.batch_execute(&text).await?;
        privileges::check(client, &name, target, &mut remote).await
    };
    rolled_back(client, checked).await?;
    Ok(redact_schema(remote, &name, target))
}

/// Removes temporary names and secrets from the texts of a schema.
fn redact_schema(mut remote: RemoteSchema, name: &str, target: &ForeignSource) -> RemoteSchema {
    let errors = (remote.tables.iter_mut()).filter_map(|table| table.import_error.as_mut());
    let notices = (remote.notices.iter_mut()).map(|notice| &mut notice.text);
    let left_out = (remote.left_out.iter_mut()).map(|left_out| &mut left_out.text);
    let warnings = remote.warnings.iter_mut().chain(&mut remote.failed_check);
    for text in errors.chain(notices).chain(left_out).chain(warnings) {
        *text = redact(text, name, target);
    }
    remote
}

/// Returns a name that no other object has while this process runs.
pub(super) fn unique_name(prefix: &str) -> String {
    let (process, number) = (
        std::process::id(),
        NEXT_NAME.fetch_add(1, Ordering::Relaxed),
    );
    format!("{prefix}_{process}_{number}")
}

/// Removes temporary names and secrets from a source's error, and adds advice.
pub(super) fn redact_error(error: HubError, name: &str, target: &ForeignSource) -> HubError {
    match error {
        HubError::StatementFailed { text, code } => HubError::StatementFailed {
            text: redact(&text, name, target) + &advice(&code, &text, target),
            code: normalize_wrapper_code(code),
        },
        error => error,
    }
}

/// Removes the temporary name and secrets from a text.
pub(super) fn redact(text: &str, name: &str, target: &ForeignSource) -> String {
    mask_secrets(&text.replace(name, "the source"), target)
}

/// Whether any other query of the source would fail as well.
fn is_source_error(error: &HubError) -> bool {
    let HubError::StatementFailed { code, .. } = error else {
        return true;
    };
    let source_codes = [
        SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
        SqlState::CONNECTION_FAILURE,
        SqlState::S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED,
        SqlState::QUERY_CANCELED,
    ];
    source_codes.contains(code)
}

/// Reads the source's catalog, and imports only the tables that it does not describe. Returns `None`
/// if it lists no tables; an import then reports why.
async fn read_catalog(
    session: &Session,
    name: &str,
    target: &ForeignSource,
    is_split: bool,
) -> Result<Option<RemoteSchema>, HubError> {
    let client = &session.client;
    let before = prepare(client, name, target).await?;
    let catalog = match is_split {
        false => source_catalog::read(client, name, &before, target).await?,
        true => {
            client.batch_execute(&before).await?;
            source_catalog::read_in_parts(client, name, target).await?
        }
    };
    source_state::ensure_ready(client, name, target).await?;
    let selected: Vec<&str> = (catalog.tables.iter().map(|table| table.name.as_str()))
        .chain(catalog.import_only.iter().map(String::as_str))
        .collect();
    let others: Vec<&str> = catalog.unselected.iter().map(String::as_str).collect();
    let unmatched = target.import.unmatched_patterns(&selected, Some(&others));
    let is_empty = selected.is_empty() && others.is_empty();
    let mut remote = RemoteSchema {
        tables: catalog.tables,
        warnings: catalog.warnings,
        left_out: catalog.left_out,
        ..RemoteSchema::default()
    };
    if !is_empty {
        remote.warnings.extend(unmatched);
    }
    if !catalog.import_only.is_empty() {
        let into = format!("{name}_odd");
        client.batch_execute(&sql::create_schema(&into)).await?;
        let (odd, _) =
            partial::import(session, target, name, &into, Some(&catalog.import_only)).await?;
        remote.tables.extend(odd.tables);
        remote.warnings.extend(odd.warnings);
        remote.left_out.extend(odd.left_out);
        remote.notices.extend(odd.notices);
    }
    tuning::set_fetch_sizes(&mut remote.tables, &catalog.statistics, target);
    diff::normalize(&mut remote.tables, target.wrapper_traits());
    // Connections that share their tables have roles of their own: see [`check_privileges`].
    if target.dynamic && !remote.tables.is_empty() {
        privileges::check(client, name, target, &mut remote).await?;
    }
    if remote == RemoteSchema::default() {
        return Ok(None);
    }
    remote.extensions = shared_extensions::find(client, name, target).await?;
    Ok(Some(remote))
}

async fn import_schema(
    session: &Session,
    name: &str,
    target: &ForeignSource,
) -> Result<RemoteSchema, HubError> {
    let text = prepare(&session.client, name, target).await?;
    session.client.batch_execute(&text).await?;
    source_state::ensure_ready(&session.client, name, target).await?;
    let (mut remote, others) = match import_exact(session, name, target).await? {
        Some(remote) => (remote, None),
        None => partial::import(session, target, name, name, None).await?,
    };
    tuning::set_fetch_sizes(&mut remote.tables, &BTreeMap::new(), target);
    let selected: Vec<String> = remote.tables.iter().map(|t| t.name.clone()).collect();
    let selected: Vec<&str> = selected.iter().map(String::as_str).collect();
    let others: Option<Vec<&str>> =
        (others.as_ref()).map(|others| others.iter().map(String::as_str).collect());
    let unmatched = target
        .import
        .unmatched_patterns(&selected, others.as_deref());
    remote.warnings.extend(unmatched);
    let is_none = selected.is_empty() && others.is_none_or(|others| others.is_empty());
    let prefix = &target.import.schema;
    if is_none && target.wrapper == OGR_FDW && prefix != ALL_LAYERS {
        remote.warnings.push(format!(
            "no layer of the source has a name that begins with {prefix:?} (attribute `layers`)"
        ));
    }
    if target.dynamic && reports_privileges(target) && !remote.tables.is_empty() {
        privileges::check(&session.client, name, target, &mut remote).await?;
    }
    Ok(remote)
}

/// Imports the tables that the target names exactly, by LIMIT TO. Returns `None` if there are no such names,
/// or if one of them is missing: an import of all tables then shows why.
async fn import_exact(
    session: &Session,
    name: &str,
    target: &ForeignSource,
) -> Result<Option<RemoteSchema>, HubError> {
    let Some(exact) = target.import.exact_tables() else {
        return Ok(None);
    };
    let client = &session.client;
    client.batch_execute("SAVEPOINT spcd_exact").await?;
    match partial::import(session, target, name, name, Some(&exact)).await {
        Ok((remote, _)) => {
            let found: BTreeSet<&str> = remote.tables.iter().map(|t| t.name.as_str()).collect();
            if exact.iter().all(|name| found.contains(name.as_str())) {
                return Ok(Some(remote));
            }
        }
        Err(error) if is_source_error(&error) => return Err(error),
        Err(_) => {}
    }
    client.batch_execute("ROLLBACK TO spcd_exact").await?;
    Ok(None)
}

/// The wrapper of GDAL, and its remote schema that stands for all layers.
const OGR_FDW: &str = "ogr_fdw";
const ALL_LAYERS: &str = "ogr_all";

/// Replaces `internal_error`, which many wrappers use for every error, but which the server itself uses
/// for transient ones.
fn normalize_wrapper_code(code: SqlState) -> SqlState {
    match code == SqlState::INTERNAL_ERROR {
        true => SqlState::FDW_ERROR,
        false => code,
    }
}

/// Returns advice about an error of a source. The only use of message texts.
fn advice(code: &SqlState, text: &str, target: &ForeignSource) -> String {
    if target.wrapper != "postgres_fdw" {
        return version_advice(code, target);
    }
    // The wrapper's error does not preserve the SQLSTATE of a pooler.
    if let (true, Some(options)) = (
        text.contains("unsupported startup parameter"),
        target.server.get("options"),
    ) {
        let options_by_attribute = [
            ("default_transaction_read_only", "`read_only`"),
            ("statement_timeout", "`statement_timeout`"),
        ];
        let used = options_by_attribute
            .iter()
            .filter(|(word, _)| options.value.contains(word));
        let mut attributes: Vec<&str> = used.map(|(_, attribute)| *attribute).collect();
        if attributes.is_empty() {
            attributes.push("`options`");
        }
        return format!(
            " ({} is sent as the parameter `options`, which this pooler refuses: remove it, or set \
             it for the role at the source)",
            attributes.join(" and ")
        );
    }
    if code.code() == PASSWORD_REQUIRED {
        return " (write `password`, or, if spcd's role is a superuser, `password_required = false`)"
            .to_owned();
    }
    version_advice(code, target)
}

/// SQLSTATE by which postgres_fdw refuses to connect without a password for an ordinary role.
const PASSWORD_REQUIRED: &str = "2F003";

/// Lists the wrapper versions that the given options require, if the wrapper refuses an option.
fn version_advice(code: &SqlState, target: &ForeignSource) -> String {
    if *code != SqlState::FDW_INVALID_OPTION_NAME || target.since.is_empty() {
        return String::new();
    }
    let attributes: Vec<String> = (target.since.iter())
        .map(|(attribute, since)| format!("`{attribute}` needs {since} or later"))
        .collect();
    format!(" ({})", attributes.join(", "))
}

/// Masks the values of options that are not public. Wrappers repeat user names and connection options
/// in their errors.
pub(super) fn mask_secrets(text: &str, target: &ForeignSource) -> String {
    let mut text = text.to_owned();
    let of_server = target.server.values().filter(|option| !option.public);
    let public = target.server.values().filter(|option| option.public);
    let mut values: Vec<&str> = (target.mapping.values().map(|value| value.expose()))
        .chain(of_server.map(|option| option.value.as_str()))
        .collect();
    // A wrapper may quote a part of an option.
    let parts: Vec<&str> = values
        .iter()
        .flat_map(|value| secret::parts(value))
        .collect();
    values.extend(parts);
    values.extend(public.flat_map(|option| secret::parts_of_public(&option.value)));
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    for value in values {
        text = mask(&text, value);
    }
    mask_url_users(&text)
}

/// Masks the user and password of URLs, which some wrappers repeat.
fn mask_url_users(text: &str) -> String {
    let mut parts = text.split("://");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let host = part.find(|c: char| "/?#\"'".contains(c) || c.is_whitespace());
        let rest = match part[..host.unwrap_or(part.len())].rfind('@') {
            Some(at) => format!("***{}", &part[at..]),
            None => part.to_owned(),
        };
        out.push_str("://");
        out.push_str(&rest);
    }
    out
}

/// Masks a value where it is a whole word.
fn mask(text: &str, value: &str) -> String {
    if value.is_empty() {
        return text.to_owned();
    }
    let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(value) {
        let (before, after) = (&rest[..at], &rest[at + value.len()..]);
        let word = !in_word(
            before
                .chars()
                .next_back()
                .or_else(|| out.chars().next_back()),
        ) && !in_word(after.chars().next());
        out.push_str(before);
        out.push_str(if word { "***" } else { value });
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::{mask, mask_url_users};

    #[test]
    fn a_value_is_masked_where_it_is_a_word() {
        assert_eq!(
            mask("password authentication failed for user \"a\" at a.b", "a"),
            "password authentication failed for user \"***\" at ***.b"
        );
        assert_eq!(mask("secret", "secret"), "***");
        assert_eq!(mask("nothing", ""), "nothing");
    }

    #[test]
    fn the_user_of_a_url_is_masked() {
        assert_eq!(
            mask_url_users("code on http://me:x@y@host/a?b=c@d: 0, ftp://host://me@h"),
            "code on http://***@host/a?b=c@d: 0, ftp://host://***@h"
        );
        assert_eq!(mask_url_users("a@b: nothing://"), "a@b: nothing://");
    }
}
