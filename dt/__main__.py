"""`python -m dt`: the same as the command `dt`."""

import sys

from dt.cli import main

sys.exit(main())
