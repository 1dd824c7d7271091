"""`python -m transformer`: the text programs."""

import sys

from transformer.text.cli import main

sys.exit(main())
