# Connections of this machine. Each file *.spc here, and below here, is read; what you save is in
# the database within moments. `spcd check` says what is wrong, `spcd status` where things stand.
# The language: /usr/share/doc/spcd/docs/spc.md. The plugins: /usr/share/doc/spcd/docs/plugins.md.
#
# Files here may hold secrets, so only root and the service can read them. Better still, keep
# passwords out of them: see credential() below.

# Another Postgres: its schema public becomes the schema "sales".
#
# connection "sales" {
#   plugin   = "postgres"
#   host     = "sales.example.com"
#   dbname   = "sales"
#   user     = "reader"
#   password = credential("sales")
# }
#
# credential("sales") is a file that systemd hands to the service alone:
#
#   install -D -m 600 /dev/stdin /etc/spcd/credentials/sales     # type the password, then Ctrl-D
#   systemctl edit spcd                                          # [Service]
#                                                                # LoadCredential=sales:/etc/spcd/credentials/sales
#   systemctl restart spcd

# Some tables only, asked for changes every hour:
#
# connection "orders" {
#   plugin = "postgres"
#   host   = "sales.example.com"
#   dbname = "sales"
#   user   = "reader"
#
#   import {
#     schema           = "shop"
#     tables           = ["order*"]
#     exclude          = ["*_old"]
#     refresh_interval = 3600
#   }
# }

# MySQL (apt-get install postgresql-15-mysql-fdw):
#
# connection "wiki" {
#   plugin   = "mysql"
#   host     = "wiki.example.com"
#   database = "wiki"
#   username = "reader"
#   password = credential("wiki")
# }

# The tables of several connections as one:
#
# connection "all_sales" {
#   type        = "aggregator"
#   plugin      = "postgres"
#   connections = ["sales*"]
# }

# A connection for each account in a file: {"prod": {"host": "…", "dbname": "…"}, …}. Saving the
# file adds and removes connections.
#
# connection "account" {
#   for_each = jsondecode(file("accounts.json"))
#   name     = "account_${each.key}"
#   plugin   = "postgres"
#   host     = each.value.host
#   dbname   = each.value.dbname
#   user     = "reader"
#   password = credential("account_${each.key}")
# }
