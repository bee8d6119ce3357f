"""Metrics, worker status, health, HTTP endpoint, exporters and logging."""
