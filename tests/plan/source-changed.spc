#### before
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
}
#### meanwhile
ask sales
tables sales orders(id integer, note text, gone date) old(x integer)
answer sales orders(id bigint, note text, fresh jsonb) new(y integer)
#### now
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
}
