"""`python -m transformer`: the same as the command `dt-text`.

Python puts the current folder first among the places of modules. It may hold a stranger's run, so it is taken off.
"""

import os
import sys
from importlib import import_module

HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

if sys.path[:1] == [os.getcwd()] != [HOME]:
    del sys.path[0]

sys.exit(import_module("transformer.text.cli").main())
