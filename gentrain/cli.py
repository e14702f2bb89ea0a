"""The command: a verb and overrides in, an exit code out; the one place where errors become messages."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentrain import __version__
from gentrain.errors import GentrainError, UsageError, nearest

VERBS = {
    "train": "train a model (the default): gentrain model=vae data=mnist",
    "resume": "go on with a run: gentrain resume run=DIR",
    "evaluate": "measure a trained model: gentrain evaluate run=DIR",
    "sample": "draw from a trained model: gentrain sample run=DIR n=64",
    "compare": "one honest table of runs: gentrain compare runs=outputs",
    "check": "prove a model on tiny spaces: gentrain check model=rbm",
    "reproduce": "train and check a published result: gentrain reproduce experiment=base_rate_mnist",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (the process's own arguments if None); the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    show = "traceback=true" in [a.lower() for a in args]
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter gets a question mark, not an error
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    spin_briefly()
    if "" not in sys.path:
        sys.path.append("")  # one's own model in the current folder; last, so that it hides nothing
    previous = _leave_on_sigterm()
    try:
        return _dispatch(args)
    except UsageError as error:  # under torchrun every process has the same to say
        return _complain(str(error), error.code, show) if os.environ.get("RANK", "0") == "0" else error.code
    except GentrainError as error:
        code = _complain(str(error), error.code, show)
        _let_go(error)
        return code
    except KeyboardInterrupt:
        return _complain("stopped", 130, show)
    except BrokenPipeError:  # `gentrain --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="gentrain-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        text = str(error).splitlines() or [""]
        return _complain(f"{type(error).__name__}: {text[0]} (traceback in {log.name})", 1, show)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _let_go(error: BaseException) -> None:
    """Free what tracebacks hold, in silence: an object that a signal found half made complains from its destructor."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        link: BaseException | None = error
        seen: set[int] = set()
        while link is not None and id(link) not in seen:  # causes and contexts together may go in a circle
            traceback.clear_frames(link.__traceback__)
            seen.add(id(link))
            link = link.__cause__ or link.__context__
    finally:
        sys.unraisablehook = hook


def spin_briefly() -> None:
    """Have libgomp's threads sleep after some ten microseconds of waiting for work, unless the user has said otherwise.

    By default they spin for milliseconds. On a machine that has nothing else to do that gains little; where a single
    other process is busy, a two-thread step takes ten times as long and more (docs/LOG.md). libgomp reads this when
    torch is imported, so it must be said before.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "3000"


def _leave_on_sigterm() -> Any:
    """Have SIGTERM end the process with its exit code where no training takes care of it; the handler before."""

    def leave(number: int, frame: object) -> None:
        os.write(2, b"gentrain: stopped by SIGTERM\n")
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, leave)


def _complain(message: str, code: int, show: bool) -> int:
    if show:
        traceback.print_exc()
    print(f"gentrain: {' '.join(message.split())}", file=sys.stderr)
    return code


def _dispatch(args: list[str]) -> int:
    verb = "train"
    if args and not args[0].startswith(("-", "+", "~")) and "=" not in args[0]:
        verb = args.pop(0)
        if verb not in VERBS:
            raise UsageError(f"{verb}: there is no such verb.{nearest(verb, VERBS)} Verbs: {', '.join(VERBS)}")
    if "--version" in args:
        print(f"gentrain {__version__}")
        return 0
    if "-h" in args or "--help" in args:
        from gentrain.usage import usage

        print(usage(verb, VERBS))
        return 0
    if verb == "train":
        from gentrain.tasks import launch

        return launch.main(args)
    from gentrain.tasks.launch import take_config_dir

    args, folder = take_config_dir(args)
    if verb == "reproduce":
        from gentrain.tasks import reproduce

        return reproduce.main(args, folder)
    overrides = [a for a in args if a != "traceback=true"]
    for a in overrides:
        if a.startswith("-") or "=" not in a:
            raise UsageError(f"{a}: gentrain {verb} takes key=value; see gentrain {verb} --help")
    if verb == "check":
        return _check(overrides, [folder] if folder else [])
    return _resume(overrides) if verb == "resume" else _other(verb, overrides, [folder] if folder else [])


def _resume(overrides: list[str]) -> int:
    from gentrain import config
    from gentrain.settings import ResumeSettings

    own = [o for o in overrides if o.split("=")[0] in ("run", "force")]
    cfg = config.compose("resume", own)
    settings = config.record(ResumeSettings, cfg)
    from gentrain.tasks.resume import resume

    resume(settings.run, [o for o in overrides if o not in own], settings.force)
    return 0


def _check(overrides: list[str], folders: list[Path]) -> int:
    from gentrain import config
    from gentrain.settings import CheckSettings

    own = [o for o in overrides if o.split("=")[0] == "n"]
    settings = config.record(CheckSettings, config.compose("check", own))
    words = [o for o in overrides if o not in own]
    cfg = config.compose("train", words, folders)
    config.require_said(cfg, words)
    config.check(cfg)  # before torch is imported
    from gentrain.tasks.check import main as prove

    return 0 if prove(settings, words, folders) else 1


def _other(verb: str, overrides: list[str], folders: list[Path]) -> int:
    """A verb with a configuration of its own: complain about it before torch is imported, then do it."""
    from importlib import import_module

    from gentrain import config

    overrides = [_listed(o) for o in overrides]
    if verb == "compare":  # its `metrics` are names in ledgers; to Hydra they would be the group of estimators
        cfg = config.read(config.conf_dir() / "compare.yaml")
        config.apply(cfg, overrides)
    else:
        cfg = config.compose(verb, overrides, folders)
    config.require_said(cfg, overrides)
    config.CHECKS[verb](cfg)
    import_module(f"gentrain.tasks.{verb}").main(cfg, overrides)
    return 0


def _listed(override: str) -> str:
    """`key=a,b` as `key=[a,b]`: only training knows sweeps, to every other verb several words are a list.

    >>> _listed("metrics=ais,exact"), _listed("n=64")
    ('metrics=[ais,exact]', 'n=64')
    """
    return re.sub(r"^(\w+)=([^\s=,()\[\]{}'\"]+(?:,[^\s=,()\[\]{}'\"]+)+)$", r"\1=[\2]", override)
