"""``python -m eventsync``: the command line, where its script is not on the PATH.

It must not know any command.
"""

from eventsync.cli import main

if __name__ == "__main__":
    main()
