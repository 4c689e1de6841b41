"""The command line: an HTTP client of the receiver's own API, and what operates a database."""
