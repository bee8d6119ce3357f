"""The kinds of stores that eventsync ships; each stands alone and imports none of the others."""
