# Settings of the daemon, which applies changes at once. The log names settings that need a restart.

# Database for the schemas, as a URL or a keyword string. The default is a private Postgres in
# state_dir, which needs the package postgresql.
#
# database = "postgres://spcd@localhost/warehouse?sslmode=verify-full&sslrootcert=/etc/ssl/certs/ca.pem"
# database = credential("database")

# Directories of the files with connections.
#
# config = ["/etc/spcd/conf.d"]

# Directory of the private Postgres.
#
# state_dir = "/var/lib/spcd"

# Where wrappers run that may crash or that have secrets in their options: "private" (a second
# Postgres beside the first, which starts when a connection uses it; the default beside a hub on this
# machine), a URL, or "off". See docs/gateway.md.
#
# gateway = "private"

# Name of this daemon, if several use the same database.
#
# instance = "spcd"

# Log filter: error, warn, info, debug, trace, or a filter like "info,spcd=debug".
#
# log = "info"

# Address of the page, the API and the metrics: an address, "unix:/path" or "off". Actions require
# the token.
#
# http            = "127.0.0.1:7733"
# http_token_file = "/etc/spcd/credentials/http_token"
