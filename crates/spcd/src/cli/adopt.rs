//! `spcd adopt`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use spcd_core::config::{Connection, DesiredState, Loaded};
use spcd_core::diff::{self, Blockers};
use spcd_core::naming;
use spcd_core::observed::Observed;
use spcd_core::planner::{self, Import, Plan, Running, Task};
use spcd_core::plugin::connection_block;

use super::AdoptArgs;
use super::follow::{self, WaitOutcome};
use crate::config::Config;
use crate::gateway;
use crate::settings::Settings;
use spcd_postgres as hub;
use spcd_postgres::adopt::{self, AdoptableObjects};
use spcd_postgres::catalog::dependents;
use spcd_postgres::catalog::observe;
use spcd_postgres::connection::{Endpoint, Session};
use spcd_postgres::import;
use spcd_postgres::migrations::migrate;
use spcd_postgres::secrets;

/// Time limit for the daemon to apply the files to the adopted objects.
const APPLY_TIMEOUT: Duration = Duration::from_secs(300);

/// Adopts the existing schema and server of a connection's name, after showing the consequences and
/// asking. Without a block, prints one that describes the server.
pub async fn run(settings: &Settings, args: AdoptArgs) -> anyhow::Result<ExitCode> {
    let name = &args.name;
    let Loaded { mut desired, .. } = Config::new(&settings.config_dirs, settings.extensions, false)
        .with_gateway(gateway::is_on(settings))
        .with_state(&settings.state_dir)
        .load();
    let missing = || {
        format!(
            "no connection is named {name:?} in the files: write its block first, \
             with what its schema and server are to be"
        )
    };
    if let Some(connection) = desired.connections.get(name) {
        check_block(connection)?;
    }
    let endpoint = super::endpoint(settings)?;
    let mut session = endpoint.connect("adopt").await?;
    if !desired.connections.contains_key(name)
        && let Some(block) = suggested_block(&session, name).await?
    {
        print!("{block}");
        bail!(
            "{}; the block above describes the server as it is",
            missing()
        );
    }
    if !hub::is_utf8(&session.client).await? {
        desired.adapt_to_other_encoding();
    }
    let connection = desired.connections.get(name).with_context(missing)?;
    migrate(&session.client).await?;
    let Some(found) = adopt::find_adoptable(&session.client, connection).await? else {
        println!(
            "nothing to adopt: there is no schema or server named {name:?} that spcd did not create"
        );
        return Ok(ExitCode::SUCCESS);
    };
    if !found.ownership.is_empty() {
        bail!(
            "spcd's role must own the objects; run first, as a superuser:\n  {}",
            found.ownership.join("\n  ")
        );
    }
    print!(
        "{}",
        preview(&endpoint, &session, &desired, connection, &found).await?
    );
    if !args.yes && !super::confirm(&format!("Take over {name:?}?"))? {
        println!("nothing was changed");
        return Ok(ExitCode::FAILURE);
    }
    session.client.batch_execute("BEGIN").await?;
    // Re-check: another session may have changed the objects.
    let now = adopt::find_adoptable(&session.client, connection).await?;
    anyhow::ensure!(
        now.as_ref() == Some(&found),
        "the objects have changed in the meantime; run the command again"
    );
    adopt::record(&session.client, connection, &found).await?;
    session.client.batch_execute("COMMIT").await?;
    if !follow::is_led(&session.client).await? {
        println!("adopted; `spcd run` or `spcd apply` applies the files to it");
        return Ok(ExitCode::SUCCESS);
    }
    let names = [name.clone()];
    let id = follow::request(&session, Some(&names)).await?;
    match follow::follow(&mut session, id, Some(&names), APPLY_TIMEOUT, |_| ()).await? {
        WaitOutcome::Settled(rows, _) => {
            let wrong = follow::report(&names, &rows);
            if !wrong {
                println!("adopted; {name:?} is ready");
            }
            Ok(ExitCode::from(u8::from(wrong)))
        }
        WaitOutcome::TimedOut(_) => {
            bail!("adopted, but the daemon is not done with it yet: see `spcd status {name}`")
        }
    }
}

