//! Checks what the daemon's role needs in the database if it is not a superuser.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::config::{DesiredState, ForeignSource};
use spcd_core::sql;
use tokio_postgres::Client;

use super::{CheckResult, bad, good};
use spcd_postgres::{Limits, has_relation, mirror};

/// Oldest supported server version, as `server_version_num`.
const MIN_VERSION: i32 = 140_000;

/// First version in which the right to alter roles is granted for each role.
const ADMIN_OPTION: i32 = 160_000;

/// Part of the lock table above which a single transaction endangers others.
const SAFE_LOCK_DIVISOR: i64 = 2;

/// The session and its role.
struct SessionFacts {
    version: i32,
    database: String,
    role: String,
    superuser: bool,
}

/// Checks everything that the connections need.
pub async fn check(client: &Client, desired: &DesiredState) -> anyhow::Result<Vec<CheckResult>> {
    let row = client
        .query_one(
            "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
                    pg_catalog.current_database()::pg_catalog.text,
                    current_user::pg_catalog.text, r.rolsuper, pg_catalog.pg_is_in_recovery()
             FROM pg_catalog.pg_roles r WHERE r.rolname = current_user",
            &[],
        )
        .await?;
    let facts = SessionFacts {
        version: row.try_get(0)?,
        database: sql::ident(row.try_get(1)?),
        role: sql::ident(row.try_get(2)?),
        superuser: row.try_get(3)?,
    };
    let mut findings = Vec::new();
    if facts.version < MIN_VERSION {
        findings.push(bad(
            "the server's version",
            "spcd needs Postgres 14 or newer",
        ));
    }
    if row.try_get(4)? {
        findings.push(bad(
            "a server that takes writes",
            "this one is a standby: give the primary's host",
        ));
    }
    findings.extend(privileges(client, &facts).await?);
    findings.extend(ownership(client, &facts).await?);
    findings.extend(wrappers(client, &facts, desired).await?);
    findings.extend(readers(client, &facts, desired).await?);
    findings.push(sessions(client, &facts).await?);
    findings.extend(locks(client, desired).await?);
    findings.extend(statistics(client, &facts).await?);
    findings.extend(mirrors(client).await?);
    Ok(findings)
}

/// Shows how the daemon follows the sources of mirrors.
async fn mirrors(client: &Client) -> anyhow::Result<Vec<CheckResult>> {
    let followed = mirror::following(client).await?;
    let finding = |one: mirror::Following| {
        let shown = format!("the mirror {:?}", one.name);
        match (one.error, one.kind) {
            (Some(error), _) => bad(format!("{shown} does not follow its source"), error),
            (None, None) => bad(
                format!("{shown} has not heard of its source"),
                "spcd run  # the daemon follows it",
            ),
            (None, Some(kind)) => good(format!(
                "{shown} follows {}; connections there: {}",
                kind.title(),
                one.connections
            )),
        }
    };
    Ok(followed.into_iter().map(finding).collect())
}

/// Checks the privileges to create objects.
async fn privileges(client: &Client, facts: &SessionFacts) -> anyhow::Result<Vec<CheckResult>> {
    let SessionFacts { database, role, .. } = facts;
    let row = client
        .query_one(
            "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
                    pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')",
            &[],
        )
        .await?;
    let one = |has: bool, privilege: &str, what: &str| match has {
        true => good(format!("role {role} may create {what} in {database}")),
        false => bad(
            format!("role {role} may not create {what} in {database}"),
            format!("GRANT {privilege} ON DATABASE {database} TO {role};"),
        ),
    };
    Ok(vec![
        one(row.try_get(0)?, "CREATE", "schemas"),
        one(row.try_get(1)?, "TEMPORARY", "temporary tables"),
    ])
}

