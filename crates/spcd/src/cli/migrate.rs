//! `spcd migrate`

use std::process::ExitCode;

use crate::settings::Settings;
use spcd_postgres::migrations::migrate;

/// Migrates spcd's own schema.
pub async fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let (endpoint, cluster) = super::hub(settings).await?;
    let session = endpoint.connect("migrate").await?;
    let applied = migrate(&session.client).await;
    drop(session);
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    let applied = applied?;
    for name in &applied {
        println!("applied {name}");
    }
    if applied.is_empty() {
        println!("up to date");
    }
    Ok(ExitCode::SUCCESS)
}
