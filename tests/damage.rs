//! Whatever is damaged by hand under an aggregator is mended, or refused with a reason, in few passes.

use crate::support::http::Http;
use crate::support::hub::{postgres, until};
use crate::support::{DEADLINE, Database, Spcd, eventually, query, shared, try_query, value};

/// Number of damages; `SPCD_DAMAGES` takes another.
const DAMAGES: usize = 70;
/// Passes that a damage may cost on average: the look that finds it, what is written, the look that
/// confirms it, and the same for the aggregator.
const PASSES: usize = 12;
/// The first seed; `SPCD_SEED` takes another.
const SEED: u64 = 20_261_127;

/// What a user may do to a member `m1` of the aggregator `all`, or to the aggregator.
const DAMAGE: &[&str] = &[
    "ALTER FOREIGN TABLE m1.t ADD by_hand integer",
    "ALTER FOREIGN TABLE m1.t DROP COLUMN note CASCADE",
    "ALTER FOREIGN TABLE m1.t RENAME COLUMN note TO renamed",
    "DROP VIEW \"all\".u; ALTER FOREIGN TABLE m1.u ALTER COLUMN y TYPE text",
    "ALTER FOREIGN TABLE m1.t ALTER COLUMN note SET DEFAULT 'x'",
    "ALTER FOREIGN TABLE m1.t ALTER COLUMN note SET NOT NULL",
    "ALTER FOREIGN TABLE m1.t ALTER COLUMN note OPTIONS (ADD column_name 'gone')",
    "ALTER FOREIGN TABLE m1.t OPTIONS (SET table_name 'gone')",
    "ALTER FOREIGN TABLE m1.t OPTIONS (ADD batch_size '7')",
    "ALTER FOREIGN TABLE m1.t RENAME TO renamed",
    "ALTER FOREIGN TABLE m1.t SET SCHEMA aside",
    "ALTER FOREIGN TABLE m1.t RENAME TO swap; ALTER FOREIGN TABLE m1.u RENAME TO t;
     ALTER FOREIGN TABLE m1.swap RENAME TO u",
    "DROP FOREIGN TABLE m1.t CASCADE",
    "DROP FOREIGN TABLE m1.t CASCADE; CREATE TABLE m1.t (mine integer)",
    "CREATE OR REPLACE VIEW \"all\".t AS SELECT 'x'::text AS connection_name, 1 AS id, 'y'::text AS note",
    "ALTER VIEW \"all\".t RENAME COLUMN note TO renamed",
    "ALTER VIEW \"all\".t RENAME TO renamed",
    "ALTER VIEW \"all\".t SET SCHEMA aside",
    "ALTER VIEW \"all\".t ALTER COLUMN note SET DEFAULT 'x'",
    "DROP VIEW \"all\".t CASCADE",
    "DROP VIEW \"all\".t CASCADE; CREATE TABLE \"all\".t (mine integer)",
    "DROP VIEW \"all\".t, \"all\".u CASCADE",
    "ALTER SERVER m1 OPTIONS (SET dbname 'gone')",
    "ALTER SERVER m1 OPTIONS (ADD batch_size '7')",
    "ALTER SERVER m1 RENAME TO renamed_server",
    "DROP SERVER m1 CASCADE",
    "ALTER USER MAPPING FOR PUBLIC SERVER m1 OPTIONS (SET user 'gone')",
    "DROP USER MAPPING FOR PUBLIC SERVER m1",
    "ALTER SCHEMA m1 RENAME TO renamed_schema",
    "ALTER SCHEMA \"all\" RENAME TO renamed_schema",
    "DROP SCHEMA m1 CASCADE",
    "DROP SCHEMA \"all\" CASCADE",
    "DROP SCHEMA \"all\" CASCADE; DROP SERVER m1 CASCADE; DROP SCHEMA m1 CASCADE",
    "ALTER FOREIGN TABLE m1.t RENAME COLUMN note TO one; ALTER FOREIGN TABLE m2.t RENAME COLUMN note TO two",
    "DROP FOREIGN TABLE m1.t, m2.t CASCADE",
];

