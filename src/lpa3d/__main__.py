"""``python -m lpa3d``: the same as the command ``lpa3d``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
