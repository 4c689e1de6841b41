"""The way to the receiver: connections with a deadline, proxies, what a certificate says, and what a failure means."""
