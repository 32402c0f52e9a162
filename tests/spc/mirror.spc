mirror "cloud" {
  source      = "postgresql://steampipe:SECRET@127.0.0.1:9193/steampipe"
  connections = ["aws*", "gcp"]
  exclude     = ["aws_test_*"]
  prefix      = "c_"
  sslmode     = "require"

  labels {
    team = "ops"
  }
}

mirror "near" {
  sorce    = "postgresql://steampipe:SECRET@127.0.0.1:9193/steampipe"
  plugin   = "aws"
  schema   = "public"
  labels   = "x"
  excluded = ["x"]
}

mirror "incomplete" {
  source = "postgresql://127.0.0.1:9193/steampipe"
}

mirror "patterns" {
  source           = "postgresql://steampipe@h/steampipe"
  connections      = ["[a"]
  refresh_interval = "soon"
  transitive       = "perhaps"

  import {
  }
}

mirror "twice" {
  source = "postgresql://a@h/d"
}

mirror "twice" {
  source = "postgresql://b@h/d"
}

mirror "a name that is so long that its server would not have a name that fits" {
  source = "postgresql://a@h/d"
}
