"""The way to the receiver: connections with a deadline, proxies, and what a certificate says."""
