"""python -m minisd: the command line where its script is not on the path."""

import sys

from minisd.cli import main

sys.exit(main())
