# The daemon's own settings. A change is noticed; what needs a restart, the log says.

# The database that is to hold the schemas, as a URL or a keyword string. Without it spcd keeps a
# private Postgres in state_dir (install the package postgresql for it).
#
# database = "postgres://spcd@localhost/warehouse?sslmode=verify-full&sslrootcert=/etc/ssl/certs/ca.pem"
# database = credential("database")

# Where the files with connections are.
#
# config = ["/etc/spcd/conf.d"]

# Where the private Postgres is kept.
#
# state_dir = "/var/lib/spcd"

# Where wrappers run that may crash or that have secrets in their options: "private" (a second
# Postgres beside the first, which starts when a connection uses it; the default beside a hub on this
# machine), a URL, or "off". See docs/gateway.md.
#
# gateway = "private"

# A name of its own, where several daemons keep databases of one server.
#
# instance = "spcd"

# What is logged: error, warn, info, debug, trace, or a filter like "info,spcd=debug".
#
# log = "info"

# Where the page, the API and the metrics are: an address, "unix:/path" or "off". Whoever changes
# something there shows the token.
#
# http            = "127.0.0.1:7733"
# http_token_file = "/etc/spcd/credentials/http_token"
