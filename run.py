#!/usr/bin/env python3
"""The app without installation of console scripts: ``python run.py BIDS_DIR OUTPUT_DIR participant``."""

import sys

from neurostorm_bids.cli import main

if __name__ == "__main__":
    sys.exit(main())
