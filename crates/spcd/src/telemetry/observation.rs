//! Observations: one type that feeds the log and the metrics.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use spcd_postgres::writer::Committed;

/// An event for the log and the metrics.
#[derive(Debug, Clone, Copy)]
pub enum Observation<'a> {
    /// A pass ended.
    Passed {
        /// Number of the pass since this daemon became the leader.
        pass: u64,
        /// Number of desired connections.
        connections: usize,
        /// Connections with drift, once it is known.
        altered: Option<usize>,
        /// Number of rows that it changed itself.
        rows: usize,
        /// Number of jobs that it started.
        work: usize,
        /// Number of jobs that run after it.
        under_way: usize,
        /// Duration of the observation alone.
        observation: Duration,
        /// Duration of the pass.
        took: Duration,
    },
    /// A job ended.
    Worked {
        /// `done`, `same`, `failed`, `later` or `cancelled`.
        outcome: &'static str,
        /// Duration, including the wait for permits.
        took: Duration,
    },
    /// A source was asked for its tables.
    Asked {
        /// Duration until the answer or the failure.
        took: Duration,
    },
    /// A transaction was committed.
    Wrote(Committed),
    /// A connection follows a file that changed.
    Followed {
        /// Time since the change of the file was noticed.
        lag: Duration,
    },
    /// A notification arrived on the channel.
    Announced {
        /// Changes in it.
        changes: usize,
        /// Whether it asks clients to read everything again.
        resync: bool,
    },
    /// This daemon became the leader.
    Led {
        /// Its epoch.
        epoch: i64,
    },
    /// A wrapper crashed the server process of a session.
    Crashed {
        /// Plugin of the connection.
        plugin: &'a str,
    },
    /// The database was lost.
    Lost {
        /// Reason.
        why: &'a str,
        /// Pause before the next attempt.
        pause: Duration,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabel {
    plugin: String,
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
    wrapper_crashes: Family<PluginLabel, Counter>,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Returns a histogram from 1 ms to 1 min.
fn times() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    ])
}

/// Registers metrics: each name gets the prefix `spcd_`, a counter's also the suffix `_total`.
struct Registrar(Registry);

impl Registrar {
    fn count(&mut self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.0.register(name, help, counter.clone());
        counter
    }

    fn time(&mut self, name: &str, help: &str) -> Histogram {
        let histogram = times();
        (self.0).register_with_unit(name, help, Unit::Seconds, histogram.clone());
        histogram
    }

    fn crashes(&mut self) -> Family<PluginLabel, Counter> {
        let family = Family::default();
        let help = "Server processes that a wrapper ended while the daemon asked it, by plugin";
        self.0.register("wrapper_crashes", help, family.clone());
        family
    }

    fn jobs(&mut self) -> Family<OutcomeLabel, Histogram, fn() -> Histogram> {
        let family: Family<OutcomeLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(times);
        let help = "Duration of a job of one connection, by outcome";
        (self.0).register_with_unit("job_duration", help, Unit::Seconds, family.clone());
        family
    }
}

impl Metrics {
    fn new() -> Self {
        let mut add = Registrar(Registry::with_prefix("spcd"));
        let build = Info::new([
            ("version", env!("CARGO_PKG_VERSION")),
            ("arch", std::env::consts::ARCH),
        ]);
        (add.0).register("build", "Version and architecture of the program", build);
        Self {
            pass_rows: add.count("pass_rows", "Rows of the state that passes changed at once"),
            pass_work: add.count("pass_jobs", "Jobs that passes started"),
            transactions: add.count("transactions", "Committed transactions of the writer"),
            statements: add.count("statements", "Statements in the writer's transactions"),
            written_connections: add.count(
                "written_connections",
                "Connections in the writer's transactions",
            ),
            written_tables: add.count("written_tables", "Tables in the writer's transactions"),
            notifications: add.count("notifications", "Notifications received on the channel"),
            changes: add.count("notified_changes", "Changes in the received notifications"),
            resyncs: add.count(
                "resyncs",
                "Received notifications that ask clients to read everything again",
            ),
            leads: add.count(
                "leads_taken",
                "Number of times that this process became the leader",
            ),
            reconnects: add.count(
                "reconnects",
                "Number of times that the database was lost and tried again",
            ),
            passes: add.time(
                "pass_duration",
                "Duration of a pass: observation, plan and immediate writes",
            ),
            asks: add.time(
                "import_duration",
                "Duration of a request to a source for its tables",
            ),
            lag: add.time(
                "file_to_ready",
                "Time from noticing a changed file until a connection follows it",
            ),
            jobs: add.jobs(),
            wrapper_crashes: add.crashes(),
            registry: add.0,
        }
    }
}

/// Updates the metrics and writes to the log.
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
            observation,
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
                observation_micros = observation.as_micros() as u64,
                micros = took.as_micros() as u64,
                "pass ended"
            );
        }
        Observation::Worked { outcome, took } => {
            let jobs = metrics.jobs.get_or_create(&OutcomeLabel { outcome });
            jobs.observe(took.as_secs_f64());
        }
        Observation::Asked { took } => metrics.asks.observe(took.as_secs_f64()),
        Observation::Wrote(Committed {
            connections,
            tables,
            statements,
            ..
        }) => {
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
        Observation::Crashed { plugin } => {
            let plugin = plugin.to_owned();
            let crashes = &metrics.wrapper_crashes;
            crashes.get_or_create(&PluginLabel { plugin }).inc();
        }
        Observation::Lost { why, pause } => {
            metrics.reconnects.inc();
            tracing::warn!(pause_ms = pause.as_millis() as u64, "{why}; trying again");
        }
    }
}

/// Appends the metrics in the OpenMetrics text format, without its end marker.
///
/// # Errors
/// None: writing to a `String` cannot fail.
pub fn encode(text: &mut String) -> std::fmt::Result {
    encode_registry(text, &METRICS.registry)
}