/// Checks that the role owns what spcd created: only an owner can alter objects.
async fn ownership(client: &Client, facts: &SessionFacts) -> anyhow::Result<Vec<CheckResult>> {
    let role = &facts.role;
    let sql = "SELECT pg_catalog.pg_has_role(n.nspowner, 'USAGE'),
                      pg_catalog.to_regclass('spcd.applied') IS NOT NULL
               FROM pg_catalog.pg_namespace n WHERE n.nspname = 'spcd'";
    let Some(row) = client.query_opt(sql, &[]).await? else {
        return Ok(vec![good("the schema spcd: the first start creates it")]);
    };
    if !row.try_get::<_, bool>(0)? {
        let advice = format!("ALTER SCHEMA spcd OWNER TO {role};  -- or connect as its owner");
        return Ok(vec![bad("the schema spcd belongs to another role", advice)]);
    }
    if !row.try_get::<_, bool>(1)? {
        return Ok(vec![bad(
            "a schema named spcd that spcd did not create",
            "rename or drop it",
        )]);
    }
    let sql = "SELECT 'SCHEMA', n.nspname::text, NULL
               FROM spcd.applied a JOIN pg_catalog.pg_namespace n ON n.oid = a.schema_oid
               WHERE NOT pg_catalog.pg_has_role(n.nspowner, 'USAGE')
               UNION ALL
               SELECT 'SERVER', s.srvname::text, NULL
               FROM spcd.applied a JOIN pg_catalog.pg_foreign_server s ON s.oid = a.server_oid
               WHERE NOT pg_catalog.pg_has_role(s.srvowner, 'USAGE')
               UNION ALL
               SELECT 'FOREIGN TABLE', n.nspname::text, c.relname::text
               FROM spcd.applied a
               JOIN pg_catalog.pg_namespace n ON n.oid = a.schema_oid
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = ANY (a.tables)
               WHERE c.relkind = 'f' AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')
               UNION ALL
               SELECT 'VIEW', n.nspname::text, c.relname::text
               FROM spcd.aggregator_view v
               JOIN spcd.applied a USING (connection_name)
               JOIN pg_catalog.pg_namespace n ON n.oid = a.schema_oid
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = v.name
               WHERE NOT v.hidden AND c.relkind = 'v'
                 AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')
               ORDER BY 2, 3 NULLS FIRST LIMIT 20";
    let mut fixes = Vec::new();
    for row in client.query(sql, &[]).await? {
        let (kind, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let name = match row.try_get::<_, Option<String>>(2)? {
            Some(table) => sql::qualified(&name, &table),
            None => sql::ident(&name),
        };
        fixes.push(format!("ALTER {kind} {name} OWNER TO {role};"));
    }
    Ok(vec![match fixes.is_empty() {
        true => good(format!("role {role} owns what spcd created")),
        false => bad(
            "another role owns some of what spcd created",
            fixes.join("\n"),
        ),
    }])
}

/// Checks the extensions and wrappers of the connections.
async fn wrappers(
    client: &Client,
    facts: &SessionFacts,
    desired: &DesiredState,
) -> anyhow::Result<Vec<CheckResult>> {
    let role = &facts.role;
    let targets = desired.connections.values();
    let targets: Vec<&ForeignSource> = targets.filter_map(|c| c.target.as_ref().ok()).collect();
    let origins: BTreeMap<&str, &str> = targets
        .iter()
        .filter(|target| !target.extension.is_empty())
        .map(|target| (target.extension.as_str(), target.extension_origin()))
        .collect();
    let names: Vec<&str> = origins.keys().copied().collect();
    // A role with CREATE on the database may create trusted ones.
    let sql = "SELECT w.name, e.oid IS NOT NULL, v.name IS NOT NULL, coalesce(v.trusted OR NOT v.superuser, false)
               FROM pg_catalog.unnest($1::text[]) AS w (name)
               LEFT JOIN pg_catalog.pg_extension e ON e.extname = w.name
               LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = w.name
               LEFT JOIN pg_catalog.pg_available_extension_versions v
                    ON v.name = a.name AND v.version = a.default_version
               ORDER BY 1";
    let mut findings = Vec::new();
    for row in client.query(sql, &[&names]).await? {
        let name: String = row.try_get(0)?;
        let (installed, available, trusted) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        findings.push(match (installed, available) {
            (true, _) => good(format!("extension {name}")),
            (false, true) if facts.superuser || trusted => {
                good(format!("extension {name}: it will be created"))
            }
            (false, true) => bad(
                format!(
                    "extension {name} is not in {}, and only a superuser may create it",
                    facts.database
                ),
                format!("CREATE EXTENSION {};", sql::ident(&name)),
            ),
            (false, false) => bad(
                format!("extension {name} is not installed on the database's host"),
                format!("get it from {}", origins[name.as_str()]),
            ),
        });
    }
    // By default only its owner may use a wrapper.
    let sql = "SELECT fdwname::pg_catalog.text, pg_catalog.has_foreign_data_wrapper_privilege(oid, 'USAGE')
               FROM pg_catalog.pg_foreign_data_wrapper ORDER BY 1";
    for row in client.query(sql, &[]).await? {
        let (name, usable): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
        findings.push(match usable {
            true => good(format!("wrapper {name}")),
            false => bad(
                format!("role {role} may not use the wrapper {name}"),
                format!(
                    "GRANT USAGE ON FOREIGN DATA WRAPPER {} TO {role};",
                    sql::ident(&name)
                ),
            ),
        });
    }
    if targets.iter().any(|target| target.wrapper == "file_fdw") {
        let sql = "SELECT pg_catalog.pg_has_role('pg_read_server_files', 'USAGE')";
        findings.push(match client.query_one(sql, &[]).await?.try_get(0)? {
            true => good(format!("role {role} may read the server's files")),
            false => bad(
                format!("role {role} may not read files of the server, which file_fdw requires"),
                format!("GRANT pg_read_server_files TO {role};"),
            ),
        });
    }
    Ok(findings)
}

/// Checks the role `spcd_users`, and the right to set its members' search paths.
async fn readers(
    client: &Client,
    facts: &SessionFacts,
    desired: &DesiredState,
) -> anyhow::Result<Vec<CheckResult>> {
    let sql = "SELECT m.rolname::text, me.rolcreaterole, EXISTS (
                   SELECT FROM pg_catalog.pg_auth_members x
                   WHERE x.roleid = m.oid AND x.member = me.oid AND x.admin_option)
               FROM pg_catalog.pg_roles r
               JOIN pg_catalog.pg_roles me ON me.rolname = current_user
               LEFT JOIN pg_catalog.pg_auth_members a ON a.roleid = r.oid
               LEFT JOIN pg_catalog.pg_roles m ON m.oid = a.member AND m.rolcanlogin AND NOT m.rolsuper
                    AND m.oid <> me.oid
               WHERE r.rolname = 'spcd_users' ORDER BY 1";
    let rows = client.query(sql, &[]).await?;
    if rows.is_empty() {
        return Ok(vec![good(
            "no role spcd_users: only superusers and owners read the schemas (CREATE ROLE spcd_users; opens them to its members)",
        )]);
    }
    if facts.superuser || desired.database.manage_search_path == Some(false) {
        return Ok(vec![good("role spcd_users")]);
    }
    let role = &facts.role;
    let mut fixes = BTreeSet::new();
    for row in &rows {
        let Some(member) = row.try_get::<_, Option<String>>(0)? else {
            continue;
        };
        let (creates, admin): (bool, bool) = (row.try_get(1)?, row.try_get(2)?);
        if !creates {
            fixes.insert(format!("ALTER ROLE {role} CREATEROLE;"));
        }
        if facts.version >= ADMIN_OPTION && !admin {
            fixes.insert(format!(
                "GRANT {} TO {role} WITH ADMIN OPTION;",
                sql::ident(&member)
            ));
        }
    }
    Ok(vec![match fixes.is_empty() {
        true => good("role spcd_users, and the search paths of its members"),
        false => {
            let mut lines: Vec<String> = fixes.into_iter().collect();
            lines.push(
                "-- or in a .spc file: options \"database\" { manage_search_path = false }".into(),
            );
            bad(
                format!("role {role} may not set the search path of members of spcd_users"),
                lines.join("\n"),
            )
        }
    }])
}

