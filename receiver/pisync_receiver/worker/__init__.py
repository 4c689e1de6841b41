"""`pisync-receiver worker`: publishes stored events to RabbitMQ. Any number may run; one at a time publishes.

```
run (settings, signals) ── publishing (stored events behind a consumer's position)
                            ├─ messages (CloudEvents)
                            └─ rabbitmq (publisher confirms)
```
"""
