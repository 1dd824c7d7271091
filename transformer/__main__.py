"""`python -m transformer`: the text programs."""

import sys

from transformer.cli import main

sys.exit(main())
