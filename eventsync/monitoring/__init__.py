"""Monitoring: metrics, worker status, health, the HTTP server, exporters and the log."""
