//! An import of all tables that can be imported. A single table with an unknown type fails an IMPORT
//! FOREIGN SCHEMA, which is then repeated without this table.

mod mysql_types;
mod name_conflicts;
pub(super) mod remote_names;

use std::collections::BTreeMap;
use std::slice;

use spcd_core::config::{ForeignSource, UnknownTypePolicy};
use spcd_core::diff::{self, Table, TableWarning};
use spcd_core::planner::{ImportNotice, RemoteSchema, quoted_names};
use spcd_core::sql;
use tokio_postgres::error::{DbError, ErrorPosition, Severity, SqlState};

use crate::catalog::foreign_tables;
use crate::connection::Session;
use crate::import::source_catalog;
use crate::{HubError, one_line};
use remote_names::RemoteNames;

/// Maximum number of tables that may fail one by one. With more, the import as a whole fails.
const MAX_FAILED_TABLES: usize = 200;

/// Imports the tables that a target selects (`only` those, if given) into an existing schema, inside a
/// transaction. The result has the tables that failed, with their errors, and the names of the
/// tables that are not selected, if they are known.
pub async fn import(
    session: &Session,
    target: &ForeignSource,
    server: &str,
    into: &str,
    only: Option<&[String]>,
) -> Result<(RemoteSchema, Option<Vec<String>>), HubError> {
    let mut import = PartialImport::new(session, target, server, into);
    let client = &session.client;
    // The server reports a truncated identifier as a notice.
    client
        .batch_execute("SET LOCAL client_min_messages = notice")
        .await?;
    let is_mysql = target.wrapper == remote_names::MYSQL_WRAPPER;
    if is_mysql {
        mysql_types::create_year_type(&mut import).await?;
    }
    let (names, others) = match only {
        Some(only) => (only.to_vec(), None),
        None => match import.import_all().await? {
            Some(listed) => (listed.selected, Some(listed.others)),
            None => (Vec::new(), Some(Vec::new())),
        },
    };
    // Truncated, such a name would stand for another table or none. `mark_truncated` reports it.
    let (long, names): (Vec<_>, Vec<_>) =
        (names.into_iter()).partition(|name| name.len() > diff::MAX_NAME_BYTES);
    import.import_listed(names).await?;
    name_conflicts::import_singly(&mut import).await?;
    import.retry_without_expressions().await?;
    // Types are compared in the form that they have under this search path.
    client
        .batch_execute(
            "SET LOCAL search_path = pg_catalog; SET LOCAL client_min_messages = warning",
        )
        .await?;
    let mut tables = foreign_tables::of_schema(client, into, target.wrapper_traits()).await?;
    if is_mysql {
        mysql_types::correct_types(&mut import, &mut tables).await?;
    }
    let (remote, unselected) = import.into_schema(tables, long);
    let others = others.map(|others| [others, unselected].concat());
    Ok((remote, others))
}

/// Returns advice about a table that cannot be imported.
fn advice(error: &HubError, target: &ForeignSource) -> &'static str {
    match error {
        HubError::StatementFailed { code, .. }
            if *code == SqlState::UNDEFINED_OBJECT
                && source_catalog::is_supported(target)
                && target.import.unknown_types != Some(UnknownTypePolicy::Text) =>
        {
            " (create the type in this database, or read it as text: write \
             `unknown_types = \"text\"` in the block `import`)"
        }
        HubError::StatementFailed { code, .. } if *code == SqlState::UNDEFINED_OBJECT => {
            " (create the type in this database)"
        }
        _ => "",
    }
}

/// An import in progress.
pub(super) struct PartialImport<'a> {
    pub(super) session: &'a Session,
    pub(super) target: &'a ForeignSource,
    pub(super) server: &'a str,
    pub(super) into: &'a str,
    /// Errors of the tables that cannot be imported.
    pub(super) errors: BTreeMap<String, HubError>,
    pub(super) warnings: Vec<String>,
    pub(super) left_out: Vec<TableWarning>,
    notices: Vec<ImportNotice>,
    /// Full names of identifiers that the server truncated.
    truncated: Vec<String>,
    has_extension_schemas: bool,
    /// Schema of the types that the wrapper uses and Postgres does not have.
    type_schema: Option<String>,
}

/// Error of an import, and the table at which it failed.
pub(super) struct ImportError {
    pub(super) error: HubError,
    table: Option<String>,
}

impl From<tokio_postgres::Error> for ImportError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self {
            table: error.as_db_error().and_then(failed_table),
            error: error.into(),
        }
    }
}

impl From<HubError> for ImportError {
    fn from(error: HubError) -> Self {
        Self { error, table: None }
    }
}

