//! Names of connection parameters that a diagnostic may show.

/// Parameters of libpq and of other drivers. Any other name may be a part of a secret value.
const NAMES: [&str; 44] = [
    "application_name",
    "applicationname",
    "charset",
    "client_encoding",
    "connect_timeout",
    "connection_limit",
    "currentschema",
    "db",
    "database",
    "dbname",
    "encoding",
    "fallback_application_name",
    "gssdelegation",
    "host",
    "hostaddr",
    "krbsrvname",
    "loadbalancehosts",
    "max_protocol_version",
    "min_protocol_version",
    "options",
    "passfile",
    "passwd",
    "password",
    "pgbouncer",
    "pool_max_conns",
    "pool_min_conns",
    "pool_timeout",
    "port",
    "read_only",
    "replication",
    "require_auth",
    "schema",
    "search_path",
    "server",
    "socket_timeout",
    "ssl",
    "sslaccept",
    "sslcertmode",
    "sslnegotiation",
    "statement_timeout",
    "timezone",
    "uselibpqcompat",
    "user",
    "username",
];

/// Whether a parameter's name may be shown.
pub(super) fn is_public(name: &str) -> bool {
    NAMES.contains(&name.to_lowercase().as_str())
}
