"""Exporters: what other systems for metrics and traces are told. Each alone, each with an extra."""
