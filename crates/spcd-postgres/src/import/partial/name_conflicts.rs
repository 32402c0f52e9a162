//! Remote tables with the same local name, or with names that the source considers equal. Of each such
//! group the first in byte order is imported.

use std::collections::{BTreeMap, BTreeSet};
use std::slice;

use spcd_core::diff::TableWarning;
use spcd_core::sql;
use tokio_postgres::error::SqlState;

use super::PartialImport;
use crate::HubError;
use crate::catalog::foreign_tables;

/// A wrapper that by default converts names to lower case with underscores.
const OGR_FDW: &str = "ogr_fdw";
/// Its import option for this conversion, and its table option with the remote name.
const LAUNDER_OPTION: &str = "launder_table_names";
const LAYER_OPTION: &str = "layer";
/// Maximum number of layers that are tried for one name.
const MAX_LAYERS: usize = 100;

/// Retries, one by one, the tables that failed because their name exists.
pub(super) async fn import_singly(import: &mut PartialImport<'_>) -> Result<(), HubError> {
    let is_duplicate = |error: &HubError| {
        let codes = [SqlState::DUPLICATE_TABLE, SqlState::DUPLICATE_COLUMN];
        matches!(error, HubError::StatementFailed { code, .. } if codes.contains(code))
    };
    let names = import.errors.iter().filter(|(_, e)| is_duplicate(e));
    let names: Vec<String> = names.map(|(name, _)| name.clone()).collect();
    let options = import.target.import_options.clone();
    for name in names {
        match import
            .attempt_tables(slice::from_ref(&name), &options)
            .await
        {
            Ok(()) if import.has(&name).await? => {
                let is_shared = matches!(
                    import.errors.remove(&name),
                    Some(HubError::StatementFailed { code, .. }) if code == SqlState::DUPLICATE_TABLE
                );
                if is_shared {
                    import.warnings.push(format!(
                        "a table of the source is skipped: its local name {name:?} belongs to \
                         another table"
                    ));
                }
            }
            Ok(()) => {}
            Err(failed) => {
                failed.ignore_server_error()?;
                if import.target.wrapper == OGR_FDW {
                    import_first_layer(import, &name).await?;
                }
            }
        }
    }
    Ok(())
}

/// Imports the first layer, in byte order, whose table would get this name.
async fn import_first_layer(import: &mut PartialImport<'_>, name: &str) -> Result<(), HubError> {
    let options = import.target.import_options.clone();
    let mut first: Option<String> = None;
    for layer in missing_layers(import).await? {
        // As a remote schema, a layer's name selects all layers that begin with it.
        let limit = sql::limit_to([name]);
        match import.attempt(&layer, &limit, &options).await {
            Ok(()) if first.is_none() && import.has(name).await? => {
                import.errors.remove(name);
                first = Some(layer);
            }
            Ok(()) => {}
            Err(failed) => {
                let is_duplicate = matches!(
                    &failed.error,
                    HubError::StatementFailed { code, .. } if *code == SqlState::DUPLICATE_TABLE
                );
                failed.ignore_server_error()?;
                if let (true, Some(first)) = (is_duplicate, &first) {
                    import.left_out.push(TableWarning {
                        text: format!(
                            "layer {layer:?} is left out: its table would have the name {name:?}, \
                             which that of layer {first:?} has"
                        ),
                        table: Some(layer),
                    });
                }
            }
        }
    }
    Ok(())
}

/// Returns the layers without a table, in byte order.
async fn missing_layers(import: &mut PartialImport<'_>) -> Result<Vec<String>, HubError> {
    let (client, target) = (&import.session.client, import.target);
    let layers = async |schema: &str| {
        let tables = foreign_tables::of_schema(client, schema, target.wrapper_traits()).await?;
        let layer = tables
            .into_iter()
            .filter_map(|mut table| table.options.remove(LAYER_OPTION));
        Ok::<BTreeSet<String>, HubError>(layer.collect())
    };
    let known = layers(import.into).await?;
    let all = format!("{}_all", import.into);
    let mut options: BTreeMap<String, String> = target.import_options.clone();
    options.insert(LAUNDER_OPTION.into(), "false".into());
    let import = sql::import(&target.import.schema, import.server, &all, "", &options);
    let create = format!(
        "SAVEPOINT spcd_layers;\n{}{import}",
        sql::create_schema(&all)
    );
    let found = match client.batch_execute(&create).await.map_err(HubError::from) {
        Ok(()) => layers(&all).await?,
        Err(HubError::StatementFailed { .. }) => BTreeSet::new(),
        Err(error) => return Err(error),
    };
    client.batch_execute("ROLLBACK TO spcd_layers").await?;
    Ok(found.difference(&known).take(MAX_LAYERS).cloned().collect())
}
