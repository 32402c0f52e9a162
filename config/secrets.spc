# Which attributes look like secrets in the body of a wrapper that takes it as one option of its
# server. Every role can read such options: without a gateway a connection with such an attribute is
# in error unless it says `allow_visible_secrets = true`. Names are compared without regard to case.
#
#   names        patterns of names that look like secrets
#   except       patterns of names that do not, although they match
#   paths        patterns of names that may hold a secret or the path of a file: only a path is none
#
# A value that has a secret in it (a URL with user information, a parameter such as `&token=…`) looks
# like one whatever its name is. An attribute that a `plugin` block lists as public does not.

plugin "*" {
  names = [
    "*token*", "*secret*", "*password*", "*passphrase*", "*_key", "apikey", "*credential*",
    "*private*", "*dsn*", "*connection_string*",
  ]
  # Identifiers of secrets, and the places of files.
  except = ["*_key_id", "*_path", "*_paths", "*_file", "*_files", "public_key", "token_type"]
  paths  = ["private_key", "*_private_key", "credentials"]
}

# The identifier that belongs to `secret_key`.
plugin "alicloud" {
  except = ["access_key"]
}

plugin "aws" {
  except = ["access_key"]
}

plugin "duo" {
  except = ["integration_key"]
}

plugin "scaleway" {
  except = ["access_key"]
}