/// Checks the number of sessions that the role may open.
async fn sessions(client: &Client, facts: &SessionFacts) -> anyhow::Result<CheckResult> {
    let SessionFacts { database, role, .. } = facts;
    let (has, enough) = (
        Limits::read(client).await?.sessions,
        Limits::RECOMMENDED_SESSIONS,
    );
    if has >= enough {
        return Ok(good(format!("role {role} may have {has} sessions")));
    }
    let sql = "SELECT r.rolconnlimit, d.datconnlimit
               FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
               WHERE r.rolname = session_user AND d.datname = pg_catalog.current_database()";
    let row = client.query_one(sql, &[]).await?;
    let is_few =
        |limit: i32| !facts.superuser && usize::try_from(limit).is_ok_and(|limit| limit < enough);
    let mut fixes = Vec::new();
    if is_few(row.try_get(0)?) {
        fixes.push(format!("ALTER ROLE {role} CONNECTION LIMIT {enough};"));
    }
    if is_few(row.try_get(1)?) {
        fixes.push(format!(
            "ALTER DATABASE {database} CONNECTION LIMIT {enough};"
        ));
    }
    if fixes.is_empty() {
        let fix = "ALTER SYSTEM SET max_connections = 100;  -- then restart the server";
        fixes.push(fix.to_owned());
    }
    Ok(bad(
        format!("role {role} may have {has} sessions only, and the daemon needs {enough}"),
        fixes.join("\n"),
    ))
}

