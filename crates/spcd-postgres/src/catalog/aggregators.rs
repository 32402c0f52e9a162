//! Observed state of aggregators: their members' tables, their views, and the dependent objects.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::aggregator::{self, AggregatorInput, ExistingView, ViewColumn};
use spcd_core::diff::{
    self, Blockers, BrokenBy, ColumnChange, Dependent, Dependents, Table, TableChange,
    WrapperTraits,
};
use spcd_core::observed::{Detail, Views};
use tokio_postgres::Client;

use crate::HubError;
use crate::catalog::dependents;
use crate::catalog::foreign_tables;

/// The recorded views `v`, with the schema `m` and the view `c` if they exist.
const VIEWS: &str = "
    spcd.aggregator_view v
    LEFT JOIN pg_catalog.pg_namespace m
         ON m.nspname = CASE WHEN v.hidden THEN 'spcd_union' ELSE v.connection_name END
    LEFT JOIN pg_catalog.pg_class c
         ON c.relname = v.name AND c.relnamespace = m.oid
            AND (c.relkind = 'v' OR v.hidden AND c.relkind = 'f')";

/// Checks that an observation includes.
#[derive(Debug, Clone, Copy, Default)]
pub struct ObservationScope {
    /// Detect drift of the aggregator's views.
    pub views: bool,
    /// Detect drift of the members' tables. Otherwise, members with the same recorded tables are assumed
    /// to have them, and only one of these members is read.
    pub members: bool,
    /// Check whether the role `spcd_users`, which exists, can read the views.
    pub readers: bool,
}

/// Returns an aggregator's members, their tables and its views, from one snapshot.
pub async fn observe_aggregator(
    client: &Client,
    aggregator: &str,
    members: &[String],
    scope: ObservationScope,
) -> Result<AggregatorInput, HubError> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    client.batch_execute(begin).await?;
    let found = observe_in_snapshot(client, aggregator, members, scope).await;
    if !matches!(found, Err(HubError::ConnectionLost(_))) {
        client.batch_execute("ROLLBACK").await?;
    }
    found
}

async fn observe_in_snapshot(
    client: &Client,
    aggregator: &str,
    members: &[String],
    scope: ObservationScope,
) -> Result<AggregatorInput, HubError> {
    let mut found = AggregatorInput::default();
    observe_members(client, members, scope, &mut found).await?;
    found.existing_views = recorded_views(client, aggregator, scope.views, scope.readers).await?;
    let sql = "SELECT c.relname::text
               FROM pg_catalog.pg_namespace n
               JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass
                    AND d.refobjid = n.oid AND d.classid = 'pg_catalog.pg_class'::regclass
               JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind <> 'f'
               LEFT JOIN spcd.aggregator_view v ON v.connection_name = n.nspname
                    AND v.name = c.relname AND NOT v.hidden AND c.relkind = 'v'
               WHERE n.nspname = $1 AND v.name IS NULL";
    for row in client.query(sql, &[&aggregator]).await? {
        found.taken_names.insert(row.try_get(0)?);
    }
    let sql = "SELECT pg_catalog.current_setting('max_locks_per_transaction')::bigint
                    * (pg_catalog.current_setting('max_connections')::bigint
                     + pg_catalog.current_setting('max_prepared_transactions')::bigint)";
    let locks: i64 = client.query_one(sql, &[]).await?.try_get(0)?;
    found.lock_capacity = usize::try_from(locks).unwrap_or(usize::MAX);
    Ok(found)
}

