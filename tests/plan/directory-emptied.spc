#### before
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
}
#### meanwhile
status sales pending
doubt conf.d
#### now
