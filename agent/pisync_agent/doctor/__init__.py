"""`pisync doctor`: what is wrong with this device, from its disk to its receiver, and what to do about it."""
