//! What is worth knowing: one type, which feeds the log and the metrics.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Something that happened.
#[derive(Debug, Clone, Copy)]
pub enum Observation<'a> {
    /// A look at files and database, and what follows from it.
    Passed {
        /// Its number since the lead was taken.
        pass: u64,
        /// Connections that the files want.
        connections: usize,
        /// Connections that were altered by others, once it is known.
        altered: Option<usize>,
        /// Rows that it changed.
        rows: usize,
        /// Jobs that it began.
        work: usize,
        /// Jobs under way after it.
        under_way: usize,
        /// The look alone.
        look: Duration,
        /// All of it.
        took: Duration,
    },
    /// A job is over.
    Worked {
        /// `done`, `same`, `failed`, `later` or `cancelled`.
        outcome: &'static str,
        /// From its begin, its turn among others included.
        took: Duration,
    },
    /// A source was asked.
    Asked {
        /// How long it took to answer or to fail.
        took: Duration,
    },
    /// A transaction was written.
    Wrote {
        /// Connections that changed in it.
        connections: usize,
        /// Tables that its statements are about.
        tables: usize,
        /// Statements that the plan had for them.
        statements: usize,
    },
    /// A connection is as a file that changed says.
    Followed {
        /// Since the change of the file was noticed.
        lag: Duration,
    },
    /// A message was on the channel.
    Announced {
        /// Changes in it.
        changes: usize,
        /// It said to read everything again.
        resync: bool,
    },
    /// The lead was taken.
    Led {
        /// Its number.
        epoch: i64,
    },
    /// The database went away, and is tried again.
    Lost {
        /// Why.
        why: &'a str,
        /// The pause before.
        pause: Duration,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

struct Metrics {
    registry: Registry,
    passes: Histogram,
    pass_rows: Counter,
    pass_work: Counter,
    jobs: Family<OutcomeLabel, Histogram, fn() -> Histogram>,
    asks: Histogram,
    transactions: Counter,
    statements: Counter,
    written_connections: Counter,
    written_tables: Counter,
    lag: Histogram,
    notifications: Counter,
    changes: Counter,
    resyncs: Counter,
    leads: Counter,
    reconnects: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// From a millisecond to a minute.
fn times() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    ])
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::with_prefix("spcd");
        let build = Info::new([
            ("version", env!("CARGO_PKG_VERSION")),
            ("arch", std::env::consts::ARCH),
        ]);
        registry.register("build", "The program", build);
        let mut count = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let pass_rows = count("pass_rows", "Rows that passes changed at once");
        let pass_work = count("pass_jobs", "Jobs that passes began");
        let transactions = count("transactions", "Transactions in which jobs were written");
        let statements = count("statements", "Statements in them");
        let written_connections = count("written_connections", "Connections written in them");
        let written_tables = count("written_tables", "Tables that they were about");
        let notifications = count("notifications", "Messages heard on the channel");
        let changes = count("notified_changes", "Changes that were packed into them");
        let resyncs = count("resyncs", "Messages that said to read everything again");
        let leads = count("leads_taken", "How often this process took the lead");
        let reconnects = count(
            "reconnects",
            "How often the database was lost and tried again",
        );
        let mut time = |name: &str, help: &str| {
            let histogram = times();
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let passes = time("pass_duration", "A look, a plan, and what follows at once");
        let asks = time("import_duration", "A source that is asked for its tables");
        let lag = time(
            "file_to_ready",
            "From noticing a changed file until a connection is as it says",
        );
        let jobs: Family<OutcomeLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(times);
        let help = "Work on one connection, by what came of it";
        registry.register_with_unit("job_duration", help, Unit::Seconds, jobs.clone());
        Self {
            registry,
            passes,
            pass_rows,
            pass_work,
            jobs,
            asks,
            transactions,
            statements,
            written_connections,
            written_tables,
            lag,
            notifications,
            changes,
            resyncs,
            leads,
            reconnects,
        }
    }
}

/// Counts, and logs what a person would want to read.
pub fn observe(observation: Observation<'_>) {
    let metrics = &*METRICS;
    match observation {
        Observation::Passed {
            pass,
            connections,
            altered,
            rows,
            work,
            under_way,
            look,
            took,
        } => {
            metrics.passes.observe(took.as_secs_f64());
            metrics.pass_rows.inc_by(rows as u64);
            metrics.pass_work.inc_by(work as u64);
            tracing::debug!(
                pass,
                connections,
                altered,
                rows,
                work,
                under_way,
                look_micros = look.as_micros() as u64,
                micros = took.as_micros() as u64,
                "looked"
            );
        }
        Observation::Worked { outcome, took } => {
            let jobs = metrics.jobs.get_or_create(&OutcomeLabel { outcome });
            jobs.observe(took.as_secs_f64());
        }
        Observation::Asked { took } => metrics.asks.observe(took.as_secs_f64()),
        Observation::Wrote {
            connections,
            tables,
            statements,
        } => {
            metrics.transactions.inc();
            metrics.written_connections.inc_by(connections as u64);
            metrics.written_tables.inc_by(tables as u64);
            metrics.statements.inc_by(statements as u64);
        }
        Observation::Followed { lag } => metrics.lag.observe(lag.as_secs_f64()),
        Observation::Announced { changes, resync } => {
            metrics.notifications.inc();
            metrics.changes.inc_by(changes as u64);
            metrics.resyncs.inc_by(u64::from(resync));
        }
        Observation::Led { epoch } => {
            metrics.leads.inc();
            tracing::info!(epoch, "this daemon leads");
        }
        Observation::Lost { why, pause } => {
            metrics.reconnects.inc();
            tracing::warn!("{why}; trying again in {} ms", pause.as_millis());
        }
    }
}

/// Appends what was counted so far, in OpenMetrics' text format, without its end.
///
/// # Errors
/// None, as long as a text can grow.
pub fn encode(text: &mut String) -> std::fmt::Result {
    encode_registry(text, &METRICS.registry)
}
