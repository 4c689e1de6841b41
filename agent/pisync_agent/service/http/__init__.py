"""HTTP on this machine's loopback, for apps that can open no Unix socket: web pages first of all."""
