#### before
#### meanwhile
extension postgres_fdw available
answer sales orders(id integer, total numeric(10,2)) people(name text)
#### now
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
  password = "hunter2"
}
