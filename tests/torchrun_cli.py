"""The command line, in which the last process dies before its seventh step when torchrun starts it first."""

import os
import signal
import sys

from dt.cli import main
from transformer import processes
from transformer.training import Trainer

ONE_STEP = Trainer._one_step


def dying(self):
    if self.step == 7 and processes.rank() == 1 and not processes.restarted():
        os.kill(os.getpid(), signal.SIGKILL)
    return ONE_STEP(self)


Trainer._one_step = dying
sys.exit(main())
