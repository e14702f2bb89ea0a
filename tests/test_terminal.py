"""What a person at a terminal sees: a bar that moves and fits, then the closing table; through a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from conftest import command


def on_a_terminal(args: list[str], cwd: Path, columns: int = 80) -> tuple[int, str]:
    """Run the command with its output on a terminal of so many columns; exit code and everything it wrote."""
    main, side = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "LINES": "30", "TERM": "xterm-256color"}
    process = subprocess.Popen(command(*args), stdin=side, stdout=side, stderr=side, cwd=cwd, env=env)
    os.close(side)
    written = b""
    try:
        while piece := os.read(main, 65536):
            written += piece
    except OSError:  # Linux's way of saying that the other side has hung up
        pass
    finally:
        os.close(main)
    return process.wait(timeout=60), written.decode()


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
def test_the_bar_shows_steps_loss_rate_and_time_left_in_one_line(tmp_path: Path):
    code, seen = on_a_terminal(["model=vae", "model.hidden=[8]", "trainer.steps=1500", "device=cpu"], tmp_path)
    assert code == 0
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", seen)]
    bars = [line for line in lines if "━" in line]
    moving = [line for line in bars if re.search(r"loss \d+\.\d+ +[\d,]+ ex/s +\d+:\d\d", line)]
    assert moving, bars[:5]
    assert max(map(len, bars)) <= 80
    steps = [int(re.match(r"\s*([\d,]+)/1,500", line)[1].replace(",", "")) for line in moving]  # type: ignore[index]
    assert steps == sorted(steps) and steps[-1] > steps[0]
    assert any("test elbo" in line for line in lines)
