"""The outbox: the numbered queue on the device. `outbox.Outbox` writes it, `reader.OutboxReader` reads it."""
