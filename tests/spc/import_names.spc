# Good: names of tables and columns.
connection "snake" {
  plugin = "postgres"
  import {
    names           = "snake"
    prefix          = "erp_"
    rename          = { "Old Name" = "new_name", "Orders.ID" = "order_id" }
    exclude_columns = ["geom", "secret_*"]
  }
}

# Good: tables can be renamed, columns keep their names.
connection "tables" {
  plugin   = "mysql"
  database = "d"
  import {
    names  = "keep"
    prefix = "m_"
    rename = { Old = "new" }
  }
}

# Bad: unknown words and values of other kinds.
connection "words" {
  plugin = "postgres"
  import {
    names           = "snak"
    prefix          = "a\nb"
    rename          = ["Old", "new"]
    exclude_columns = ["[a"]
  }
}

connection "values" {
  plugin = "postgres"
  import {
    names  = "upper"
    rename = { a = "", b = ["c"] }
  }
}

# Bad: wrappers without an option for the name in the source.
connection "columns" {
  plugin   = "mysql"
  database = "d"
  import {
    names = "lower"
  }
}

connection "files" {
  plugin = "csv"
  paths  = ["/srv/*.csv"]
  import {
    names           = "lower"
    prefix          = "f_"
    rename          = { a = "b" }
    exclude_columns = ["secret"]
  }
}
