"""How a device gets its identity, keeps it, and notices that it is on another machine."""
