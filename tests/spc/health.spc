connection "watched" {
  plugin = "postgres"
  labels {
    team  = "data"
    tier  = 1
    where = env("SET")
    none  = null
  }
  health {
    interval = "500ms"
    attempts = 5
  }
}

# What the plugin says holds where the connection says nothing.
plugin "files" {
  source = "csv"
  health {
    interval = "5m"
    enabled  = false
  }
}
connection "of_plugin" {
  plugin = plugin.files
  paths  = ["/data/*.csv"]
  health {
    enabled = true
  }
}

# It makes no difference to a file what the labels are.
connection "all" {
  plugin      = "postgres"
  type        = "aggregator"
  connections = ["watched"]
  labels {
    team = "data"
  }
}

connection "mistakes" {
  plugin   = "postgres"
  host     = "h"
  password = "SECRET"
  labels {
    list = ["a"]
    inner {
    }
  }
  labels {
    again = "x"
  }
  health {
    intervall = 30
    interval  = "often"
    attempts  = -1
    timeout   = "2d"
    enabled   = "perhaps"
    deeper {
    }
  }
}

plugin "broken" {
  source = "mysql"
  probe  = "ping"
  health {
    pause = "1ms"
  }
}

# Blocks that are written like attributes, and a time that is too short.
connection "assigned" {
  plugin = "postgres"
  labels = { team = "SECRET" }
  health = { interval = 1 }
}

connection "assigned_too" {
  plugin      = "postgres"
  type        = "aggregator"
  connections = ["watched"]
  labels      = { team = "SECRET" }
}

connection "hasty" {
  plugin   = "postgres"
  health {
    interval = "10ms"
  }
}
