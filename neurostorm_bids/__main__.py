"""``python -m neurostorm_bids``."""

import sys

from neurostorm_bids.cli import main

if __name__ == "__main__":
    sys.exit(main())
