"""What every process of `torchrun tests/torchrun_story.py JSON` does: train and resume as the JSON file lists.

Its items are ["train", overrides] or ["resume", run, overrides]; the environment variable FAIL=<rank> makes that
process fail at its third loss.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import gentrain
from gentrain.errors import GentrainError
from gentrain.objectives.elbo import ELBO
from gentrain.tasks.resume import resume

calls = 0
forward = ELBO.forward


def failing(self, model, batch, progress):
    global calls
    calls += 1
    if calls == 3:
        raise RuntimeError("something that only this process met with")
    return forward(self, model, batch, progress)


if os.environ.get("FAIL") == os.environ["RANK"]:
    ELBO.forward = failing  # type: ignore[method-assign]
for task in json.loads(Path(sys.argv[1]).read_text()):
    try:
        gentrain.train(task[1]) if task[0] == "train" else resume(task[1], task[2])
    except GentrainError as error:
        sys.exit(str(error))
