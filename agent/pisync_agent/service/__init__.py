"""The process under systemd: the socket's server and protocol, the scheduler of sync runs, the writer's lock."""
