"""`python -m dragontune` is `dragontune`, for launchers that start modules."""

import sys

from dragontune.cli import main

if __name__ == "__main__":
    sys.exit(main())
