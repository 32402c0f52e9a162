//! `spcd doctor`: what is missing on this machine and in the database, and what to type.

use std::io::Write;
use std::process::ExitCode;

use tokio_postgres::Client;

use crate::files::{DirState, Files};
use crate::settings::Settings;
use spcd_core::sql;

/// The oldest server version that has everything spcd uses, as `server_version_num`.
const OLDEST: i32 = 140_000;

/// One thing that was looked at.
struct Finding {
    what: String,
    /// What to do about it; `None`: it is well.
    advice: Option<String>,
}

/// Prints one line for each thing that was looked at; 1 if anything is missing.
pub async fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut findings = directories(settings);
    match super::endpoint(settings) {
        Err(error) => findings.push(bad("the database", &format!("{error:#}"))),
        Ok(endpoint) => match endpoint.connect("doctor").await {
            Err(error) => findings.push(bad(
                &endpoint.to_string(),
                &format!("{:#}", anyhow::Error::from(error)),
            )),
            Ok(session) => {
                findings.push(good(format!(
                    "{endpoint}: Postgres {}",
                    session.server_version
                )));
                findings.extend(database(&session.client).await?);
            }
        },
    }
    let mut out = std::io::stdout().lock();
    let mut missing = false;
    for Finding { what, advice } in findings {
        match advice {
            None => writeln!(out, "ok       {what}")?,
            Some(advice) => {
                missing = true;
                writeln!(out, "missing  {what}\n         {advice}")?;
            }
        }
    }
    Ok(if missing {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn good(what: String) -> Finding {
    Finding { what, advice: None }
}

fn bad(what: &str, advice: &str) -> Finding {
    Finding {
        what: what.to_owned(),
        advice: Some(advice.to_owned()),
    }
}

fn directories(settings: &Settings) -> Vec<Finding> {
    let look = Files::new(&settings.config_dirs).look();
    let unreadable = look.sources.iter().filter_map(|source| {
        let error = source.text.as_ref().err()?;
        Some(bad(&source.path, error))
    });
    let dirs = look.dirs.iter().map(|(dir, state)| {
        let shown = format!("config directory {}", dir.display());
        match state {
            DirState::Missing => bad(&shown, &format!("mkdir -p {}", dir.display())),
            DirState::Empty => bad(&shown, "it holds no .spc file yet"),
            DirState::Filled => good(shown),
        }
    });
    dirs.chain(unreadable).collect()
}

/// What the role needs to do the daemon's work, without being a superuser.
async fn database(client: &Client) -> anyhow::Result<Vec<Finding>> {
    const FACTS: &str = "
        SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
               pg_catalog.current_database()::pg_catalog.text,
               pg_catalog.quote_ident(current_user),
               pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
               (SELECT pg_catalog.pg_has_role(nspowner, 'MEMBER') FROM pg_catalog.pg_namespace WHERE nspname = 'spcd'),
               pg_catalog.current_setting('max_locks_per_transaction')::pg_catalog.int4,
               pg_catalog.pg_is_in_recovery(),
               EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'spcd_users')";
    // A wrapper's default privilege belongs to its owner alone.
    const WRAPPERS: &str = "
        SELECT fdwname::pg_catalog.text, pg_catalog.has_foreign_data_wrapper_privilege(oid, 'USAGE')
        FROM pg_catalog.pg_foreign_data_wrapper ORDER BY 1";
    let facts = client.query_one(FACTS, &[]).await?;
    let (version, database, role): (i32, String, String) =
        (facts.get(0), facts.get(1), facts.get(2));
    let database = sql::ident(&database);
    let mut findings = Vec::new();
    if version < OLDEST {
        findings.push(bad(
            "the server's version",
            "spcd needs Postgres 14 or newer",
        ));
    }
    if facts.get(6) {
        findings.push(bad(
            "a server that takes writes",
            "this one is a standby: give the primary's host",
        ));
    }
    findings.push(if facts.get(3) {
        good(format!(
            "role {role} may create schemas and extensions in {database}"
        ))
    } else {
        bad(
            &format!("role {role} may not create schemas"),
            &format!("GRANT CREATE ON DATABASE {database} TO {role};"),
        )
    });
    if facts.get::<_, Option<bool>>(4) == Some(false) {
        let advice = format!("ALTER SCHEMA spcd OWNER TO {role};  -- or connect as its owner");
        findings.push(bad("the schema spcd is somebody else's", &advice));
    }
    for row in client.query(WRAPPERS, &[]).await? {
        let (name, usable): (String, bool) = (row.get(0), row.get(1));
        findings.push(if usable {
            good(format!("wrapper {name}"))
        } else {
            let advice = format!(
                "GRANT USAGE ON FOREIGN DATA WRAPPER {} TO {role};",
                sql::ident(&name)
            );
            bad(
                &format!("role {role} may not use the wrapper {name}"),
                &advice,
            )
        });
    }
    let locks: i32 = facts.get(5);
    findings.push(good(format!(
        "max_locks_per_transaction = {locks}{}",
        if locks < 256 {
            " (enough for some thousand tables; raise it for more)"
        } else {
            ""
        }
    )));
    if !facts.get::<_, bool>(7) {
        findings.push(good("no role spcd_users: only superusers and owners read the schemas (CREATE ROLE spcd_users; opens them to its members)".to_owned()));
    }
    Ok(findings)
}
