//! An import of everything that can be imported. IMPORT FOREIGN SCHEMA is all or nothing: a table
//! of a type that the hub does not know stops it, so it is done again without that one.

mod mysql_types;
mod namesakes;
pub(super) mod remote_names;

use std::collections::BTreeMap;
use std::slice;

use spcd_core::config::{Target, UnknownTypes};
use spcd_core::plan::{Notice, Offer, quoted_names};
use spcd_core::shape::{self, Table};
use spcd_core::sql;
use tokio_postgres::error::{DbError, ErrorPosition, Severity, SqlState};

use super::connect::Session;
use super::{HubError, catalog, one_line, tables};

/// So many tables that cannot be imported are told one by one; beyond that it is the source's
/// fault as a whole.
const MOST_UNFIT: usize = 200;

/// Imports the tables that a target takes (`only` those, if given) into a schema that is there,
/// inside a transaction. Those that cannot be imported are in the answer too, and say why. Beside it:
/// the tables that are not wanted, where they are known.
pub async fn import(
    session: &Session,
    target: &Target,
    server: &str,
    into: &str,
    only: Option<&[String]>,
) -> Result<(Offer, Option<Vec<String>>), HubError> {
    let mut importer = Importer {
        session,
        target,
        server,
        into,
        unfit: BTreeMap::new(),
        warnings: Vec::new(),
        notices: Vec::new(),
        cut: Vec::new(),
        has_type_path: false,
        type_schema: None,
    };
    let client = &session.client;
    // That an identifier is cut off is a notice.
    client
        .batch_execute("SET LOCAL client_min_messages = notice")
        .await?;
    let is_mysql = target.wrapper == remote_names::MYSQL;
    if is_mysql {
        mysql_types::before(&mut importer).await?;
    }
    let mut names = only.map(<[String]>::to_vec);
    if names.is_none() {
        names = importer.all().await?;
    }
    let are_all_there = names.is_none();
    // Cut off, such a name would mean another table or none; that it is too long is told below.
    let (long, names): (Vec<_>, Vec<_>) =
        (names.unwrap_or_default().into_iter()).partition(|name| name.len() > shape::LONGEST_NAME);
    importer.listed(names).await?;
    namesakes::try_alone(&mut importer).await?;
    importer.without_expressions().await?;
    // Types are compared as they are written under this path.
    client
        .batch_execute(
            "SET LOCAL search_path = pg_catalog; SET LOCAL client_min_messages = warning",
        )
        .await?;
    let mut tables = tables::of_schema(client, into, target.traits()).await?;
    if is_mysql {
        mysql_types::correct(&mut importer, &mut tables).await?;
    }
    shape::mark_truncated(&mut tables, &importer.cut);
    let bare = |name: String, unfit: Option<String>| Table {
        name,
        unfit,
        ..Table::default()
    };
    tables.extend(long.into_iter().map(|name| bare(name, None)));
    let unfit = importer.unfit.into_iter();
    let why = |why: &HubError| why.to_string() + way_out(why, target);
    tables.extend(unfit.map(|(name, error)| bare(name, Some(why(&error)))));
    shape::normalize(&mut tables, target.traits());
    let mut offer = Offer {
        tables,
        warnings: importer.warnings,
        notices: importer.notices,
    };
    let mut others = Vec::new();
    offer.tables.retain(|table| {
        let is_wanted = target.import.takes(&table.name);
        if !is_wanted {
            others.push(table.name.clone());
        }
        is_wanted
    });
    Ok((offer, are_all_there.then_some(others)))
}

/// What to do about a table that cannot be imported.
fn way_out(error: &HubError, target: &Target) -> &'static str {
    match error {
        HubError::Refused { code, .. }
            if *code == SqlState::UNDEFINED_OBJECT
                && catalog::is_read(target)
                && target.import.unknown_types != Some(UnknownTypes::Text) =>
        {
            " (create the type in this database, or read it as text: write \
             `unknown_types = \"text\"` in the block `import`)"
        }
        HubError::Refused { code, .. } if *code == SqlState::UNDEFINED_OBJECT => {
            " (create the type in this database)"
        }
        _ => "",
    }
}

/// An import under way.
pub(super) struct Importer<'a> {
    pub(super) session: &'a Session,
    pub(super) target: &'a Target,
    pub(super) server: &'a str,
    pub(super) into: &'a str,
    /// The tables that cannot be imported, and why.
    pub(super) unfit: BTreeMap<String, HubError>,
    pub(super) warnings: Vec<String>,
    notices: Vec<Notice>,
    /// The identifiers that the server cut off, in full.
    cut: Vec<String>,
    has_type_path: bool,
    /// A schema of types that the wrapper names and Postgres does not have.
    type_schema: Option<String>,
}

/// Why an import failed, and at which table.
pub(super) struct Failed {
    pub(super) error: HubError,
    table: Option<String>,
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Self {
        Self {
            table: error.as_db_error().and_then(culprit),
            error: error.into(),
        }
    }
}

