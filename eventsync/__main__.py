"""``python -m eventsync``: the command line where the ``eventsync`` script is not on the PATH."""

from eventsync.cli import main

if __name__ == "__main__":
    main()
