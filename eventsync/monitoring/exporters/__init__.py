"""Exporters of metrics and traces to other systems. Each needs an extra of the package."""