impl<'a> PartialImport<'a> {
    fn new(
        session: &'a Session,
        target: &'a ForeignSource,
        server: &'a str,
        into: &'a str,
    ) -> Self {
        Self {
            session,
            target,
            server,
            into,
            errors: BTreeMap::new(),
            warnings: Vec::new(),
            left_out: Vec::new(),
            notices: Vec::new(),
            truncated: Vec::new(),
            has_extension_schemas: false,
            type_schema: None,
        }
    }

    /// Returns the imported tables together with those that failed and those whose names are too `long`,
    /// which have no columns; and the names of tables that are not selected.
    fn into_schema(self, mut tables: Vec<Table>, long: Vec<String>) -> (RemoteSchema, Vec<String>) {
        let target = self.target;
        diff::mark_truncated(&mut tables, &self.truncated);
        let table_without_columns = |name: String, import_error: Option<String>| Table {
            name,
            import_error,
            ..Table::default()
        };
        let long = long.into_iter();
        tables.extend(long.map(|name| table_without_columns(name, None)));
        let failed = (self.errors.into_iter()).map(|(name, error)| {
            let text = error.to_string() + advice(&error, target);
            table_without_columns(name, Some(text))
        });
        tables.extend(failed);
        diff::normalize(&mut tables, target.wrapper_traits());
        let (selected, others): (Vec<Table>, Vec<Table>) =
            (tables.into_iter()).partition(|table| target.import.selects(&table.name));
        let remote = RemoteSchema {
            tables: selected,
            warnings: self.warnings,
            left_out: self.left_out,
            notices: self.notices,
            ..RemoteSchema::default()
        };
        (remote, others.into_iter().map(|table| table.name).collect())
    }

