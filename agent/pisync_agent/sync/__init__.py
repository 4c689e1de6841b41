"""One sync run: pending events are sent in batches, then the run's sync event. `run.Delivery` is the way in."""
