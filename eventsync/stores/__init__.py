"""The kinds of stores that eventsync ships; each module stands alone and imports none of the others."""
