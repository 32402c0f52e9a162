connection "a" {
  plugin = "postgres"
}
  password = "SECRET"
}

connection "b" {
  plugin = "postgres"
}
