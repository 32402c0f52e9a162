# A Postgres database that becomes the schema "shop". The demo gives SHOP_HOST and SHOP_PORT.
connection "shop" {
  plugin = "postgres"
  host   = env("SHOP_HOST")
  port   = env("SHOP_PORT")
  dbname = "shop"
  user   = "shop"
}

# The same database again, with two of its tables.
connection "ledger" {
  plugin = "postgres"
  host   = env("SHOP_HOST")
  port   = env("SHOP_PORT")
  dbname = "shop"
  user   = "shop"

  import {
    tables = ["pgbench_branches", "pgbench_tellers"]
  }
}
