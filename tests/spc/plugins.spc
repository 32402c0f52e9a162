plugin "aws_low" {
  source        = "aws"
  memory_max_mb = 512
  limiter "all" {
    max_concurrency = 2
  }
}
plugin "aws_high" {
  source = "turbot/aws@latest"
}
plugin "oracle" {
  extension        = "oracle_fdw"
  server           = ["dbserver"]
  mapping          = ["user", "password"]
  public           = ["dbserver"]
  schema_attribute = "schema"
  required         = ["dbserver"]
}
plugin "broken" {
  extention = "x"
}

connection "ambiguous" {
  plugin = "aws"
}
connection "chosen" {
  plugin  = plugin.aws_low
  regions = ["*"]
}
connection "missing" {
  plugin = plugin.aws_medium
}
connection "secret" {
  plugin     = plugin.aws_high
  secret_key = "SECRET"
}
connection "visible" {
  plugin                = plugin.aws_high
  secret_key            = "SECRET"
  allow_visible_secrets = true
}
connection "ora" {
  plugin   = "oracle"
  dbserver = "//ora/x"
  user     = "SECRET"
  schema   = "HR"
}
connection "ora_incomplete" {
  plugin = "oracle"
  dbsrver = "x"
}
connection "uses_broken" {
  plugin = "broken"
}
connection "versioned" {
  plugin = "postgres@1.2"
}
connection "url" {
  plugin            = "postgres"
  connection_string = "postgresql://me:SECRET@db:5433/shop?sslmode=require"
}
connection "url_and_host" {
  plugin            = "postgres"
  host              = "db"
  connection_string = "host=db2 password=SECRET bogus=SECRET"
}
connection "any" {
  plugin  = "fdw"
  wrapper = "dummy"
  server {
    a = 1
  }
  mapping {
    b = "SECRET"
  }
}
