"""``python -m ndkd`` is the command line too."""

import sys

from ndkd.cli import main

sys.exit(main())
