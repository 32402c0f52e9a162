//! `spcd adopt`

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use spcd_core::config::{Connection, Desired, Loaded};
use spcd_core::observed::Observed;
use spcd_core::plan::{self, Import, Plan, Task};
use spcd_core::shape::{self, Obstacles};

use super::AdoptArgs;
use super::follow::{self, Ended};
use crate::config::Config;
use crate::hub;
use crate::hub::adopt::{self, Found};
use crate::hub::connect::{Endpoint, Session};
use crate::hub::migrate::migrate;
use crate::hub::{apply, ask, dependents, observe};
use crate::settings::Settings;

/// How long the daemon may take to bring what was adopted to what the files want.
const LIMIT: Duration = Duration::from_secs(300);

/// Takes over the schema and the server that somebody made under a connection's name, once it has
/// shown what that means and was told to.
pub async fn run(settings: &Settings, args: AdoptArgs) -> anyhow::Result<ExitCode> {
    let name = &args.name;
    let Loaded { mut desired, .. } = Config::new(&settings.config_dirs, false)
        .with_state(&settings.state_dir)
        .load();
    let missing = || {
        format!(
            "no connection is named {name:?} in the files: write its block first, \
             with what its schema and server are to be"
        )
    };
    let connection = desired.connections.get(name).with_context(missing)?;
    if let Err(error) = &connection.target {
        bail!("mend the block of {name:?} first: {error}");
    }
    let endpoint = super::endpoint(settings)?;
    let mut session = endpoint.connect("adopt").await?;
    if !hub::is_utf8(&session.client).await? {
        desired.adapt_to_other_encoding();
    }
    let connection = desired.connections.get(name).with_context(missing)?;
    migrate(&session.client).await?;
    let Some(found) = adopt::find(&session.client, connection).await? else {
        println!(
            "nothing to adopt: there is no schema or server named {name:?} that spcd did not make"
        );
        return Ok(ExitCode::SUCCESS);
    };
    if !found.ownership.is_empty() {
        bail!(
            "spcd's role has to own what it keeps; type first, as a superuser:\n  {}",
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
    // Somebody may have changed it while the plan was read.
    let now = adopt::find(&session.client, connection).await?;
    anyhow::ensure!(
        now.as_ref() == Some(&found),
        "it changed meanwhile: look again"
    );
    adopt::record(&session.client, connection, &found).await?;
    session.client.batch_execute("COMMIT").await?;
    if !follow::is_led(&session.client).await? {
        println!("adopted; `spcd run` or `spcd apply` brings it to what the files want");
        return Ok(ExitCode::SUCCESS);
    }
    let names = [name.clone()];
    let id = follow::request(&session, Some(&names)).await?;
    match follow::follow(&mut session, id, Some(&names), LIMIT, |_| ()).await? {
        Ended::Settled(rows, _) => {
            let wrong = follow::report(&names, &rows);
            if !wrong {
                println!("adopted; {name:?} is ready");
            }
            Ok(ExitCode::from(u8::from(wrong)))
        }
        Ended::TimeOut(_) => {
            bail!("adopted, but the daemon is not done with it yet: `spcd status {name}` tells")
        }
    }
}

/// What is taken over, and what the next pass would then do to it. Nothing of it stays.
async fn preview(
    endpoint: &Endpoint,
    session: &Session,
    desired: &Desired,
    connection: &Connection,
    found: &Found,
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
    let mut plan = plan::plan(desired, &observed);
    plan.work.retain(|work| work.name == *name);
    let import = plan.work.iter().find_map(|work| match &work.task {
        Task::Import(import) => Some((**import).clone()),
        _ => None,
    });
    let plan = Plan {
        work: plan.work,
        ..Plan::default()
    };
    let _ = writeln!(out, "then, to make it what the files want:");
    out.push_str(&plan::show(&plan, &observed));
    if let Some(import) = import {
        match tables(endpoint, session, &observed, name, &import).await {
            Ok(changes) => out.push_str(&changes),
            // It can be taken over all the same; the state will tell.
            Err(error) => {
                let _ = writeln!(out, "    ! the source cannot be asked now: {error:#}");
            }
        }
    }
    Ok(out)
}

/// What its source makes of the tables.
async fn tables(
    endpoint: &Endpoint,
    session: &Session,
    observed: &Observed,
    name: &str,
    import: &Import,
) -> anyhow::Result<String> {
    let asking = endpoint.connect("asking").await?;
    apply::prepare_for_secrets(&asking.client).await?;
    let wanted = ask::ask(&asking, &import.target).await;
    let wanted = wanted.context("its tables stay as they are until it answers")?;
    let detail = observed.details.get(name).cloned().unwrap_or_default();
    let wanted = wanted.with_skipped(&detail.tables, &import.target.import);
    let changes = import.changes(&detail, &wanted);
    let risky = changes.iter().filter(|change| change.is_risky());
    let risky: Vec<&str> = risky.map(|change| change.table()).collect();
    let obstacles = Obstacles {
        dependents: dependents::of_tables(&session.client, name, &risky).await?,
        ..Obstacles::default()
    };
    let (changes, refused) = shape::guard(changes, &obstacles);
    let mut out = String::new();
    for change in changes {
        let _ = writeln!(out, "    {}", change.to_string().replace('\n', "\n    "));
    }
    for refused in refused {
        let _ = writeln!(out, "    ! {refused}");
    }
    Ok(out)
}
