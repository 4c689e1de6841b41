"""A fleet of devices in one process: real requests, real tokens, the agent's own retry policy."""
