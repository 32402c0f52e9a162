connection "before" {
  plugin = "postgres"
}

connection "open" {
  plugin = "postgres"

connection "after" {
  plugin = "postgres"
}
