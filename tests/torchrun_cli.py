"""The command line, in which the last process dies before its seventh step when torchrun starts it first."""

import os
import signal
import sys

from torchrun_program import ONE_STEP

from dt.cli import main
from transformer import processes
from transformer.training import Trainer


def dying(self):
    if self.step == 7 and processes.rank() == 1 and not processes.restarted():
        os.kill(os.getpid(), signal.SIGKILL)
    return ONE_STEP(self)


if __name__ == "__main__":
    Trainer._one_step = dying
    assert main(["evaluate", "no-run"]) == 2  # is for one process: each says so, all but one in vain
    sys.exit(main())
