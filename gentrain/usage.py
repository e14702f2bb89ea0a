"""The help texts, read from the YAML files themselves: what is configurable is what is listed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gentrain.config import conf_dir, groups


def usage(verb: str, verbs: Mapping[str, str]) -> str:
    """What `gentrain --help` (verb "train") or `gentrain <verb> --help` prints."""
    if verb != "train":
        text = (conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8")
        return f"gentrain {verb} key=value …\n\n{text}"
    lines = ["gentrain [verb] [group=option] [key=value] …", "", "Verbs"]
    lines += [f"  {name:<10}{text}" for name, text in verbs.items()]
    for group, options in groups().items():
        if options:
            lines += ["", f"{group}=…"]
            width = max(16, *(len(option) + 2 for option in options))
            texts = [_first_comment(conf_dir() / group / f"{option}.yaml") for option in options]
            lines += [f"  {option:<{width}}{text}" for option, text in zip(options, texts, strict=True)]
    lines += ["", "Keys of every training (gentrain --cfg job shows all, with your choices applied)"]
    text = (conf_dir() / "train.yaml").read_text(encoding="utf-8")
    body = text[text.index("seed:") : text.index("hydra:")].rstrip()
    lines += [f"  {line}" for line in body.splitlines()]
    lines += [
        "",
        "Examples",
        "  gentrain                                                    a VAE on embedded handwritten digits",
        "  gentrain model=rbm data=mnist objective.k=10                CD-10; downloads MNIST once",
        "  gentrain -m model=rbm objective=cd,pcd seed=0,1,2           a sweep; the same command resumes it",
        "  gentrain -m hydra/launcher=joblib model=gan,dcgan           a sweep, several at a time",
        "  gentrain --cfg job model=dcgan                              show the configuration, do nothing",
        "  tensorboard --logdir outputs                                watch",
    ]
    return "\n".join(lines)


def _first_comment(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if not line.startswith("# @package")]
    return lines[0].lstrip("# ") if lines[0].startswith("#") else ""