/// What a damage leaves that is the user's from then on: taken away before the next one.
const CLEAR: &str = "DROP SCHEMA IF EXISTS renamed_schema CASCADE;
    DROP SERVER IF EXISTS renamed_server CASCADE;
    DROP SCHEMA aside CASCADE; CREATE SCHEMA aside;
    DO $$ DECLARE o record; BEGIN
        FOR o IN SELECT c.oid::regclass AS name, c.relkind FROM pg_class c
                 WHERE c.relnamespace = ANY (ARRAY['m1', 'all']::text[]::regnamespace[])
                   AND (c.relkind = 'r' OR c.relname IN ('renamed', 'swap')) LOOP
            EXECUTE format('DROP %s %s CASCADE', CASE o.relkind WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW'
                           ELSE 'FOREIGN TABLE' END, o.name);
        END LOOP;
    END $$";

/// Every column that a client sees, with what leads to the source.
const SHAPE: &str = "SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
    SELECT concat_ws(' ', n.nspname, c.relname, c.relkind, k.attname, format_type(k.atttypid, k.atttypmod),
                     k.attnotnull, k.attfdwoptions, f.ftoptions, s.srvname, s.srvoptions, m.umoptions,
                     pg_get_expr(d.adbin, d.adrelid)) AS line
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum > 0 AND NOT k.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = k.attnum AND c.relkind = 'f'
    LEFT JOIN pg_foreign_table f ON f.ftrelid = c.oid
    LEFT JOIN pg_foreign_server s ON s.oid = f.ftserver
    LEFT JOIN pg_user_mappings m ON m.srvid = s.oid
    WHERE n.nspname IN ('m1', 'm2', 'all') AND c.relname IN ('t', 'u') AND c.relkind IN ('f', 'v')) x";

const ROWS: &str = "SELECT string_agg(x, ' ' ORDER BY x) FROM (
    SELECT concat_ws('/', connection_name, id, note) FROM \"all\".t
    UNION ALL SELECT concat_ws('/', connection_name, x, y) FROM \"all\".u) AS r (x)";

/// The argument of `spcd.refresh` for a look at files and database, and for one that asks sources.
const LOOK: &str = "'{}'";
const ASK: &str = "NULL";

struct World {
    hub: Database,
    spcd: Spcd,
    http: Http,
}

impl World {
    async fn new() -> Self {
        let (hub, source) = (shared().database().await, shared().database().await);
        query(
            &source.url,
            "CREATE TABLE t (id integer, note text); INSERT INTO t VALUES (1, 'n');
             CREATE TABLE u (x integer, y date); INSERT INTO u VALUES (2, '2026-01-01')",
        )
        .await;
        query(&hub.url, "CREATE SCHEMA aside").await;
        let mut spcd = Spcd::new(&hub.url);
        let http = Http::of(&mut spcd);
        let all = "connection \"all\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
                   connections = [\"m*\"]\n}\n";
        spcd.write("m1.spc", &postgres("m1", &source));
        spcd.write("m2.spc", &postgres("m2", &source));
        spcd.write("all.spc", all);
        spcd.start();
        until(&hub.url, &["all ready", "m1 ready", "m2 ready"]).await;
        Self { hub, spcd, http }
    }

    /// Has the daemon look or ask the sources, and waits until everything is settled. Returns the
    /// errors and warnings.
    async fn settled(&self, ask: &str, what: &str) -> String {
        for _ in 0..2 {
            let id = value(&self.hub.url, &format!("SELECT spcd.refresh({ask})")).await;
            let over = format!(
                "SELECT (SELECT done_at IS NOT NULL FROM spcd.refresh_request WHERE id = {id})
                    AND NOT EXISTS (SELECT FROM spcd.connection_state
                                    WHERE status IN ('pending', 'updating', 'deleting'))"
            );
            eventually(&format!("settled after {what}"), DEADLINE, || async {
                (value(&self.hub.url, &over).await == "t").then_some(())
            })
            .await;
        }
        let said = "SELECT string_agg(concat_ws(': ', connection_name, error,
                                                array_to_string(warnings, '; ')), E'\\n')
                    FROM spcd.connection_state WHERE status <> 'ready' OR warnings <> '{}'";
        value(&self.hub.url, said).await
    }

    fn passes(&self) -> usize {
        let text = self.http.get("/metrics").body;
        let line = text
            .lines()
            .find(|line| line.starts_with("spcd_pass_duration_seconds_count"));
        let number = line.and_then(|line| line.rsplit(' ').next());
        number.expect("a number of passes").parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hand_damage_under_an_aggregator_is_mended_or_refused_and_never_loops() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let seed: u64 = number("SPCD_SEED").unwrap_or(SEED);
    let damages = number("SPCD_DAMAGES").map_or(DAMAGES, |n| n as usize);
    eprintln!("SPCD_SEED={seed}");
    let mut world = World::new().await;
    let (shape, rows) = (
        value(&world.hub.url, SHAPE).await,
        value(&world.hub.url, ROWS).await,
    );
    let before = world.passes();
    let mut random = seed;
    for step in 0..damages {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // Each kind at least once.
        let pick = if step < DAMAGE.len() {
            step
        } else {
            (random >> 33) as usize % DAMAGE.len()
        };
        let damage = DAMAGE[pick];
        let at = format!("seed {seed}, step {step}: {damage}");
        if let Err(error) = try_query(&world.hub.url, damage).await {
            panic!("{at}: {error:?}");
        }
        let said = world.settled(LOOK, &at).await;
        let mended = value(&world.hub.url, SHAPE).await == shape;
        if mended {
            assert_eq!(said, "", "{at}");
            assert_eq!(value(&world.hub.url, ROWS).await, rows, "{at}");
        } else {
            assert_ne!(said, "", "nothing is said after {at}");
        }
        query(&world.hub.url, CLEAR).await;
        assert_eq!(
            world.settled(ASK, &format!("clearing up after {at}")).await,
            "",
            "{at}"
        );
        assert_eq!(value(&world.hub.url, SHAPE).await, shape, "{at}");
        assert_eq!(value(&world.hub.url, ROWS).await, rows, "{at}");
        let passes = world.passes() - before;
        assert!(passes < (step + 4) * PASSES, "{passes} passes: {at}");
    }
    let passes = world.passes() - before;
    eprintln!("{damages} damages, {passes} passes");
    world.spcd.stop();
}

