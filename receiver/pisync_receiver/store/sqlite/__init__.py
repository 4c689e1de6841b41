"""The engine SQLite: one file and one writing process. `store` writes and reads it, `backup` copies it."""
