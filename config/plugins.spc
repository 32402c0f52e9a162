# Shipped plugin definitions: how connections of a plugin become Postgres objects.
#
#   extension, wrapper   extension that provides the foreign data wrapper, and the wrapper's name
#   package              package or page to install if the extension is not available
#   requires             further extensions whose types its tables may have; created if available
#   server, mapping      attributes that become options of the server, and of the user mapping
#                        (always secret): a list of names, or { attribute = "option" }
#   public               attributes whose values may be shown; all others are secret
#   required             required attributes
#   defaults             options of the server if the connection gives none
#   ask                  options of the server that are set only during an import
#   import_options       options of the IMPORT FOREIGN SCHEMA statement
#   since                minimum wrapper version of attributes: { name = "version" }
#   paths                attributes that hold paths: relative ones begin at the file's directory
#   schema               remote schema to import; schema_attribute: attribute that names it
#   schema_mode          "dynamic": each connection is imported by itself; "static": all
#                        connections of the plugin share one set of tables
#   probe                method of probing a source: "import" (of a table that does not exist; the
#                        default), "files" (opens them) or "none"
#   table_name           table option for the remote name
#   column_name          column option for the remote name
#   positional           columns are mapped by position
#   connection_string    attribute that takes a libpq connection string
#   values               kinds of values: "host", "port", "flag" (true or false), "seconds"
#                        and "milliseconds" (10, "500ms", "5m"), "path" (an absolute one, on the
#                        host of the database), or words between |
#   words                attributes that expand to options of the server; {ms} and {s} stand for a
#                        time
#   join                 options that several words contribute to: the prefix, and the separator
#   lacks                attributes that the wrapper does not support, with a hint
#   tunnel               options that a tunnel through ssh changes: { address, host, port }, and
#                        the default_port of the source
#   aliases              other names of the plugin, for "did you mean"
#   synonyms             names of attributes in other programs: { their_name = "attribute" }
#   gateway              true: the wrapper runs in the gateway, where there is one
#   lanes                number of sessions of the gateway over which the plugin's connections are
#                        spread, 1 to 64
#   needs                attributes (or "attribute=value") that require another one, or one of
#                        several separated by |
#
# Your own `plugin` block with the same label changes the attributes that it gives; others stay.

plugin "postgres" {
  extension   = "postgres_fdw"
  wrapper     = "postgres_fdw"
  package     = "Debian's package postgresql-contrib"
  schema_mode = "dynamic"
  schema      = "public"
  table_name  = "table_name"
  column_name = "column_name"

  schema_attribute  = "schema"
  connection_string = "connection_string"

  aliases  = ["postgresql", "pg", "pgsql", "psql", "postgres_fdw"]
  synonyms = {
    username = "user",   login = "user",          role = "user"
    database = "dbname", db = "dbname",           database_name = "dbname"
    pass = "password",   passwd = "password",     pwd = "password"
    server = "host",     hostname = "host",       address = "host"
    url = "connection_string", uri = "connection_string", dsn = "connection_string"
    ssl = "sslmode",     ssl_mode = "sslmode",    sslca = "sslrootcert"
    ssl_ca = "sslrootcert", timeout = "connect_timeout", searchpath = "schema"
  }

  words = {
    # The first option refuses INSERT, UPDATE and DELETE, the second TRUNCATE, and the third writes
    # by views and functions of the source.
    read_only = {
      updatable   = "false"
      truncatable = "false"
      options     = "-c default_transaction_read_only=on"
    }
    statement_timeout = { options = "-c statement_timeout={ms}" }
  }
  join = { options = ["", " "] }

  # `host` stays: certificates and password files are matched by it.
  tunnel = { address = "hostaddr", host = "host", port = "port", default_port = "5432" }

  values = {
    connect_timeout   = "seconds"
    host              = "host"
    passfile          = "path"
    port              = "port"
    read_only         = "flag"
    sslcert           = "path"
    sslcrl            = "path"
    sslcrldir         = "path"
    sslkey            = "path"
    sslmode           = "disable|allow|prefer|require|verify-ca|verify-full"
    sslrootcert       = "path"
    statement_timeout = "milliseconds"
  }
  needs = {
    "sslmode=verify-ca"   = "sslrootcert"
    "sslmode=verify-full" = "sslrootcert"
    # Without a host libpq would use a socket on the hub's machine.
    password = "host|hostaddr|service"
    port     = "host|hostaddr|service"
    sslmode  = "host|hostaddr|service"
    user     = "host|hostaddr|service"
  }

  server = [
    "application_name", "async_capable", "batch_size", "channel_binding", "connect_timeout",
    "dbname", "extensions", "fdw_startup_cost", "fdw_tuple_cost", "fetch_size", "gssencmode",
    "gsslib", "host", "hostaddr", "keep_connections", "keepalives", "keepalives_count",
    "keepalives_idle", "keepalives_interval", "krbsrvname", "load_balance_hosts", "options",
    "parallel_abort", "parallel_commit", "passfile", "port", "requirepeer", "service",
    "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcompression", "sslcrl",
    "sslcrldir", "sslmode", "sslrootcert", "sslsni", "target_session_attrs",
    "tcp_user_timeout", "truncatable", "updatable", "use_remote_estimate",
  ]
  mapping = ["user", "password", "password_required", "sslcert", "sslkey", "sslpassword"]
  public = [
    "application_name", "async_capable", "batch_size", "channel_binding", "connect_timeout",
    "dbname", "extensions", "fdw_startup_cost", "fdw_tuple_cost", "fetch_size", "gssencmode",
    "gsslib", "host", "hostaddr", "keep_connections", "keepalives", "keepalives_count",
    "keepalives_idle", "keepalives_interval", "krbsrvname", "load_balance_hosts",
    "parallel_abort", "parallel_commit", "passfile", "password_required", "port", "requirepeer",
    "read_only", "schema", "service", "ssl_max_protocol_version", "ssl_min_protocol_version",
    "sslcompression", "sslcrl", "sslcrldir", "sslmode", "sslrootcert", "sslsni",
    "statement_timeout", "target_session_attrs", "tcp_user_timeout", "truncatable", "updatable",
    "use_remote_estimate",
  ]
  # Postgres 15 cannot be interrupted while postgres_fdw connects. An aggregator reads all its members
  # at once if their servers are async_capable.
  defaults = { async_capable = true, connect_timeout = 10 }
  ask      = { keep_connections = "off" }
  since    = { load_balance_hosts = "Postgres 16", parallel_abort = "Postgres 16" }
}

