"""Tell people once when a device or a site needs help, when it recovers, and each day how the fleet is.

```
alerts (the steps) ── domain.notices (what changed) → rules (when, and what shares a message) → notices, daily (texts)
                   └─ services (the log, Apprise)
```
"""
