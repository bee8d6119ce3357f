"""Queues and publishing: bus, batch publisher, outbox relay, spool."""
