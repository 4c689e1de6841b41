"""Recovery from a broken outbox file: read what is left of it, build a new file, swap the two."""