plugin "mysql" {
  extension   = "mysql_fdw"
  wrapper     = "mysql_fdw"
  package     = "Debian's package postgresql-NN-mysql-fdw"
  schema_mode = "dynamic"

  # There is no option for a column's name in the source.
  table_name  = "table_name"

  # MySQL's database is the remote schema.
  schema_attribute = "database"

  server = [
    "character_set", "fetch_size", "host", "init_command", "mysql_default_file", "port",
    "reconnect", "secure_auth", "sql_mode", "ssl_ca", "ssl_capath", "ssl_cert", "ssl_cipher",
    "ssl_key", "truncatable", "use_remote_estimate",
  ]
  mapping  = { user = "username", username = "username", password = "password" }
  required = ["database"]
  aliases  = ["mariadb", "mysql_fdw", "maria"]
  synonyms = {
    dbname = "database", db = "database",     schema = "database"
    pass = "password",   passwd = "password", pwd = "password"
    server = "host",     hostname = "host",   address = "host"
    charset = "character_set", ssl_mode = "sslmode"
  }
  public = [
    "character_set", "database", "fetch_size", "host", "mysql_default_file", "port", "read_only",
    "reconnect", "secure_auth", "sql_mode", "ssl_ca", "ssl_capath", "ssl_cert", "ssl_cipher",
    "statement_timeout", "truncatable", "use_remote_estimate",
  ]
  # On a hub with another encoding than UTF8 the wrapper's default applies.
  defaults = { character_set = "utf8mb4", host = "127.0.0.1" }
  since    = { mysql_default_file = "mysql_fdw 2.9.2", truncatable = "mysql_fdw 2.9.0" }

  words = {
    # The wrapper has no option for it, so the source itself refuses INSERT, UPDATE, DELETE and
    # TRUNCATE. MariaDB and MySQL have different variables: each reads only its own comment.
    read_only         = { init_command = "/*M!tx_read_only=1*/ /*!50720 transaction_read_only=1*/" }
    # MySQL's variable applies to SELECT only.
    statement_timeout = { init_command = "/*M!max_statement_time={s}*/ /*!50720 max_execution_time={ms}*/" }
  }
  join = { init_command = ["SET ", ", "] }

  tunnel = { address = "host", host = "host", port = "port", default_port = "3306" }

  values = {
    host              = "host"
    port              = "port"
    read_only         = "flag"
    ssl_ca            = "path"
    ssl_capath        = "path"
    ssl_cert          = "path"
    ssl_key           = "path"
    statement_timeout = "milliseconds"
  }
  lacks = {
    connect_timeout = "limit how long all of an import may take: `import { timeout = \"10s\" }`"
    sslmode         = "with `ssl_ca` the connection is encrypted and the server's certificate is checked"
  }
  needs = { ssl_cert = "ssl_key", ssl_key = "ssl_cert" }

  # An enum would need its own type in Postgres, which does not exist.
  import_options = { import_enum_as_text = "true" }
}

