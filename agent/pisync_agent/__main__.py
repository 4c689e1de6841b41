"""`python -m pisync_agent` is `pisync`."""

import sys

from pisync_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
