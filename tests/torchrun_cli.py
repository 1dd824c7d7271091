"""The command line, in which the last process dies before its seventh step when torchrun starts it first.

When it starts it again the first process comes last, so that the other looks for it where it was before.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch.distributed
from torchrun_program import ONE_STEP

from dt.cli import main
from transformer.runs import distributed
from transformer.runs.training import Trainer

INIT = torch.distributed.init_process_group


def dying(self):
    if self.step == 7 and distributed.rank() == 1 and not distributed.is_restarted():
        os.kill(os.getpid(), signal.SIGKILL)
    return ONE_STEP(self)


def joining(*arguments, **options):
    """As torch does it, but in a second attempt the first process waits until the other has been looking for it."""
    other_looks = Path(sys.argv[-1]).with_name("other-looks")
    if os.environ["RANK"] == "1":
        other_looks.touch()
    elif distributed.is_restarted():
        while not other_looks.exists():
            time.sleep(0.05)
        time.sleep(1)
    INIT(*arguments, **options)
    if os.environ["RANK"] == "1":
        other_looks.unlink()


if __name__ == "__main__":
    Trainer._one_step, torch.distributed.init_process_group = dying, joining
    assert main(["evaluate", "no-run"]) == 2  # is for one process: each says so, all but one in vain
    sys.exit(main())
