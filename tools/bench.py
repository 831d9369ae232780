"""`python -m sparsyfed.tools.bench` is the command `sparsyfed bench`."""

import sys

from sparsyfed.tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
