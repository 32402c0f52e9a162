# Many connections from one block.
connection "shop" {
  for_each = jsondecode(file("accounts.json"))
  name     = "shop_${each.key}"
  plugin   = "postgres"
  host     = each.value.host
  port     = each.value.port
  password = each.value.password
}

connection "listed" {
  for_each = ["a", "b", 3]
  name     = "listed_${each.key}"
  plugin   = "postgres"
  host     = "${each.value}.example.com"
  labels {
    team = upper(each.key)
  }
}

connection "all" {
  plugin      = "postgres"
  type        = "aggregator"
  connections = ["listed_*"]
}

connection "teams" {
  for_each    = { ab = ["listed_a", "listed_b"], b = ["listed_b"] }
  name        = "team_${each.key}"
  plugin      = "postgres"
  type        = "aggregator"
  connections = each.value
}

# A mistake of the block is told once.
connection "mistake" {
  for_each = ["m", "n"]
  name     = "mistake_${each.key}"
  plugin   = "postgres"
  hots     = "h"
}

# Two elements of one name, and one that another block has.
connection "twins" {
  for_each = ["a", "A", "b"]
  name     = "twin_${lower(each.key)}"
  plugin   = "postgres"
  host     = "h"
}

connection "twin_b" {
  plugin = "postgres"
  host   = "h"
}

connection "half" {
  for_each = jsondecode(file("half.json"))
  name     = "half_${each.key}"
  plugin   = "postgres"
  hots     = "h"
  host     = each.value.host
}

connection "scalar" {
  for_each = "eu, us"
  name     = "scalar_${each.key}"
  plugin   = "postgres"
}

connection "nothing" {
  for_each = null
  name     = "nothing_${each.key}"
  plugin   = "postgres"
}

connection "constant" {
  for_each = ["a", "b"]
  name     = "constant"
  plugin   = "postgres"
}

connection "nameless" {
  for_each = ["a", "b"]
  plugin   = "postgres"
}

connection "objects" {
  for_each = [{ name = "a" }, "b", { name = "c" }]
  name     = "objects_${each.key}"
  plugin   = "postgres"
  host     = "h"
}

connection "partly" {
  for_each = { a = { name = "x" }, b = {}, c = { name = [1] }, d = {} }
  name     = each.value.name
  plugin   = "postgres"
  host     = "h"
}

connection "no_loop" {
  plugin = "postgres"
  host   = each.key
}

connection "self" {
  for_each = each.key
  name     = "self_${each.key}"
  plugin   = "postgres"
}

connection "unread" {
  for_each = ["u", "v"]
  name     = "unread_${each.key}"
  plugin   = "postgres"
  host     =
}
