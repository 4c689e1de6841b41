"""`pisync-receiver worker`: hands stored events on to a broker, tells operators of devices that keep failing, and makes
room for the months to come. Any number of workers may run; what one does, no other does at the same time.

```
running ── publishing ── feed (positions, events)      alerts.planner ── crossings → notices
              └── publisher ── rabbitmq                 alerts.sender ── notices → services (Apprise)
        └── upkeep (months, old notices)
```
"""
