//! What a world's files say, and what is therefore to be there.

use spcd_core::sql::literal;

use super::people::Thing;
use super::schedule::{MEMBERS, SOURCES};

/// Begins each password and token, so that a leak is found in any text.
pub const SECRET: &str = "s3cret-mark";

/// The block of a member.
#[derive(Debug, Clone)]
pub struct Member {
    pub is_present: bool,
    pub is_enabled: bool,
    pub is_broken: bool,
    /// A user damaged its objects. While its block is broken, they are not mended.
    pub is_damaged: bool,
    pub source: usize,
    /// An option that edits change.
    pub fetch_size: usize,
    /// Number in the file's name.
    pub file: usize,
}

/// Files and users' objects of a world.
#[derive(Debug)]
pub struct Model {
    pub members: Vec<Member>,
    /// What the tokens of the connections behind the gateway are.
    pub tokens: [usize; 2],
    /// Which of the changing csv files exist.
    pub csv: [bool; 2],
    pub things: Vec<Thing>,
    pub next_number: usize,
}

/// Addresses that blocks name.
#[derive(Debug, Clone)]
pub struct Addresses {
    pub source_port: u16,
    pub source_databases: [String; SOURCES],
    pub password: String,
}

impl Model {
    pub fn new() -> Self {
        let members = (0..MEMBERS.len()).map(|n| Member {
            is_present: true,
            is_enabled: true,
            is_broken: false,
            is_damaged: false,
            source: n % SOURCES,
            fetch_size: 100,
            file: 0,
        });
        Self {
            members: members.collect(),
            tokens: [0; 2],
            csv: [false; 2],
            things: Vec::new(),
            next_number: 0,
        }
    }

    /// The name of a member's file.
    pub fn file_name(&self, member: usize) -> String {
        format!("m{member}-{}.spc", self.members[member].file)
    }

    /// The text of a member's file.
    pub fn file_text(&self, member: usize, at: &Addresses) -> String {
        let block = &self.members[member];
        let mut more = String::new();
        if block.is_broken {
            more.push_str("  frobnicate = 1\n");
        }
        if !block.is_enabled {
            more.push_str("  import_schema = \"disabled\"\n");
        }
        more.push_str(&format!("  fetch_size = {}\n", block.fetch_size));
        at.block(MEMBERS[member], block.source, &more)
    }

    /// Whether users' objects keep a connection in the hub.
    pub fn is_kept(&self, name: &str) -> bool {
        (self.things.iter()).any(|thing| thing.on == name && thing.keeps_connection())
    }

    /// Whether users' objects keep a connection's schema.
    pub fn keeps_schema(&self, name: &str) -> bool {
        (self.things.iter()).any(|thing| thing.on == name && thing.keeps_schema())
    }

    /// Forgets what goes with the tables of a connection that may be dropped from now on.
    pub fn may_lose_tables(&mut self, name: &str) {
        self.things
            .retain(|thing| thing.on != name || !thing.goes_with_table());
    }

    /// The token of a connection behind the gateway.
    pub fn token(&self, wrapper: usize) -> String {
        format!("{SECRET}-token{wrapper}-{}", self.tokens[wrapper])
    }
}

impl Addresses {
    /// A connection to a source.
    pub fn block(&self, name: &str, source: usize, more: &str) -> String {
        format!(
            "connection {} {{\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  port = {}\n  \
             dbname = \"{}\"\n  user = \"source_reader\"\n  password = \"{}\"\n{more}}}\n",
            serde_json::Value::from(name),
            self.source_port,
            self.source_databases[source],
            self.password
        )
    }
}

/// Columns of the tables in a schema, a line each.
pub fn columns_of(schema: &str, kinds: &str) -> String {
    format!(
        "SELECT concat_ws(' ', c.relname, a.attname, format_type(a.atttypid, a.atttypmod))
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE n.nspname = {} AND c.relkind = ANY ('{{{kinds}}}') ORDER BY 1",
        literal(schema)
    )
}
