//! What users make on the tables of connections, and whether it is still there.

use spcd_core::sql::{ident, literal};

use super::schedule::ThingKind;

/// The aggregator of a world.
pub const AGGREGATOR: &str = "all";

/// An object of a user.
#[derive(Debug, Clone)]
pub struct Thing {
    pub kind: ThingKind,
    /// The connection whose objects it uses.
    pub on: String,
    number: usize,
}

impl Thing {
    pub fn new(kind: ThingKind, member: &str, number: usize) -> Self {
        let on = match kind {
            ThingKind::ViewOfAggregator | ThingKind::GrantOnAggregator => AGGREGATOR,
            _ => member,
        };
        Self {
            kind,
            on: on.to_owned(),
            number,
        }
    }

    fn table(&self) -> String {
        format!("{}.t", ident(&self.on))
    }

    fn role(&self) -> String {
        format!("guest{}", self.number)
    }

    /// Whether it goes without a trace when its connection is removed or disabled.
    pub fn goes_with_table(&self) -> bool {
        matches!(
            self.kind,
            ThingKind::Grant | ThingKind::GrantOnAggregator | ThingKind::Comment
        )
    }

    /// Whether spcd must keep the connection's objects for its sake when its block is removed.
    pub fn keeps_connection(&self) -> bool {
        !self.goes_with_table()
    }

    /// Whether the connection cannot be disabled for its sake. An aggregator shows it, so its tables
    /// stay with their views, in another schema.
    pub fn keeps_schema(&self) -> bool {
        self.kind == ThingKind::Table
    }

    /// Whether both cannot be there together.
    pub fn replaces(&self, other: &Self) -> bool {
        self.kind == ThingKind::Comment && other.kind == self.kind && self.on == other.on
    }

    /// The statement that makes it; it may be repeated.
    pub fn make(&self) -> String {
        let (table, n) = (self.table(), self.number);
        match self.kind {
            ThingKind::View | ThingKind::ViewOfAggregator => {
                format!("CREATE OR REPLACE VIEW people.v{n} AS SELECT id FROM {table}")
            }
            ThingKind::Grant | ThingKind::GrantOnAggregator => {
                format!("GRANT SELECT ON {table} TO {}", self.role())
            }
            ThingKind::Comment => {
                format!("COMMENT ON FOREIGN TABLE {table} IS 'of people, {n}'")
            }
            ThingKind::Table => format!(
                "CREATE TABLE IF NOT EXISTS {}.mine{n} AS SELECT {n} AS id",
                ident(&self.on)
            ),
        }
    }

    /// The statement that drops it.
    pub fn unmake(&self) -> String {
        let (table, n) = (self.table(), self.number);
        match self.kind {
            ThingKind::View | ThingKind::ViewOfAggregator => {
                format!("DROP VIEW IF EXISTS people.v{n}")
            }
            ThingKind::Grant | ThingKind::GrantOnAggregator => {
                format!("REVOKE SELECT ON {table} FROM {}", self.role())
            }
            ThingKind::Comment => format!("COMMENT ON FOREIGN TABLE {table} IS NULL"),
            ThingKind::Table => format!("DROP TABLE IF EXISTS {}.mine{n}", ident(&self.on)),
        }
    }

    /// A query that returns `t` where it is there.
    pub fn check(&self) -> String {
        let n = self.number;
        let (schema, on) = (literal(&self.on), literal(&self.table()));
        match self.kind {
            // Which table it reads, by OID, so that a replaced table is seen.
            ThingKind::View | ThingKind::ViewOfAggregator => format!(
                "SELECT EXISTS (SELECT FROM pg_rewrite r JOIN pg_depend d ON d.objid = r.oid
                    AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_rewrite'::regclass
                 WHERE r.ev_class = to_regclass('people.v{n}') AND d.refobjid <> r.ev_class
                   AND (d.refobjid = to_regclass({on}) OR to_regclass({on}) IS NULL))"
            ),
            ThingKind::Grant | ThingKind::GrantOnAggregator => format!(
                "SELECT coalesce(has_table_privilege({}, to_regclass({on}), 'SELECT'), false)",
                literal(&self.role())
            ),
            ThingKind::Comment => format!(
                "SELECT coalesce(obj_description(to_regclass({on})) = 'of people, {n}', false)"
            ),
            ThingKind::Table => format!(
                "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
                 WHERE s.nspname = {schema} AND c.relname = 'mine{n}' AND c.relkind = 'r')"
            ),
        }
    }
}
