connection "values" {
  plugin            = "postgres"
  host              = true ? "a-${1 + 2 * 3}" : "b"
  port              = (5400 + 32)
  dbname            = "%{ for x in ["s", "h"] }${x}%{ endfor }op%{ if 1 > 2 }no%{ endif }"
  user              = [for k, v in { a = "u" } : "${k}${v}"][0]
  password          = ({ x = [{ y = "SECRET" }] }.x[*].y)[0]
  application_name  = <<-EOT
    two
      lines
    EOT
  fetch_size        = 12345678901234567890123456789012345678
  options           = "$${x} %%{y} \u00e9 \"q\""
}
connection "wrong" {
  plugin     = "postgres"
  host       = "${[]}"
  port       = 1 / 0
  dbname     = x.y
  user       = evn("A")
  fetch_size = 1234567890123456789012345678901234567890123
  options    = "%{ if true }"
  batch_size = -"a"
  service    = [1][3]
  sslmode    = "\d"
  sslrootcert = file("nothing.pem")
}
