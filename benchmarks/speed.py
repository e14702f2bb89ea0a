"""Training examples per second of gentrain against bare hand-written loops, on real MNIST.

    python benchmarks/speed.py [vae rbm pcd dcgan] [--rounds 7] [--intervals 1]

Every contender is a process of its own, and they take turns: in each round every one trains for the same time while
the others wait. Ratios are taken within a round and their median is printed with the smallest and largest, so a machine
that speeds up or slows down between rounds doesn't favour anybody.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from contenders import CONTENDERS

INTERVAL = 2500  # steps between gentrain's checkpoints, validations and pictures: a turn is a whole number of them


class Contender:
    """A process that trains when told to."""

    def __init__(self, work: str, name: str):
        self.name = name
        command = [sys.executable, str(Path(__file__).with_name("contenders.py")), work, name]
        environment = dict(os.environ)
        if name.startswith("gentrain"):
            environment["GOMP_SPINCOUNT"] = "3000"  # as gentrain.cli has it
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.batch = int(self._read())
        self.rates: list[float] = []

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: ended with exit code {self.process.wait()}")
        return line

    def turn(self, steps: int) -> float:
        """Train `steps` steps; examples per second."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return steps * self.batch / float(self._read())


def measure(work: str, rounds: int, steps: int) -> None:
    contenders = [Contender(work, name) for name in CONTENDERS[work]]
    for c in contenders:
        c.turn(max(20, steps // 10))  # warm up, compile
    for _ in range(rounds):
        for c in contenders:
            c.rates.append(c.turn(steps))
    print(f"\n{work}: {rounds} rounds of {steps} steps\n")
    print("| who | examples/s | of the bare loop: median (min to max) |\n|---|---|---|")
    for c in contenders:
        ratios = [a / b for a, b in zip(c.rates, contenders[0].rates, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {c.name} | {statistics.median(c.rates):,.0f} | {spread} |")
        c.process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", default=list(CONTENDERS), help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--intervals", type=int, default=1, help="of 2,500 steps a turn (DCGAN: of 100)")
    arguments = parser.parse_args()
    for work in arguments.work:
        measure(work, arguments.rounds, arguments.intervals * (INTERVAL // 25 if work == "dcgan" else INTERVAL))


if __name__ == "__main__":
    main()