plugin "mssql" {
  extension   = "tds_fdw"
  wrapper     = "tds_fdw"
  package     = "Debian's package postgresql-NN-tds-fdw"
  schema_mode = "dynamic"
  schema      = "dbo"
  table_name  = "table_name"
  column_name = "column_name"

  schema_attribute = "schema"

  tunnel = { address = "servername", host = "servername", port = "port", default_port = "1433" }

  server = {
    host                = "servername"
    servername          = "servername"
    port                = "port"
    database            = "database"
    dbuse               = "dbuse"
    language            = "language"
    character_set       = "character_set"
    tds_version         = "tds_version"
    msg_handler         = "msg_handler"
    fdw_startup_cost    = "fdw_startup_cost"
    fdw_tuple_cost      = "fdw_tuple_cost"
    row_estimate_method = "row_estimate_method"
    use_remote_estimate = "use_remote_estimate"
  }
  mapping = { user = "username", username = "username", password = "password" }
  aliases  = ["sqlserver", "sql_server", "sql-server", "tds", "tds_fdw", "sybase"]
  synonyms = {
    dbname = "database", db = "database",       server = "host"
    hostname = "host",   address = "host",      charset = "character_set"
    pass = "password",   passwd = "password",   pwd = "password"
  }
  values = { port = "port" }
  public = [
    "character_set", "database", "dbuse", "fdw_startup_cost", "fdw_tuple_cost", "host",
    "language", "msg_handler", "port", "row_estimate_method", "schema", "servername",
    "tds_version", "use_remote_estimate",
  ]
}

plugin "ogr" {
  extension   = "ogr_fdw"
  gateway     = true
  wrapper     = "ogr_fdw"
  package     = "Debian's package postgresql-NN-ogr-fdw"
  schema_mode = "dynamic"
  schema      = "ogr_all"
  table_name  = "layer"
  column_name = "column_name"

  schema_attribute = "layers"

  # A datasource is a path, a URL or a driver's string, which may contain a password.
  aliases  = ["gdal", "ogr_fdw", "shapefile", "geopackage"]
  synonyms = { path = "datasource", file = "datasource", source = "datasource", encoding = "character_encoding", driver = "format" }
  server = ["character_encoding", "config_options", "datasource", "format", "open_options", "updateable"]
  required = ["datasource"]
  public   = ["character_encoding", "format", "layers", "updateable"]
  paths    = ["datasource"]
}

plugin "csv" {
  extension   = "file_fdw"
  wrapper     = "file_fdw"
  package     = "Debian's package postgresql-contrib"
  schema_mode = "dynamic"
  positional  = true

  # One table per file; spcd reads the files and infers the columns.
  aliases  = ["file", "file_fdw", "tsv"]
  synonyms = {
    delimiter = "separator", delim = "separator", sep = "separator"
    path = "paths",          file = "paths",      files = "paths",  filename = "paths"
    charset = "encoding",    headers = "header",  null_string = "null"
  }
  files    = ["paths", "header", "separator", "comment", "encoding", "null"]
  probe    = "files"
  required = ["paths"]
  public   = ["paths", "header", "separator", "comment", "encoding", "null"]
  paths    = ["paths"]
}

# Any wrapper: `wrapper`, `extension` (if it has another name), the remote `schema`,
# `table_name`, `column_name`, and the blocks `server` and `mapping` with options as the wrapper wants them.
plugin "fdw" {
  schema_mode = "dynamic"
  verbatim    = true
  public      = ["wrapper", "extension", "schema", "table_name", "column_name"]
}

# An undefined plugin may be a Steampipe plugin's standalone extension. {name} is the
# plugin's name. Its server option is the connection's body as HCL, which every role can read.
plugin "*" {
  extension   = "steampipe_postgres_{name}"
  wrapper     = "steampipe_postgres_{name}"
  package     = "https://hub.steampipe.io/plugins/{org}/{name}"
  # Tables of some plugins have columns of its type.
  requires    = ["ltree"]
  schema_mode = "static"
  schema      = "{name}"
  body        = "config"
  gateway     = true
  # The extension contains its list of tables and does not contact a source for it.
  probe       = "none"
  public = [
    "account", "account_id", "cloud", "config_path", "default_region", "domain",
    "email", "environment", "host", "ignore_error_codes", "ignore_error_messages",
    "organization", "paths", "port", "profile", "project", "project_id", "region", "regions",
    "site", "subscription_id", "tenant_id", "workspace",
  ]
  # The tables of these plugins depend on the source.
  dynamic = [
    "airtable", "csv", "googlesheets", "kubernetes", "ldap", "openapi", "prometheus",
    "salesforce", "servicenow",
  ]
}
