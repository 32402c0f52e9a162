#### before
#### meanwhile
extension steampipe_postgres_aws available
extension steampipe_postgres_net missing
answer aws_prod aws_account(account_id text, title text) aws_iam_user(name text, tags jsonb)
answer aws_seen aws_account(account_id text, title text)
#### now
# What it becomes is one option of the server: the body as HCL, in one form however it is written.
connection "aws_prod" {
  plugin  = "turbot/aws@latest"
  regions = [
    "eu-*",   # Europe
    "us-east-1",
  ]
  profile = "prod ${"$"}{x} \"quoted\"\ttab"
  project = null
  ignore_error_codes = ["AccessDenied${1 + 1}"]
  import_schema = "enabled"
}
connection "aws_keys" {
  plugin                = "aws"
  secret_key            = "hunter2"
  max_error_retry_attempts = 9
}
connection "aws_seen" {
  plugin                = "aws"
  secret_key            = "hunter2"
  max_error_retry_attempts = 9
  limits "a b" {
    rate  = 0.5
    burst = { "x-y" = true, "two words" = [] }
  }
  limits "c" {}
  allow_visible_secrets = true
}
connection "net" {
  plugin = "net"
}
connection "net_hub" {
  plugin = "ghcr.io/example/steampipe-plugin-net-tools@1.2"
}