/// Rejects a block that no server in the hub can satisfy.
fn check_block(connection: &Connection) -> anyhow::Result<()> {
    let name = &connection.name;
    if let Err(error) = &connection.target {
        bail!("fix the block of {name:?} first: {error}");
    }
    if spcd_core::gateway::is_in_gateway(connection) {
        bail!(
            "the wrapper of {name:?} runs in the gateway, so that nothing in the hub can become its \
             server: rename the schema, or write `gateway = false` in the block"
        );
    }
    Ok(())
}

/// Returns a block that describes the server of that name, without secrets; `None` if there is none.
async fn suggested_block(session: &Session, name: &str) -> anyhow::Result<Option<String>> {
    let names = [name.to_owned()];
    let found = observe::servers(&session.client, &names).await?;
    let Some(detail) = found.into_values().next() else {
        return Ok(None);
    };
    let (wrapper, options) = detail.server.unwrap_or_default();
    let mapping = detail.mapping.unwrap_or_default();
    let block = connection_block(name, &wrapper, &options, &mapping)?;
    Ok(Some(block))
}

/// Returns what would be adopted, and what the next pass would do to it. Rolls everything back.
async fn preview(
    endpoint: &Endpoint,
    session: &Session,
    desired: &DesiredState,
    connection: &Connection,
    found: &AdoptableObjects,
) -> anyhow::Result<String> {
    let name = &connection.name;
    let mut out = String::new();
    if found.schema {
        let _ = writeln!(out, "= schema {name:?}");
    }
    if found.server {
        let _ = writeln!(out, "= server {name:?}");
    }
    for table in &found.tables {
        let _ = writeln!(out, "    = table {table}");
    }
    for other in &found.others {
        let _ = writeln!(out, "      {other} stays its owner's");
    }
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    let planned = async {
        adopt::record(client, connection, found).await?;
        observe::observe(client, desired).await
    };
    let planned = planned.await;
    client.batch_execute("ROLLBACK").await?;
    let observed = planned?;
    let mut plan = planner::plan(desired, &observed, &Running::default());
    plan.work.retain(|work| work.name == *name);
    let import = plan.work.iter().find_map(|work| match &work.task {
        Task::Import(import) => Some((**import).clone()),
        _ => None,
    });
    let plan = Plan {
        work: plan.work,
        ..Plan::default()
    };
    let _ = writeln!(out, "then, to apply the files:");
    out.push_str(&planner::show(&plan, &observed));
    if let Some(import) = import {
        match tables(endpoint, session, &observed, name, &import).await {
            Ok(changes) => out.push_str(&changes),
            // It can be adopted nevertheless. The connection's state will show the error.
            Err(error) => {
                let _ = writeln!(out, "    ! the source cannot be asked now: {error:#}");
            }
        }
    }
    Ok(out)
}

/// Asks the source, and returns the changes of the tables.
async fn tables(
    endpoint: &Endpoint,
    session: &Session,
    observed: &Observed,
    name: &str,
    import: &Import,
) -> anyhow::Result<String> {
    let asking = endpoint.connect("asking").await?;
    secrets::prepare(&asking.client).await?;
    let remote = import::fetch_remote_schema(&asking, &import.target).await;
    let remote = remote.context("its tables stay as they are until it answers")?;
    let remote = naming::apply(&remote, &import.target);
    let detail = observed.details.get(name).cloned().unwrap_or_default();
    let aligned = import.align(&detail, &remote, &BTreeMap::new());
    let renames = &aligned.renames;
    let changes = import.changes(&aligned.detail, &aligned.remote);
    let risky = changes
        .iter()
        .filter(|change| change.may_break_dependents());
    let risky: Vec<&str> = risky
        .map(|change| renames.present_table(change.table()))
        .collect();
    let found = dependents::of_tables(&session.client, name, &risky).await?;
    let blockers = Blockers {
        dependents: renames.rename_dependents(found),
        ..Blockers::default()
    };
    let (changes, refused) = diff::separate_blocked(changes, &blockers);
    let mut out = String::new();
    for rename in renames.tables() {
        let _ = writeln!(out, "    {}", rename.to_string().replace('\n', "\n    "));
    }
    for change in changes {
        let _ = writeln!(out, "    {}", change.to_string().replace('\n', "\n    "));
    }
    for refused in refused {
        let _ = writeln!(out, "    ! {}", refused.text);
    }
    Ok(out)
}
