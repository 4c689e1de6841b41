"""What every store has to hold, whatever engine is under it. An engine's tests inherit these classes and bring the
fixture `store`: an open, empty `pisync_receiver.store.Store`."""
