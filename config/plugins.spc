# The plugin definitions that ship with spcd: how connections of a plugin become Postgres objects.
#
#   extension, wrapper   what brings the foreign data wrapper, and its name
#   package              what to install where the extension is not available
#   requires             other extensions whose types its tables may have: created where available
#   server, mapping      attributes that become options of the server, and of the user mapping
#                        (always secret): a list of names, or { attribute = "option" }
#   public               attributes whose values may be shown; all others are secret
#   required             attributes that must be given
#   defaults             options of the server where the connection gives none
#   ask                  options of the server that hold only while the source is asked
#   import_options       options of the import statement itself
#   since                attributes that not every version of the wrapper takes: { name = "version" }
#   paths                attributes that hold paths: relative ones begin at the file's directory
#   schema               the remote schema to import; schema_attribute: the attribute that names it
#   schema_mode          "dynamic": each connection is asked for its tables; "static": all
#                        connections of the plugin share one set of tables
#   probe                how one finds out whether a source is there: "import" (a table that does
#                        not exist; the default), "files" (they are opened) or "none"
#   column_name          the wrapper's option for a column's remote name
#   positional           columns are mapped by position
#   connection_string    an attribute that takes a libpq connection string
#   values               what attributes must be: "host", "port", "flag" (true or false), "seconds"
#                        and "milliseconds" (10, "500ms", "5m"), "path" (an absolute one, on the
#                        host of the database), or words between |
#   words                attributes in plain words: the options of the server that each means. {ms}
#                        and {s} stand for a time
#   join                 options to which words add: what stands before the first, and between two
#   lacks                attributes that the wrapper has no option for, with what to do instead
#   tunnel               which options a tunnel through ssh changes: { address, host, port }, and
#                        the default_port of the source
#   aliases              what else people call the plugin, to tell them its name
#   synonyms             what other programs call an attribute: { their_name = "attribute" }
#   needs                attributes (or "attribute=value") of no use without another, or one of
#                        several between |
#
# A `plugin` block of your own with the same label changes what it says and keeps the rest.

plugin "postgres" {
  extension   = "postgres_fdw"
  wrapper     = "postgres_fdw"
  package     = "Debian's package postgresql-contrib"
  schema_mode = "dynamic"
  schema      = "public"
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
    # INSERT, UPDATE and DELETE are refused by the first, TRUNCATE by the second, and what a view or
    # function over there would write by the third.
    read_only = {
      updatable   = "false"
      truncatable = "false"
      options     = "-c default_transaction_read_only=on"
    }
    statement_timeout = { options = "-c statement_timeout={ms}" }
  }
  join = { options = ["", " "] }

  # `host` stays as it is: certificates and password files go by it.
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
    # Without one libpq takes a socket of the hub's own machine, which is hardly meant then.
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
  # Postgres 15 cannot be interrupted while postgres_fdw connects.
  defaults = { connect_timeout = 10 }
  ask      = { keep_connections = "off" }
  since    = { load_balance_hosts = "Postgres 16", parallel_abort = "Postgres 16" }
}

plugin "mysql" {
  extension   = "mysql_fdw"
  wrapper     = "mysql_fdw"
  package     = "Debian's package postgresql-NN-mysql-fdw"
  schema_mode = "dynamic"

  # What MySQL calls a database is what is imported.
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
  # On a hub with another encoding than UTF8 the wrapper's own default holds.
  defaults = { character_set = "utf8mb4", host = "127.0.0.1" }
  since    = { mysql_default_file = "mysql_fdw 2.9.2", truncatable = "mysql_fdw 2.9.0" }

  words = {
    # The wrapper has no option for it, so the source itself refuses INSERT, UPDATE, DELETE and
    # TRUNCATE. What MariaDB calls it and what MySQL does: each reads its own comment only.
    read_only         = { init_command = "/*M!tx_read_only=1*/ /*!50720 transaction_read_only=1*/" }
    # MySQL's is for SELECT alone.
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

  # An enum would need a type of its own in Postgres, which nobody has made.
  import_options = { import_enum_as_text = "true" }
}

plugin "mssql" {
  extension   = "tds_fdw"
  wrapper     = "tds_fdw"
  package     = "Debian's package postgresql-NN-tds-fdw"
  schema_mode = "dynamic"
  schema      = "dbo"
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
  wrapper     = "ogr_fdw"
  package     = "Debian's package postgresql-NN-ogr-fdw"
  schema_mode = "dynamic"
  schema      = "ogr_all"
  column_name = "column_name"

  schema_attribute = "layers"

  # A datasource is a path, a URL or a driver's own string, which may hold a password.
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

  # One table a file; spcd reads their heads and infers the columns.
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
# `column_name`, and the blocks `server` and `mapping` with options as the wrapper wants them.
plugin "fdw" {
  schema_mode = "dynamic"
  verbatim    = true
  public      = ["wrapper", "extension", "schema", "column_name"]
}

# Whatever nobody else defines may be a Steampipe plugin's standalone extension. {name} is the
# plugin's name. Its server option is the connection's body as HCL, which every role can read.
plugin "*" {
  extension   = "steampipe_postgres_{name}"
  wrapper     = "steampipe_postgres_{name}"
  package     = "https://hub.steampipe.io/plugins/{org}/{name}"
  # Steampipe creates it, too: tables of some plugins have columns of its type.
  requires    = ["ltree"]
  schema_mode = "static"
  schema      = "{name}"
  body        = "config"
  # What it imports is its own list of tables, for which it asks nobody.
  probe       = "none"
  public = [
    "account", "account_id", "cloud", "config_path", "default_region", "domain",
    "email", "environment", "host", "ignore_error_codes", "ignore_error_messages",
    "organization", "paths", "port", "profile", "project", "project_id", "region", "regions",
    "site", "subscription_id", "tenant_id", "workspace",
  ]
  # These ask each source for its tables.
  dynamic = [
    "airtable", "csv", "googlesheets", "kubernetes", "ldap", "openapi", "prometheus",
    "salesforce", "servicenow",
  ]
}
