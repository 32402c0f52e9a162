options "database" {
  search_path = "a"
}
options "general" {
  update_check = false
}
options "terminal" {
  multi_line = true
}
options "dashboard" {
  browser = true
}
options "generall" {
}
options "database" {
  search_path = "b"
}
options "general" {
}
