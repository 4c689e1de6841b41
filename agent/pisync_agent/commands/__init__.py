"""The command line: `cli` parses it, each other module carries out one command or group of commands."""
