connection "" {
  plugin = "postgres"
}
connection "public" {
  plugin = "postgres"
}
connection "PG_temp" {
  plugin = "postgres"
}
connection "spcd_x" {
  plugin = "postgres"
}
connection "steampipe_x" {
  plugin = "postgres"
}
connection "a\u0000b" {
  plugin = "postgres"
}
connection "sixty-three-bytes-are-allowed-and-this-is-exactly-that-many-byt" {
  plugin = "postgres"
}
connection "sixty-four-bytes-are-one-too-many-and-this-name-is-just-that-lon" {
  plugin = "postgres"
}
connection "Zoë's \"db\"; drop table x" {
  plugin = "postgres"
}
connection "twice" {
  plugin = "postgres"
}
connection "twice" {
  plugin = "postgres"
  dbname = "other"
}
connection "nul" {
  plugin = "postgres"
  dbname = "a\u0000b"
}
