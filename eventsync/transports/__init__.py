"""The kombu transports that eventsync ships, over one leased-queue channel; knows no store."""
