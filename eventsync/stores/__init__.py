"""The kinds of stores that eventsync ships. None imports another, except the trackers REST."""
