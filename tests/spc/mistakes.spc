connection "curly" {
  plugin = “postgres”
}

connection "several" {
  plugin   = "postgres"
  host: "db"
  prot     = 5432
  dbname   = 'shop'
  password = "hunter2
  sslmode  = require
  user     = env("NOT_SET")
  port     = 10.0.0.1
  options  = ["a" "b"]
  passfile = /etc/pass
  service  = "x",
  hostaddr
}

connection "brace"
{
  plugin   = "mysql"
  database = "shop"
}

connection "header {
  plugin = "postgres"
}

conection "typo" {
  plugin = "postgres"
}

connection {
  plugin = "postgres"
}

connection "fine" {
  plugin = "postgres"
}

connection "other_languages": {
  plugin == "postgres"
}

connection "still_others" = {
  plugin = "postgres"
}
