"""Configuration: composed by Hydra, checked against the constructors themselves, built into objects.

`check` refuses unknown keys, wrong types and ranges before torch is imported; `build` is the only place where a
`_target_` becomes an object. Hydra is known here, in `gentrain.cli` and in `gentrain.tasks.sweep` alone.
"""

from gentrain.config.building import build, locate, speaking_of
from gentrain.config.checking import CHECKS, check, check_evaluation, check_sampling, record
from gentrain.config.composing import (
    apply,
    check_folder,
    compose,
    conf_dir,
    explain,
    groups,
    read,
    require_said,
    said,
)
from gentrain.config.plain import flat, resolve, shown, stored

__all__ = [
    "CHECKS",
    "apply",
    "build",
    "check",
    "check_evaluation",
    "check_folder",
    "check_sampling",
    "compose",
    "conf_dir",
    "explain",
    "flat",
    "groups",
    "locate",
    "read",
    "record",
    "require_said",
    "resolve",
    "said",
    "shown",
    "speaking_of",
    "stored",
]
