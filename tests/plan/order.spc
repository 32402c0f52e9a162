#### before
connection "known" {
  plugin = "postgres"
  host   = "db.example"
}
connection "named" {
  plugin = "postgres"
  host   = "db.example"
}
connection "gone" {
  plugin = "postgres"
  host   = "db.example"
}
#### meanwhile
ask known
urgent named
failed b_failed now no route to host
#### now
options "database" {
  search_path = "d_on_path,c_on_path,public"
}
connection "known" {
  plugin = "postgres"
  host   = "db.example"
}
connection "named" {
  plugin = "postgres"
  host   = "db.example"
}
connection "a_elsewhere" {
  plugin = "postgres"
  host   = "db.example"
}
connection "b_failed" {
  plugin = "postgres"
  host   = "db.example"
}
connection "c_on_path" {
  plugin = "postgres"
  host   = "db.example"
}
connection "d_on_path" {
  plugin = "postgres"
  host   = "db.example"
}
