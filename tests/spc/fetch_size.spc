# Good: the number of rows of a fetch, of all tables or where tables have none.
connection "tables" {
  plugin = "postgres"
  import {
    fetch_size = 5000
  }
}

connection "server" {
  plugin        = "postgres"
  fetch_size    = 5000
  async_capable = false
}

# Bad: no number of rows that postgres_fdw takes.
connection "none" {
  plugin = "postgres"
  import {
    fetch_size = 0
  }
}

connection "word" {
  plugin = "postgres"
  import {
    fetch_size = "many"
  }
}

# Bad: a wrapper whose tables spcd does not tune.
connection "other" {
  plugin   = "mysql"
  database = "d"
  import {
    fetch_size = 5000
  }
}
