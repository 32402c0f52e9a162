# An ssh server's host is a host and nothing else.
connection "with_user" {
  plugin = "postgres"
  host   = "db.internal"
  ssh {
    host = "deploy@bastion"
  }
}

connection "with_both" {
  plugin = "postgres"
  host   = "db.internal"
  ssh {
    host = "deploy@bastion:2222"
  }
}

connection "with_port" {
  plugin = "postgres"
  host   = "db.internal"
  ssh {
    host = "bastion:2222"
  }
}

connection "with_port_six" {
  plugin = "postgres"
  host   = "db.internal"
  ssh {
    host = "[2001:db8::1]:2222"
  }
}

connection "apart" {
  plugin = "postgres"
  host   = "db.internal"
  ssh {
    host = "bastion"
    user = "deploy@realm"
    port = 2222
  }
}

connection "six" {
  plugin = "postgres"
  host   = "db.internal"
  ssh {
    host = "2001:db8::22"
  }
}
