connection "a" {
  plugin   = "postgresql"
  password = "SECRET"
}
connection "b" {
  plugin = "pg"
}
connection "c" {
  plugin = "Postgres"
}
connection "d" {
  plugin = "mariadb"
}
connection "e" {
  plugin = "sqlserver"
}
connection "f" {
  plugin = "CSV"
}
connection "g" {
  plugin = "postgers"
}
connection "oci_is_steampipes" {
  plugin = "oci"
}
connection "h" {
  plugin   = "postgres"
  host     = "db.example:5432"
  username = "SECRET"
  database = "x"
}
connection "i" {
  plugin    = "csv"
  paths     = ["/x/*.csv"]
  delimiter = ";"
}
connection "j" {
  plugin   = "postgres"
  host     = "db.example"
  password = "SECRET${ss"
}
connection "k" {
  plugin = "postgres"
  host   = "${DB_HOST}"
  dbname = DB_NAME
}
connection "l" {
  plugin = "postgres"
  host   = "h"
  user   = ​"x"
}
connection "l2" {
  plugin = "postgres"
  dbname​ = "x"
}
connection "l3" {
  plugin = "postgres"
  host   = "db.example​"
}
connection "m" {
  plugin            = "postgres"
  connection_string = "host=h user=u schema=s SECRET=x pgbouncer=true"
}
connection "n" {
  plugin      = "postgres"
  host        = "h"
  sslmode     = "verify-full"
  sslrootcert = "root.pem"
}
connection "o" {
  plugin            = "postgres"
  connection_string = "host=h sslmode=verify-full sslrootcert=certs/root.pem"
}
connection "p" {
  plugin   = "postgres"
  host     = "h"
  password = file("secret")
  sslkey   = "/x"
}
connection "q" {
  plugin   = "postgres"
  host     = "h"
  password = trimspace(file("secret"))
  user     = trimspce(" x ")
}
connection "r" {
  plugin   = "postgres"
  host     = "h"
  password = file("key.pem")
}
connection "s" {
  plugin = "aws_of_mine"
  region = "x"
  token  = "SECRET"
}
connection "t" {
  plugin = "mysqll_"
  token  = "SECRET"
}

connection "not_disabled_so" {
  plugin   = "postgres"
  host     = "db"
  dbname   = "sales"
  disabled = true
}
