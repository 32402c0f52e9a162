#### before
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
}
connection "crm" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
}
#### meanwhile
doubt conf.d conf.d: the directory is missing
#### now
