locals {
  domain = "example.com"
  hosts  = { for name in local.names : name => "${name}.${local.domain}" }
  names  = ["eu", "us"]
  port   = 5432
  zone   = 1
}

connection "one" {
  plugin = "postgres"
  host   = local.hosts.eu
  port   = local["port"] + 1
  dbname = "%{ for local in ["own"] }${local}%{ endfor }"
}

connection "many" {
  for_each = local.hosts
  name     = "many_${each.key}"
  plugin   = "postgres"
  host     = each.value
}

# What is wrong costs what uses it.
locals {
  a      = local.b
  b      = "${local.c}"
  c      = [for x in [1] : local.a]
  itself = local.itself
  after  = local.a
  zone   = 2
  type   = bogus
  unset  = env("UNSET")
  block {
  }
}

locals "label" {
  x = 1
}

connection "circular" {
  plugin = "postgres"
  host   = local.a
}

connection "twice" {
  plugin = "postgres"
  port   = local.zone
}

connection "unknown" {
  plugin = "postgres"
  host   = local.domein
  dbname = local
  user   = try(local.nothing, "x")
}

connection "looped" {
  for_each = local.unset
  name     = "looped_${each.key}"
  plugin   = "postgres"
}
