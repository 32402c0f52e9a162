#### before
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
  import_schema = "disabled"
}
#### meanwhile
answer sales t(id integer)
#### now
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
}
