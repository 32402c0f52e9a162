#### before
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
}
#### meanwhile
#### now
# a comment

connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
}
