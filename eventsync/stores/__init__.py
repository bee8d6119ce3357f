"""The kinds of stores that eventsync ships, each independent of the others.

Trackers are the exception: they are built on the REST store.
"""
