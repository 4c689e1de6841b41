"""`python -m pisync_receiver`."""

import sys

from pisync_receiver.cli import main

if __name__ == "__main__":
    sys.exit(main())
