#### before
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
}
#### meanwhile
status sales error conf.d/case.spc:3:12: something
#### now
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
}
