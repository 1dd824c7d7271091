"""`python -m transformer`: the same as the command `dt-text`."""

import sys

from transformer.text.cli import main

sys.exit(main())
