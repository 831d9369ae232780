"""`python -m sparsyfed.tools` is the command `sparsyfed`."""

import sys

from sparsyfed.tools.cli import main

sys.exit(main())
