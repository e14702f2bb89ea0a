"""The wheel: built, installed under a path with a space and a letter outside ASCII, and used in an empty folder."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, runs

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a user would, in isolation: pip fetches the build backend from the registry."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [*PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    result = subprocess.run(build, capture_output=True, text=True, timeout=200, cwd=folder)
    if result.returncode and "No matching distribution found for hatchling" in result.stderr:
        pytest.skip("needs the package registry: hatchling can't be fetched")
    assert result.returncode == 0, result.stderr
    (found,) = folder.glob("gentrain-*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder it is installed into; read-only. The libraries that it needs are those of this environment."""
    folder = tmp_path_factory.mktemp("installed") / "mes modèles"
    install = [*PIP, "install", "--no-deps", "--no-compile", "--quiet", "--target", str(folder), str(wheel)]
    subprocess.run(install, check=True, timeout=200, cwd=wheel.parent)
    for path in (folder / "gentrain").rglob("*"):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    return folder


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """installed("-m", "gentrain", …): Python with the installed package, in the empty folder tmp_path."""

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, *args], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def test_wheel_holds_the_package_and_every_yaml_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    yaml = {f"gentrain/conf/{p.relative_to(ROOT / 'conf')}" for p in (ROOT / "conf").rglob("*.yaml")}
    code = {str(p.relative_to(ROOT)) for end in ("py", "css", "js") for p in (ROOT / "gentrain").rglob(f"*.{end}")}
    assert len(yaml) > 20 and packed >= yaml | code
    others = {name for name in packed - yaml - code if not name.endswith("py.typed")}
    assert not others
    assert len(licences) == 1


def test_installed_wheel_trains_in_an_empty_folder(
    installed: Callable[..., subprocess.CompletedProcess[str]], site: Path, tmp_path: Path
) -> None:
    before = contents(site)
    where = installed("-c", "import gentrain.config as c; print(c.__file__, c.conf_dir(), sep='\\n')")
    package = site / "gentrain"
    assert where.stdout.splitlines() == [str(package / "config" / "__init__.py"), str(package / "conf")]
    result = installed("-m", "gentrain", "model=vae", "data=digits", "trainer.steps=20")
    assert result.returncode == 0, result.stderr
    (run,) = runs(tmp_path / "outputs")
    assert "test elbo" in result.stdout and str(run.relative_to(tmp_path)) in result.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"outputs"}
    assert contents(site) == before  # nothing is ever written beside the code
    drawn = installed("-m", "gentrain", "sample", f"run={run}", "n=4", "format=npz", "out=four.npz")
    assert drawn.returncode == 0 and (tmp_path / "four.npz").exists()


def test_the_command_finds_a_model_of_ones_own_in_the_current_folder(
    installed: Callable[..., subprocess.CompletedProcess[str]], site: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from gentrain.models.rbm import RBM\n\n\n"
        "class Loud(RBM):\n"
        "    def __init__(self, shape, hidden: int = 7, burn_in: int = 10):\n"
        "        super().__init__(shape, hidden, burn_in)\n"
    )
    (tmp_path / "my conf" / "model").mkdir(parents=True)
    (tmp_path / "my conf" / "model" / "loud.yaml").write_text(
        "defaults:\n  - override /objective@_global_.objective: cd\n\n"
        "_target_: mine.Loud\nshape: ${data.shape}\nhidden: 7\nburn_in: 10\n"
    )
    command = str(site / "bin" / "gentrain")  # unlike python -m, a script doesn't have the current folder on its path
    refused = installed(command, "--config-dir", "my conf", "model=loud", *TINY)
    assert refused.returncode == 2 and "trust=[mine]" in refused.stderr and not (tmp_path / "outputs").exists()
    result = installed(command, "--config-dir", "my conf", "model=loud", "trust=[mine]", *TINY)
    assert result.returncode == 0, result.stderr
    (run,) = runs(tmp_path / "outputs")
    assert run.parent.name == "loud-cd"
    typo = installed(command, "--config-dir", "my conf", "model=loud", "trust=[mine]", "model.hiden=3")
    assert typo.returncode == 2 and "Did you mean 'hidden'?" in typo.stderr
