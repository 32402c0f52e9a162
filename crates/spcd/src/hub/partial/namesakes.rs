//! Tables of a source that have one name here, or that their source takes for one: as many of them
//! are imported as have a name of their own, and of the others the first in byte order.

use std::collections::{BTreeMap, BTreeSet};
use std::slice;

use spcd_core::sql;
use tokio_postgres::error::SqlState;

use super::Importer;
use crate::hub::{HubError, tables};

/// A wrapper that makes names lower case, with underscores, unless it is told not to.
const LAUNDERS: &str = "ogr_fdw";
/// The import option that tells it so, and the table option that has the name in the source.
const KEEP_NAMES: &str = "launder_table_names";
const REMOTE_NAME: &str = "layer";
/// So many layers are tried for one name.
const MOST_LAYERS: usize = 100;

/// Imports each table alone that failed because something of its name was there.
pub(super) async fn try_alone(importer: &mut Importer<'_>) -> Result<(), HubError> {
    let is_duplicate = |error: &HubError| {
        let codes = [SqlState::DUPLICATE_TABLE, SqlState::DUPLICATE_COLUMN];
        matches!(error, HubError::Refused { code, .. } if codes.contains(code))
    };
    let names = importer.unfit.iter().filter(|(_, e)| is_duplicate(e));
    let names: Vec<String> = names.map(|(name, _)| name.clone()).collect();
    let options = importer.target.import_options.clone();
    for name in names {
        match importer
            .attempt_tables(slice::from_ref(&name), &options)
            .await
        {
            Ok(()) if importer.has(&name).await? => {
                let is_shared = matches!(
                    importer.unfit.remove(&name),
                    Some(HubError::Refused { code, .. }) if code == SqlState::DUPLICATE_TABLE
                );
                if is_shared {
                    importer.warnings.push(format!(
                        "a table of the source is left out: its name becomes {name:?}, which \
                         another one has"
                    ));
                }
            }
            Ok(()) => {}
            Err(failed) => {
                failed.ignore_refusal()?;
                if importer.target.wrapper == LAUNDERS {
                    first_layer(importer, &name).await?;
                }
            }
        }
    }
    Ok(())
}

/// Imports the first layer, in byte order, of those whose table would have a name.
async fn first_layer(importer: &mut Importer<'_>, name: &str) -> Result<(), HubError> {
    let options = importer.target.import_options.clone();
    let mut first: Option<String> = None;
    for layer in other_layers(importer).await? {
        // As a remote schema, a layer's name means all layers that begin with it.
        let limit = sql::limit_to([name]);
        match importer.attempt(&layer, &limit, &options).await {
            Ok(()) if first.is_none() && importer.has(name).await? => {
                importer.unfit.remove(name);
                first = Some(layer);
            }
            Ok(()) => {}
            Err(failed) => {
                let is_namesake = matches!(
                    &failed.error,
                    HubError::Refused { code, .. } if *code == SqlState::DUPLICATE_TABLE
                );
                failed.ignore_refusal()?;
                if let (true, Some(first)) = (is_namesake, &first) {
                    importer.warnings.push(format!(
                        "layer {layer:?} is left out: its table would have the name {name:?}, \
                         which that of layer {first:?} has"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// The layers of which there is no table, in byte order.
async fn other_layers(importer: &mut Importer<'_>) -> Result<Vec<String>, HubError> {
    let (client, target) = (&importer.session.client, importer.target);
    let layers = async |schema: &str| {
        let tables = tables::of_schema(client, schema, target.traits()).await?;
        let layer = tables
            .into_iter()
            .filter_map(|mut table| table.options.remove(REMOTE_NAME));
        Ok::<BTreeSet<String>, HubError>(layer.collect())
    };
    let known = layers(importer.into).await?;
    let all = format!("{}_all", importer.into);
    let mut options: BTreeMap<String, String> = target.import_options.clone();
    options.insert(KEEP_NAMES.into(), "false".into());
    let import = sql::import(&target.import.schema, importer.server, &all, "", &options);
    let create = format!(
        "SAVEPOINT spcd_layers;\n{}{import}",
        sql::create_schema(&all)
    );
    let found = match client.batch_execute(&create).await.map_err(HubError::from) {
        Ok(()) => layers(&all).await?,
        Err(HubError::Refused { .. }) => BTreeSet::new(),
        Err(error) => return Err(error),
    };
    client.batch_execute("ROLLBACK TO spcd_layers").await?;
    Ok(found
        .difference(&known)
        .take(MOST_LAYERS)
        .cloned()
        .collect())
}