/// Checks that the lock table has room for the largest statement.
async fn locks(client: &Client, desired: &DesiredState) -> anyhow::Result<Vec<CheckResult>> {
    let sql = "SELECT pg_catalog.current_setting('max_locks_per_transaction')::pg_catalog.int8,
                      pg_catalog.current_setting('max_connections')::pg_catalog.int8
                      + pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int8";
    let row = client.query_one(sql, &[]).await?;
    let (setting, slots): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let mut largest: i64 = 0;
    if has_relation(client, "spcd.applied").await? {
        // Dropping a table takes three locks; a query over an aggregator takes one for each member.
        let sql = "SELECT coalesce(max(pg_catalog.cardinality(tables)) * 3, 0)::pg_catalog.int8 FROM spcd.applied";
        largest = client.query_one(sql, &[]).await?.try_get(0)?;
    }
    for connection in desired.connections.values() {
        if let spcd_core::config::ConnectionKind::Aggregator { members, .. } = &connection.kind {
            largest = largest.max(i64::try_from(members.len()).unwrap_or(i64::MAX));
        }
    }
    let what = format!(
        "max_locks_per_transaction = {setting}: {} locks in all",
        setting * slots
    );
    if largest <= setting * slots / SAFE_LOCK_DIVISOR {
        return Ok(vec![good(what)]);
    }
    let enough = (largest * SAFE_LOCK_DIVISOR / slots.max(1) + 1).max(64);
    let enough = u64::try_from(enough).unwrap_or(64).next_power_of_two();
    Ok(vec![bad(
        format!("{what}, and one statement may take {largest}"),
        format!(
            "ALTER SYSTEM SET max_locks_per_transaction = {enough};  -- then restart the server"
        ),
    )])
}

/// Checks that pg_stat_statements does not record the passwords in statements of functions.
async fn statistics(client: &Client, facts: &SessionFacts) -> anyhow::Result<Option<CheckResult>> {
    let sql = "SELECT pg_catalog.current_setting('pg_stat_statements.track', true) = 'all'
                  AND pg_catalog.current_setting('pg_stat_statements.track_utility', true) = 'on'";
    let is_recorded: Option<bool> = client.query_one(sql, &[]).await?.try_get(0)?;
    if facts.superuser || is_recorded != Some(true) {
        return Ok(None);
    }
    Ok(Some(bad(
        "pg_stat_statements.track = all shows the passwords of user mappings to superusers",
        format!(
            "ALTER ROLE {} SET pg_stat_statements.track_utility = off;",
            facts.role
        ),
    )))
}
