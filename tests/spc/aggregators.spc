connection "one" {
  plugin        = "postgres"
  import_schema = "disabled"
}
connection "two" {
  plugin = "postgres"
  import {
    schema           = "sales"
    tables           = ["a*"]
    exclude          = ["[b"]
    refresh_interval = "5 parsecs"
    tabels           = []
  }
  labels {
    team = "x"
  }
  options "connection" {
    cache = true
  }
}
connection "all" {
  plugin      = "postgres"
  type        = "aggregator"
  connections = ["t*", "one"]
}
connection "a" {
  plugin      = "postgres"
  type        = "aggregator"
  connections = ["b"]
}
connection "b" {
  plugin      = "postgres"
  type        = "aggregator"
  connections = ["a"]
}
connection "none" {
  plugin      = "postgres"
  type        = "aggregator"
  connections = ["zzz*"]
  host        = "x"
}
connection "kind" {
  plugin      = "postgres"
  type        = "agregator"
  connections = ["*"]
}
options "database" {
  search_path_prefix = "two, all"
  serch_path         = "x"
}
