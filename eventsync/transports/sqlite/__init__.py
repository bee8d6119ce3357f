"""The embedded broker: a transport that keeps its queues in one SQLite file."""
