"""Queues and publishing: the bus, the batch publisher, the relay and the spool."""