/// Adds the members and their tables. Members with equal hashes have equal tables unless they drifted,
/// so one of them is read.
async fn observe_members(
    client: &Client,
    members: &[String],
    scope: ObservationScope,
    found: &mut AggregatorInput,
) -> Result<(), HubError> {
    let drifted = match scope.members {
        true => {
            "(SELECT f.fingerprint FROM spcd.table_fingerprint f
              WHERE f.connection_name = a.connection_name
                AND f.fingerprint IS DISTINCT FROM a.fingerprint)"
        }
        false => "NULL",
    };
    let sql = format!(
        "SELECT w.name, s.schema_hash, coalesce(a.hidden_schema, w.name), {drifted}
         FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS w (name, n)
         LEFT JOIN (
             spcd.connection_state s
             JOIN spcd.applied a ON a.connection_name = s.connection_name
                  AND a.members IS NULL
             JOIN pg_catalog.pg_namespace n ON n.oid = a.schema_oid
                  AND n.nspname = coalesce(a.hidden_schema, a.connection_name)
         ) ON s.connection_name = w.name
         ORDER BY w.n"
    );
    let mut hashes: Vec<(String, Option<String>)> = Vec::new();
    let mut shapes: BTreeMap<String, usize> = BTreeMap::new();
    let mut examples: Vec<String> = Vec::new();
    let mut drifted: Vec<String> = Vec::new();
    for row in client.query(&sql, &[&members]).await? {
        let (name, hash): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let fingerprint: Option<String> = row.try_get(3)?;
        if let Some(hash) = &hash {
            let tables = match &fingerprint {
                Some(_) => format!("only {name}"),
                None => format!("all {hash}"),
            };
            let shape = *shapes.entry(tables).or_insert_with(|| {
                examples.push(name.clone());
                examples.len() - 1
            });
            found.members.push((name.clone(), row.try_get(2)?, shape));
        }
        hashes.push((name, hash));
        drifted.extend(fingerprint);
    }
    let hashes = hashes
        .iter()
        .map(|(name, hash)| (name.as_str(), hash.as_deref()));
    found.target_hash = aggregator::target_hash(hashes);
    if !drifted.is_empty() {
        let drifted = drifted.iter().map(String::as_str);
        found.target_hash = aggregator::provisional_hash(&found.target_hash, drifted);
    }
    let mut tables = foreign_tables::recorded(client, &examples).await?;
    found.shapes = (examples.iter())
        .map(|example| tables.remove(example).unwrap_or_default())
        .collect();
    for tables in &mut found.shapes {
        diff::normalize(tables, WrapperTraits::default());
    }
    Ok(())
}

async fn recorded_views(
    client: &Client,
    aggregator: &str,
    drift: bool,
    readers: bool,
) -> Result<Vec<ExistingView>, HubError> {
    let altered = match drift {
        true => "coalesce(spcd.view_definition_hash(c.oid) <> v.definition_hash, false)",
        false => "false",
    };
    let unreadable = match readers {
        true => {
            "coalesce(NOT pg_catalog.has_table_privilege('spcd_users', c.oid, 'SELECT'), false)"
        }
        false => "false",
    };
    let sql = format!(
        "SELECT v.table_name, v.hidden, v.name, v.statement_hash, c.oid IS NOT NULL, {altered},
                NOT v.hidden AND {unreadable}
         FROM {VIEWS} WHERE v.connection_name = $1"
    );
    let mut all = Vec::new();
    for row in client.query(&sql, &[&aggregator]).await? {
        all.push(ExistingView {
            table: row.try_get(0)?,
            hidden: row.try_get(1)?,
            name: row.try_get(2)?,
            definition: row.try_get(3)?,
            exists: row.try_get(4)?,
            altered: row.try_get(5)?,
            unreadable: row.try_get(6)?,
            ..ExistingView::default()
        });
    }
    let mut visible: BTreeMap<String, &mut ExistingView> = (all.iter_mut())
        .filter(|made| !made.hidden)
        .map(|made| (made.name.clone(), made))
        .collect();
    let sql = format!(
        "SELECT v.name, k.attname::text, pg_catalog.format_type(k.atttypid, k.atttypmod),
                CASE WHEN k.attcollation <> y.typcollation AND k.attcollation <> 0
                     THEN pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) END
         FROM {VIEWS}
         JOIN pg_catalog.pg_attribute k
              ON k.attrelid = c.oid AND k.attnum > 0 AND NOT k.attisdropped
         JOIN pg_catalog.pg_type y ON y.oid = k.atttypid
         LEFT JOIN pg_catalog.pg_collation co ON co.oid = k.attcollation
         LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
         WHERE v.connection_name = $1 AND NOT v.hidden
         ORDER BY v.name, k.attnum"
    );
    for row in client.query(&sql, &[&aggregator]).await? {
        if let Some(made) = visible.get_mut(row.try_get::<_, &str>(0)?) {
            made.columns.push(ViewColumn {
                name: row.try_get(1)?,
                data_type: row.try_get(2)?,
                collation: row.try_get(3)?,
            });
        }
    }
    let names: Vec<&str> = visible.keys().map(String::as_str).collect();
    let dependents = dependents::of_views(client, aggregator, &names).await?;
    for (name, columns) in dependents {
        if let Some(made) = visible.get_mut(&name) {
            for (column, all) in columns {
                let (kept, dependents): (Vec<_>, Vec<_>) =
                    (all.into_iter()).partition(|one| one.broken_by == BrokenBy::Removal);
                made.dependents
                    .extend(dependents.into_iter().map(|one| one.description));
                if !kept.is_empty() {
                    let kept = kept.into_iter().map(|one| one.description).collect();
                    made.restorable.insert(column, kept);
                }
            }
        }
    }
    Ok(all)
}

