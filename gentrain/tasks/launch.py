"""`gentrain …`: the command line through Hydra, which composes the configuration and calls what trains it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from gentrain import config
from gentrain.errors import UsageError


def main(args: list[str]) -> int:
    """Run the command line `args`, one training or with -m a sweep; the exit code."""
    args, folder = take_config_dir(args)
    if "-m" in args or "--multirun" in args:
        from gentrain.tasks import sweep

        return sweep.main(args, folder)
    problems: list[Exception] = []

    def one(cfg: DictConfig) -> None:
        try:
            overrides = config.said()
            config.require_said(cfg, overrides)
            config.check(cfg)  # before torch is imported
            from gentrain.tasks import train

            train.main(cfg, overrides)
        except Exception as error:  # Hydra would announce it in its own words
            problems.append(error)

    through_hydra(one, args, config.conf_dir(), folder)
    if problems:
        raise problems[0]
    return 0


def through_hydra(task: Callable[[DictConfig], None], args: Sequence[str], conf: Path, folder: Path | None) -> None:
    """Have Hydra compose `train` from the YAML files of `conf`, and of a user's `folder`, and hand it to `task`.

    Raises:
        UsageError: the command line names what doesn't exist, or can't be read.
    """
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand exceptions on; gentrain.cli words them
    extra = ["--config-dir", str(folder)] if folder else []
    before = sys.argv
    sys.argv = ["gentrain", *extra, *args]
    try:
        hydra.main(version_base="1.3", config_path=str(conf), config_name="train")(task)()
    except SystemExit as end:  # argparse's own complaint about a flag, already printed
        if end.code not in (0, None):
            raise UsageError("see gentrain --help") from end
    except Exception as error:
        words = [a for a in args if not a.startswith("-")]
        raise config.explain(error, words, "train", [folder] if folder else []) from error
    finally:
        sys.argv = before


def take_config_dir(args: list[str]) -> tuple[list[str], Path | None]:
    """Split `--config-dir DIR` off the arguments.

    Raises:
        UsageError: DIR is no folder.
    """
    for i, a in enumerate(args):
        name, _, value = a.partition("=")
        if name in ("--config-dir", "-cd"):
            value = value or (args[i + 1] if i + 1 < len(args) else "")
            rest = args[:i] + args[i + (1 if "=" in a else 2) :]
            if not Path(value).is_dir():
                raise UsageError(f"--config-dir {value}: there is no such folder")
            config.check_folder(Path(value).resolve())
            return rest, Path(value).resolve()
    return args, None
