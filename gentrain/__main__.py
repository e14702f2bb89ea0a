"""`python -m gentrain`, which is also what torchrun starts."""

import sys

from gentrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
