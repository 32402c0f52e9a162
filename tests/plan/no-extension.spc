#### before
#### meanwhile
extension postgres_fdw missing
#### now
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
}