    /// Imports the tables of a remote schema that `limit` selects. Rolls back to a savepoint on failure.
    pub(super) async fn attempt(
        &mut self,
        schema: &str,
        limit: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<(), ImportError> {
        let (client, notices) = (&self.session.client, &self.session.notices);
        let import = sql::import(schema, self.server, self.into, limit, options);
        loop {
            client.batch_execute("SAVEPOINT spcd_import").await?;
            notices.start();
            let result = client
                .batch_execute(&import)
                .await
                .map_err(ImportError::from);
            let messages = notices.take();
            let Err(failed) = result else {
                client.batch_execute("RELEASE spcd_import").await?;
                self.record_notices(&messages);
                return Ok(());
            };
            let HubError::StatementFailed { code, .. } = &failed.error else {
                return Err(failed);
            };
            client.batch_execute("ROLLBACK TO spcd_import").await?;
            if *code != SqlState::UNDEFINED_OBJECT || self.has_extension_schemas {
                return Err(failed);
            }
            self.has_extension_schemas = true;
            if !add_extension_schemas(self.session, self.type_schema.as_deref()).await? {
                return Err(failed);
            }
        }
    }

    /// Imports these tables of the target's schema.
    pub(super) async fn attempt_tables(
        &mut self,
        names: &[String],
        options: &BTreeMap<String, String>,
    ) -> Result<(), ImportError> {
        let limit = sql::limit_to(names.iter().map(String::as_str));
        self.attempt(&self.target.import.schema, &limit, options)
            .await
    }

    fn record_notices(&mut self, messages: &[DbError]) {
        for notice in messages {
            if *notice.code() == SqlState::NAME_TOO_LONG {
                let names = quoted_names(notice.message()).into_iter();
                self.truncated
                    .extend(names.filter(|name| name.len() > diff::MAX_NAME_BYTES));
                continue;
            }
            let mut names = quoted_names(notice.message());
            if names.is_empty() {
                names = quoted_names(notice.detail().unwrap_or_default());
            }
            let parts = [Some(notice.message()), notice.detail(), notice.hint()];
            let parts: Vec<_> = parts.into_iter().flatten().map(one_line).collect();
            self.notices.push(ImportNotice {
                text: parts.join("; "),
                names,
                is_warning: notice.parsed_severity() == Some(Severity::Warning)
                    // IF NOT EXISTS has skipped the second of two tables with one name.
                    || *notice.code() == SqlState::DUPLICATE_TABLE,
            });
        }
    }

    /// Imports all tables except those that fail. Returns the source's tables, of which none is
    /// imported yet, if they can be listed after the first failure.
    async fn import_all(&mut self) -> Result<Option<RemoteNames>, HubError> {
        loop {
            let limit = match self.errors.is_empty() {
                true => String::new(),
                false => sql::except(self.errors.keys().map(String::as_str)),
            };
            let (schema, options) = (&self.target.import.schema, &self.target.import_options);
            let Err(failed) = self.attempt(schema, &limit, options).await else {
                return Ok(None);
            };
            if let Some(names) = remote_names::list(self, &failed).await? {
                return Ok(Some(names));
            }
            let ImportError { error, table } = failed;
            match table {
                // The table failed again although it is excluded.
                Some(table) if self.errors.contains_key(&table) => return Err(error),
                Some(table) if error.may_concern_one_import() => self.exclude(table, error)?,
                _ => return Err(error),
            }
        }
    }

    /// Imports tables by name, all at once. Splits the list after an error.
    async fn import_listed(&mut self, names: Vec<String>) -> Result<(), HubError> {
        let options = &self.target.import_options;
        let (unescaped, plain): (Vec<_>, Vec<_>) =
            (names.into_iter()).partition(|name| self.has_unescaped_name(name));
        let mut batches: Vec<Vec<String>> = unescaped.into_iter().map(|name| vec![name]).collect();
        batches.push(plain);
        while let Some(mut batch) = batches.pop() {
            if batch.is_empty() {
                continue;
            }
            let Err(ImportError { error, table }) = self.attempt_tables(&batch, options).await
            else {
                continue;
            };
            let at = table.and_then(|table| batch.iter().position(|name| *name == table));
            let is_alone = batch.len() == 1
                && (self.has_unescaped_name(&batch[0]) || is_definition_error(&error));
            match at.or(is_alone.then_some(0)) {
                Some(at) if error.may_concern_one_import() => {
                    let table = batch.swap_remove(at);
                    self.exclude(table, error)?;
                    batches.push(batch);
                }
                None if is_definition_error(&error) && batch.len() > 1 => {
                    batches.push(batch.split_off(batch.len() / 2));
                    batches.push(batch);
                }
                _ => return Err(error),
            }
        }
        Ok(())
    }

    fn exclude(&mut self, table: String, error: HubError) -> Result<(), HubError> {
        if self.errors.len() >= MAX_FAILED_TABLES {
            return Err(error);
        }
        self.errors.insert(table, error);
        Ok(())
    }

    /// Whether the name needs escapes that the wrapper does not write in its statements.
    fn has_unescaped_name(&self, name: &str) -> bool {
        self.target.wrapper == remote_names::MYSQL_WRAPPER && name.contains(['\'', '\\'])
    }

    /// Retries the failed tables without defaults and generated expressions. The source computes them,
    /// and they may need objects that only the source has.
    async fn retry_without_expressions(&mut self) -> Result<(), HubError> {
        let mut options = self.target.import_options.clone();
        if options.contains_key("import_default") {
            options.insert("import_default".into(), "false".into());
        }
        if self.target.wrapper == crate::import::source_catalog::POSTGRES_FDW {
            options.insert("import_generated".into(), "false".into());
        }
        if options == self.target.import_options {
            return Ok(());
        }
        let may_need_expressions = |error: &HubError| {
            let no_such_type = SqlState::UNDEFINED_OBJECT;
            is_definition_error(error)
                && !matches!(error, HubError::StatementFailed { code, .. } if *code == no_such_type)
        };
        let names = self
            .errors
            .iter()
            .filter(|(_, error)| may_need_expressions(error));
        let names: Vec<String> = names.map(|(name, _)| name.clone()).collect();
        for name in names {
            match self.attempt_tables(slice::from_ref(&name), &options).await {
                Ok(()) => {
                    if let Some(error) = self.errors.remove(&name) {
                        self.warnings.push(format!(
                            "table {name:?} is imported without defaults and generated \
                             expressions: {error}"
                        ));
                    }
                }
                Err(failed) => failed.ignore_server_error()?,
            }
        }
        Ok(())
    }

    /// Whether the table has been imported.
    pub(super) async fn has(&self, table: &str) -> Result<bool, HubError> {
        crate::has_relation(&self.session.client, &sql::qualified(self.into, table)).await
    }
}

impl ImportError {
    /// Whether the server reached the creation of a table.
    pub(super) fn is_table_error(&self) -> bool {
        self.table.is_some() && self.error.may_concern_one_import()
    }