impl From<HubError> for Failed {
    fn from(error: HubError) -> Self {
        Self { error, table: None }
    }
}

impl Importer<'_> {
    /// Imports what `limit` says of a remote schema; nothing of it stays if it fails.
    pub(super) async fn attempt(
        &mut self,
        schema: &str,
        limit: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<(), Failed> {
        let (client, notices) = (&self.session.client, &self.session.notices);
        let import = sql::import(schema, self.server, self.into, limit, options);
        loop {
            client.batch_execute("SAVEPOINT spcd_import").await?;
            notices.start();
            let result = client.batch_execute(&import).await.map_err(Failed::from);
            let said = notices.take();
            let Err(failed) = result else {
                client.batch_execute("RELEASE spcd_import").await?;
                self.hear(&said);
                return Ok(());
            };
            let HubError::Refused { code, .. } = &failed.error else {
                return Err(failed);
            };
            client.batch_execute("ROLLBACK TO spcd_import").await?;
            if *code != SqlState::UNDEFINED_OBJECT || self.has_type_path {
                return Err(failed);
            }
            self.has_type_path = true;
            if !open_type_path(self.session, self.type_schema.as_deref()).await? {
                return Err(failed);
            }
        }
    }

    /// [`Self::attempt`] for some tables of the target's schema, as the target says.
    pub(super) async fn attempt_tables(
        &mut self,
        names: &[String],
        options: &BTreeMap<String, String>,
    ) -> Result<(), Failed> {
        let limit = sql::limit_to(names.iter().map(String::as_str));
        self.attempt(&self.target.import.schema, &limit, options)
            .await
    }

    fn hear(&mut self, said: &[DbError]) {
        for notice in said {
            if *notice.code() == SqlState::NAME_TOO_LONG {
                let names = quoted_names(notice.message()).into_iter();
                self.cut
                    .extend(names.filter(|name| name.len() > shape::LONGEST_NAME));
                continue;
            }
            let mut names = quoted_names(notice.message());
            if names.is_empty() {
                names = quoted_names(notice.detail().unwrap_or_default());
            }
            let parts = [Some(notice.message()), notice.detail(), notice.hint()];
            let parts: Vec<_> = parts.into_iter().flatten().map(one_line).collect();
            self.notices.push(Notice {
                text: parts.join("; "),
                names,
                is_warning: notice.parsed_severity() == Some(Severity::Warning)
                    // Of two tables of one name, IF NOT EXISTS skips the second.
                    || *notice.code() == SqlState::DUPLICATE_TABLE,
            });
        }
    }

    /// Imports everything but what fails. Where the source can say which tables there are, it is
    /// asked at the first failure, and those are left to import.
    async fn all(&mut self) -> Result<Option<Vec<String>>, HubError> {
        loop {
            let limit = match self.unfit.is_empty() {
                true => String::new(),
                false => sql::except(self.unfit.keys().map(String::as_str)),
            };
            let (schema, options) = (&self.target.import.schema, &self.target.import_options);
            let Err(failed) = self.attempt(schema, &limit, options).await else {
                return Ok(None);
            };
            if let Some(names) = remote_names::of(self, &failed).await? {
                return Ok(Some(names));
            }
            let Failed { error, table } = failed;
            match table {
                // Named again: leaving it out does not help.
                Some(table) if self.unfit.contains_key(&table) => return Err(error),
                Some(table) if error.is_of_an_imported_table() => self.leave_out(table, error)?,
                _ => return Err(error),
            }
        }
    }

    /// Imports tables by name: all at once, and fewer where that fails.
    async fn listed(&mut self, names: Vec<String>) -> Result<(), HubError> {
        let options = &self.target.import_options;
        let (odd, plain): (Vec<_>, Vec<_>) =
            (names.into_iter()).partition(|name| self.is_odd(name));
        let mut batches: Vec<Vec<String>> = odd.into_iter().map(|name| vec![name]).collect();
        batches.push(plain);
        while let Some(mut batch) = batches.pop() {
            if batch.is_empty() {
                continue;
            }
            let Err(Failed { error, table }) = self.attempt_tables(&batch, options).await else {
                continue;
            };
            let at = table.and_then(|table| batch.iter().position(|name| *name == table));
            let is_alone =
                batch.len() == 1 && (self.is_odd(&batch[0]) || is_of_a_definition(&error));
            match at.or(is_alone.then_some(0)) {
                Some(at) if error.is_of_an_imported_table() => {
                    let table = batch.swap_remove(at);
                    self.leave_out(table, error)?;
                    batches.push(batch);
                }
                None if is_of_a_definition(&error) && batch.len() > 1 => {
                    batches.push(batch.split_off(batch.len() / 2));
                    batches.push(batch);
                }
                _ => return Err(error),
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, table: String, error: HubError) -> Result<(), HubError> {
        if self.unfit.len() >= MOST_UNFIT {
            return Err(error);
        }
        self.unfit.insert(table, error);
        Ok(())
    }

    /// Whether the wrapper does not escape a name in its own statements.
    fn is_odd(&self, name: &str) -> bool {
        self.target.wrapper == remote_names::MYSQL && name.contains(['\'', '\\'])
    }

    /// Imports the tables that failed once more without defaults and generated expressions, which
    /// the source computes, and which may need what only the source has.
    async fn without_expressions(&mut self) -> Result<(), HubError> {
        let mut options = self.target.import_options.clone();
        if options.contains_key("import_default") {
            options.insert("import_default".into(), "false".into());
        }
        if self.target.wrapper == super::catalog::WRAPPER {
            options.insert("import_generated".into(), "false".into());
        }
        if options == self.target.import_options {
            return Ok(());
        }
        let may_be = |error: &HubError| {
            let no_such_type = SqlState::UNDEFINED_OBJECT;
            is_of_a_definition(error)
                && !matches!(error, HubError::Refused { code, .. } if *code == no_such_type)
        };
        let names = self.unfit.iter().filter(|(_, error)| may_be(error));
        let names: Vec<String> = names.map(|(name, _)| name.clone()).collect();
        for name in names {
            match self.attempt_tables(slice::from_ref(&name), &options).await {
                Ok(()) => {
                    if let Some(error) = self.unfit.remove(&name) {
                        self.warnings.push(format!(
                            "table {name:?} is imported without defaults and generated \
                             expressions: {error}"
                        ));
                    }
                }
                Err(failed) => failed.ignore_refusal()?,
            }
        }
        Ok(())
    }

    /// Whether a table is there now.
    pub(super) async fn has(&self, table: &str) -> Result<bool, HubError> {
        let sql = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
        let name = sql::qualified(self.into, table);
        let row = self.session.client.query_one(sql, &[&name]).await?;
        Ok(row.try_get(0)?)
    }
}

impl Failed {
    /// Whether the server got as far as making a table.
    pub(super) fn is_of_a_table(&self) -> bool {
        self.table.is_some() && self.error.is_of_an_imported_table()
    }

    /// Drops what the source or the server refused; all else stays an error.
    pub(super) fn ignore_refusal(self) -> Result<(), HubError> {
        match self.error {
            HubError::Refused { code, .. } if code != SqlState::QUERY_CANCELED => Ok(()),
            error => Err(error),
        }
    }
}

/// Whether a definition of the source means nothing here: a syntax, name or data error.
fn is_of_a_definition(error: &HubError) -> bool {
    let HubError::Refused { code, .. } = error else {
        return false;
    };
    error.is_of_an_imported_table()
        && ["22", "42", "0A"]
            .iter()
            .any(|c| code.code().starts_with(c))
}

/// Lets unqualified types of extensions be found, wherever those are installed; `false`: there are
/// none. Only after an import failed: what a wrapper's statements name otherwise is in `pg_catalog`.
async fn open_type_path(session: &Session, own: Option<&str>) -> Result<bool, HubError> {
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

/// The table at which an import stopped: from the statement that the wrapper wrote, or from where
/// the server says it happened, whatever language it says it in.
fn culprit(error: &DbError) -> Option<String> {
    if let Some(ErrorPosition::Internal { query, .. }) = error.position() {
        return created(query);
    }
    error.where_()?.lines().rev().find_map(quoted)
}

/// The table's name in `CREATE FOREIGN TABLE [IF NOT EXISTS] [schema.]name (…`.
fn created(statement: &str) -> Option<String> {
    let rest = after_words(statement, &["create", "foreign", "table"])?;
    let rest = after_words(rest, &["if", "not", "exists"]).unwrap_or(rest);
    let (mut name, mut rest) = identifier(rest)?;
    while let Some(more) = rest.trim_start().strip_prefix('.') {
        (name, rest) = identifier(more)?;
    }
    Some(name)
}

/// What follows these words.
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

/// The identifier with which a text begins, and what follows it.
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

/// What stands between the first and the last quotation mark of a line.
fn quoted(line: &str) -> Option<String> {
    let mark = |c: char| "\"«»„“”「」".contains(c);
    let (start, end) = (line.find(mark)?, line.rfind(mark)?);
    let first = line[start..].chars().next()?.len_utf8();
    let inside = line.get(start + first..end)?;
    Some(inside.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{created, quoted};

    #[test]
    fn the_table_is_found_in_what_the_wrapper_wrote() {
        let of = |text: &str| created(text).unwrap_or_default();
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
    fn the_table_is_found_in_the_context_whatever_the_language() {
        let of = |text: &str| quoted(text).unwrap_or_default();
        assert_eq!(of("importing foreign table \"a \"b\"\""), "a \"b\"");
        assert_eq!(of("importation de la table distante « t »"), "t");
        assert_eq!(of("importiere Fremdtabelle „t“"), "t");
        assert_eq!(of("nothing"), "");
    }
}
