"""Tell operators once when a device begins to fail and once when it recovers.

```
alerts ── crossings → rules (when, and whether as a digest) → notices (the text) → services (Apprise)
```
"""