    /// Ignores errors of the statement. Returns a cancellation and errors of the session.
    pub(super) fn ignore_server_error(self) -> Result<(), HubError> {
        match self.error {
            HubError::StatementFailed { code, .. } if code != SqlState::QUERY_CANCELED => Ok(()),
            error => Err(error),
        }
    }
}

/// Whether a definition of the source is invalid on the hub: a syntax, name or data error.
fn is_definition_error(error: &HubError) -> bool {
    let HubError::StatementFailed { code, .. } = error else {
        return false;
    };
    error.may_concern_one_import()
        && ["22", "42", "0A"]
            .iter()
            .any(|c| code.code().starts_with(c))
}

/// Adds the schemas of the extensions' types to the search path. Returns `false` if there are none.
/// Only for a retry: other names in a wrapper's statements must resolve to `pg_catalog`.
async fn add_extension_schemas(session: &Session, own: Option<&str>) -> Result<bool, HubError> {
    let schemas = "SELECT DISTINCT n.nspname::text
                   FROM pg_catalog.pg_depend d
                   JOIN pg_catalog.pg_type t ON t.oid = d.objid
                   JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
                   WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.deptype = 'e'
                     AND d.refclassid = 'pg_catalog.pg_extension'::regclass
                     AND n.nspname <> 'pg_catalog' ORDER BY 1";
    let mut path = vec![sql::ident("pg_catalog")];
    path.extend(own.map(sql::ident));
    let without = path.len();
    for row in session.client.query(schemas, &[]).await? {
        path.push(sql::ident(row.try_get(0)?));
    }
    if path.len() == without {
        return Ok(false);
    }
    let set = format!("SET LOCAL search_path = {}", path.join(", "));
    session.client.batch_execute(&set).await?;
    Ok(true)
}

/// Returns the table at which an import failed, from the wrapper's statement or from the error's
/// context, which may be in any language.
fn failed_table(error: &DbError) -> Option<String> {
    if let Some(ErrorPosition::Internal { query, .. }) = error.position() {
        return created_table(query);
    }
    error.where_()?.lines().rev().find_map(quoted_name)
}

/// Returns the table's name in `CREATE FOREIGN TABLE [IF NOT EXISTS] [schema.]name (…`.
fn created_table(statement: &str) -> Option<String> {
    let rest = after_words(statement, &["create", "foreign", "table"])?;
    let rest = after_words(rest, &["if", "not", "exists"]).unwrap_or(rest);
    let (mut name, mut rest) = identifier(rest)?;
    while let Some(more) = rest.trim_start().strip_prefix('.') {
        (name, rest) = identifier(more)?;
    }
    Some(name)
}

/// Returns the rest of a text after these words.
fn after_words<'a>(text: &'a str, words: &[&str]) -> Option<&'a str> {
    let mut rest = text.trim_start();
    for word in words {
        let (start, after) = rest.split_at_checked(word.len())?;
        let is_whole = after.starts_with(|c: char| c.is_whitespace() || c == '"');
        if !start.eq_ignore_ascii_case(word) || !is_whole {
            return None;
        }
        rest = after.trim_start();
    }
    Some(rest)
}

/// Splits the identifier off a text.
fn identifier(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_whitespace() || "(.".contains(c))?;
        return (end > 0).then(|| (text[..end].to_lowercase(), &text[end..]));
    };
    let mut found = String::new();
    loop {
        let end = rest.find('"')?;
        found.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => rest = more,
            None => return Some((found, rest)),
        }
        found.push('"');
    }
}

/// Returns the text between the first and the last quotation mark of a line.
fn quoted_name(line: &str) -> Option<String> {
    let mark = |c: char| "\"«»„“”「」".contains(c);
    let (start, end) = (line.find(mark)?, line.rfind(mark)?);
    let first = line[start..].chars().next()?.len_utf8();
    let inside = line.get(start + first..end)?;
    Some(inside.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{created_table, quoted_name};

    #[test]
    fn the_wrapper_statement_names_the_table() {
        let of = |text: &str| created_table(text).unwrap_or_default();
        assert_eq!(
            of("CREATE FOREIGN TABLE \"a \"\"b\"\" c\" (\n  x int\n)"),
            "a \"b\" c"
        );
        assert_eq!(of("CREATE FOREIGN TABLE \"\"\"\" (x int)"), "\"");
        assert_eq!(of("create foreign table Plain(x int)"), "plain");
        assert_eq!(of("create\n foreign\ttable if not exists t (x int)"), "t");
        assert_eq!(of("CREATE FOREIGN TABLE IF NOT EXISTS\"T\"(x int)"), "T");
        assert_eq!(of("CREATE FOREIGN TABLE if (x int)"), "if");
        assert_eq!(of("CREATE FOREIGN TABLE s.\"t.u\" (x int)"), "t.u");
        assert_eq!(of("SELECT 1"), "");
        assert_eq!(of("CREATE FOREIGN TABLE \"open"), "");
    }

    #[test]
    fn the_table_is_found_in_a_context_of_any_language() {
        let of = |text: &str| quoted_name(text).unwrap_or_default();
        assert_eq!(of("importing foreign table \"a \"b\"\""), "a \"b\"");
        assert_eq!(of("importation de la table distante « t »"), "t");
        assert_eq!(of("importiere Fremdtabelle „t“"), "t");
        assert_eq!(of("nothing"), "");
    }
}
