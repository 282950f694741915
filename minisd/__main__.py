"""python -m minisd: the command line, if the `minisd` script is not on the PATH."""

import sys

from minisd.cli import main

sys.exit(main())