/// Returns the drift of some aggregators' views.
pub async fn view_drift(
    client: &Client,
    names: &[String],
    readers: bool,
) -> Result<BTreeMap<String, Views>, HubError> {
    let mut all: BTreeMap<String, Views> = BTreeMap::new();
    for name in names {
        let views = all.entry(name.clone()).or_default();
        for made in recorded_views(client, name, true, readers).await? {
            if !made.exists || made.altered {
                views.altered.push(made.name);
            } else if made.unreadable {
                views.unreadable.push(made.name);
            }
        }
    }
    Ok(all)
}

/// An aggregator whose views read tables that are about to change.
pub struct Follower {
    name: String,
    members: Vec<String>,
    /// Names of these views.
    tables: BTreeSet<String>,
}

/// Joins tables `t` to the views `v` of aggregators that read them.
const DEPENDENT_VIEWS: &str = "
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass
         AND d.refobjid = t.oid AND d.classid = 'pg_catalog.pg_rewrite'::regclass
    JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
    JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
    JOIN pg_catalog.pg_namespace m ON m.oid = c.relnamespace
    JOIN spcd.aggregator_view v ON v.name = c.relname
         AND m.nspname = CASE WHEN v.hidden THEN 'spcd_union' ELSE v.connection_name END";

/// Returns the aggregators whose views read these tables of a connection.
pub async fn followers(
    client: &Client,
    connection: &str,
    tables: &[&str],
) -> Result<Vec<Follower>, HubError> {
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "
        WITH found AS (
            SELECT DISTINCT v.connection_name, v.table_name
            FROM pg_catalog.pg_class t
            JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
            JOIN spcd.applied a ON n.nspname = coalesce(a.hidden_schema, a.connection_name)
            {DEPENDENT_VIEWS}
            WHERE a.connection_name = $1 AND t.relname = ANY ($2::text[])
        )
        SELECT a.connection_name, a.members, f.table_name
        FROM found f JOIN spcd.applied a USING (connection_name)
        WHERE a.members IS NOT NULL
        ORDER BY 1, 3"
    );
    let mut followers: Vec<Follower> = Vec::new();
    for row in client.query(&sql, &[&connection, &tables]).await? {
        let name: String = row.try_get(0)?;
        if followers
            .last()
            .is_none_or(|follower| follower.name != name)
        {
            followers.push(Follower {
                name,
                members: row.try_get(1)?,
                tables: BTreeSet::new(),
            });
        }
        if let Some(follower) = followers.last_mut() {
            follower.tables.insert(row.try_get(2)?);
        }
    }
    Ok(followers)
}

/// Adds the objects that depend on followers' views and block type changes of a member's columns.
/// Dropped columns and tables need no such check: the views show NULL or fewer rows.
pub async fn add_blockers(
    client: &Client,
    followers: &[Follower],
    changes: &[TableChange],
    dependents: &mut Dependents,
) -> Result<(), HubError> {
    for follower in followers {
        let views: Vec<&str> = follower.tables.iter().map(String::as_str).collect();
        let of_views = dependents::of_views(client, &follower.name, &views).await?;
        for change in changes {
            let (Some(of_views), TableChange::Alter { table, columns, .. }) =
                (of_views.get(change.table()), change)
            else {
                continue;
            };
            for column in columns {
                let ColumnChange::Retype { name, .. } = column else {
                    continue;
                };
                let of_table = dependents.entry(table.clone()).or_default();
                let of_column = of_table.entry(name.clone()).or_default();
                let of_view = (of_views.get(name).into_iter().flatten())
                    .filter(|one| one.broken_by > BrokenBy::Removal)
                    .cloned();
                of_column.extend(of_view.map(|one| Dependent {
                    broken_by: BrokenBy::Retype,
                    ..one
                }));
            }
        }
    }
    Ok(())
}