/// The member is not mended before its block is; until then the daemon rests.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_renamed_while_its_block_is_broken_makes_few_passes() {
    let mut world = World::new().await;
    let (shape, rows) = (
        value(&world.hub.url, SHAPE).await,
        value(&world.hub.url, ROWS).await,
    );
    let good = std::fs::read_to_string(world.spcd.config_dir().join("m1.spc")).unwrap();
    for (n, damage) in [
        "ALTER FOREIGN TABLE m1.t RENAME TO renamed",
        "ALTER FOREIGN TABLE m1.t RENAME COLUMN note TO renamed",
        "ALTER SERVER m1 RENAME TO renamed_server",
        "ALTER SCHEMA m1 RENAME TO renamed_schema",
    ]
    .into_iter()
    .enumerate()
    {
        world
            .spcd
            .write("m1.spc", &good.replace("  host ", "  frob = 1\n  host "));
        until(&world.hub.url, &["all ready", "m1 error", "m2 ready"]).await;
        // The aggregator's own damage has it look at its members.
        let both = format!("DROP VIEW \"all\".u; {damage}");
        query(&world.hub.url, &both).await;
        let before = world.passes();
        // The block's error is the answer, at once, and not a wait without end.
        let asked = world.spcd.spcd(&["refresh", "--wait"]);
        assert_eq!(asked.code, 1, "{damage}: {asked:?}");
        assert!(asked.stderr.contains("frob"), "{damage}: {asked:?}");
        world.settled(LOOK, damage).await;
        // Something else is still served.
        world.spcd.write(&format!("new{n}.spc"), "# nothing\n");
        world.settled(LOOK, damage).await;
        let passes = world.passes() - before;
        assert!(passes < 5 * PASSES, "{passes} passes: {damage}");

        world.spcd.write("m1.spc", &good);
        assert_eq!(world.spcd.spcd(&["wait"]).code, 0, "{damage}");
        query(&world.hub.url, CLEAR).await;
        assert_eq!(world.settled(ASK, damage).await, "", "{damage}");
        assert_eq!(value(&world.hub.url, SHAPE).await, shape, "{damage}");
        assert_eq!(value(&world.hub.url, ROWS).await, rows, "{damage}");
    }
    world.spcd.stop();
}
