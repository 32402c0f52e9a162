#### before
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
  port = 1
}
#### meanwhile
tables sales orders(id integer, note text) people(id integer)
view sales orders.note public.v
answer sales orders(id integer, fresh text) people(id bigint)
#### now
connection "sales" {
  plugin = "postgres"
  host   = "db.example"
  dbname = "shop"
  user   = "reader"
  port = 2
}