/// A change of a member's tables that followers must follow.
pub struct MemberChange<'a> {
    /// Name of the member.
    member: &'a str,
    /// Schema of its tables after the change.
    schema: String,
    /// Tables before the change.
    before: &'a [Table],
    /// Tables after the change.
    after: Vec<Table>,
    /// Changes from the one to the other.
    pub changes: Vec<TableChange>,
}

/// Returns the statements that remove columns and tables of the member from the followers' views before
/// the change, and those that add the new ones after it, in the same transaction.
pub async fn follow_statements(
    client: &Client,
    followers: &[Follower],
    change: &MemberChange<'_>,
    scope: ObservationScope,
) -> Result<(String, String), HubError> {
    let (mut first, mut last) = (String::new(), String::new());
    let readers = scope.readers;
    for follower in followers {
        let mut found =
            observe_aggregator(client, &follower.name, &follower.members, scope).await?;
        let is_member = |(name, _, _): &(String, String, usize)| name == change.member;
        let Some(member) = found.members.iter().position(is_member) else {
            continue;
        };
        let shape = found.shapes.len();
        found.members[member].2 = shape;
        found.shapes.push(change.common_tables());
        let tables = Some(&follower.tables);
        let detach = aggregator::diff_views(&follower.name, &found, tables, true);
        first.push_str(&detach.statements(&follower.name, &found, readers));
        // A view over partial views is rebuilt only by its aggregator's own job.
        let is_part = |made: &ExistingView| made.hidden && follower.tables.contains(&made.table);
        if found.existing_views.iter().any(is_part) {
            continue;
        }
        detach.apply_to(&mut found);
        found.shapes[shape] = change.after.clone();
        found.members[member].1 = change.schema.clone();
        let attach = aggregator::diff_views(&follower.name, &found, tables, false);
        last.push_str(&attach.statements(&follower.name, &found, readers));
    }
    Ok((first, last))
}

impl<'a> MemberChange<'a> {
    /// Keeps those of `changes` that no object blocks.
    pub fn new(
        member: &'a str,
        detail: &'a Detail,
        desired: &[Table],
        changes: Vec<TableChange>,
        blockers: &Blockers,
        schema: String,
    ) -> Self {
        let (changes, _) = diff::separate_blocked(changes, blockers);
        Self {
            member,
            schema,
            before: &detail.tables,
            after: diff::tables_after(&detail.tables, desired, &changes),
            changes,
        }
    }

    /// Returns the tables and columns that exist before, during and after the change.
    fn common_tables(&self) -> Vec<Table> {
        let mut tables = self.before.to_vec();
        for change in &self.changes {
            match change {
                TableChange::Create(_) => {}
                TableChange::Drop(name) => tables.retain(|table| table.name != *name),
                TableChange::Rebuild { table: new, .. } => {
                    tables.retain(|table| table.name != new.name);
                }
                TableChange::Alter { table, columns, .. } => {
                    let is_removed = |name: &str| {
                        columns.iter().any(|change| match change {
                            ColumnChange::Drop { name: column, .. } => column == name,
                            ColumnChange::Retype { name: column, .. } => column == name,
                            _ => false,
                        })
                    };
                    let table = tables.iter_mut().filter(|old| old.name == *table);
                    table
                        .for_each(|table| table.columns.retain(|column| !is_removed(&column.name)));
                }
            }
        }
        tables
    }
}

/// Returns whether any aggregator has views.
pub async fn have_views(client: &Client) -> Result<bool, HubError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM spcd.aggregator_view)";
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}

/// Returns the aggregators whose views read a connection's tables, and whether each is in error.
pub async fn reading_aggregators(
    client: &Client,
    connection: &str,
) -> Result<Vec<(String, bool)>, HubError> {
    let sql = format!(
        "SELECT DISTINCT v.connection_name, coalesce(s.status = 'error', false)
             FROM spcd.applied a
             JOIN pg_catalog.pg_namespace n
                  ON n.nspname = coalesce(a.hidden_schema, a.connection_name)
             JOIN pg_catalog.pg_class t ON t.relnamespace = n.oid AND t.relname = ANY (a.tables)
             {DEPENDENT_VIEWS}
             LEFT JOIN spcd.connection_state s ON s.connection_name = v.connection_name
             WHERE a.connection_name = $1 AND a.members IS NULL
             ORDER BY 1"
    );
    let rows = client.query(&sql, &[&connection]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}
