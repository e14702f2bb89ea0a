"""Configurations that would run code, spill secrets or not mean what they say; and an outsider's model, which may."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY, runs
from omegaconf import OmegaConf

import gentrain
from gentrain import checkpoint
from gentrain.cli import main
from gentrain.errors import UsageError

QUICK = [*TINY, "trainer.sample_every=0", "trainer.evaluate_every=0", "trainer.steps=4"]
SECRET = "hunter2-correct-horse"
MODULE = '''
"""An outsider's model: one class, outside the package."""
from gentrain.models.vae import VAE
from gentrain.types import PositiveInt, Shape


class Mine(VAE):
    def __init__(self, shape: Shape, levels: PositiveInt | None, width: PositiveInt, token: str = ""):
        super().__init__(shape, levels, hidden=[width], latent_dim=2)
        self.token = token
'''
OPTION = """# An outsider's model
defaults:
  - override /objective@_global_.objective: elbo
  - _self_
_target_: {module}.Mine
shape: ${{data.shape}}
levels: ${{data.levels}}
width: 4
token: ${{oc.env:GENTRAIN_TEST_SECRET}}
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENTRAIN_TEST_SECRET", SECRET)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    return gentrain.train([*QUICK, "model.hidden=[4]", "model.latent_dim=2", f"output={output}"]).path


def outsider(folder: Path, module: str) -> list[str]:
    """One class and one YAML file, and the words that make gentrain use them."""
    (folder / f"{module}.py").write_text(MODULE)
    (folder / "mine/model").mkdir(parents=True)
    (folder / "mine/model/mine.yaml").write_text(OPTION.format(module=module))
    return ["--config-dir", "mine", "model=mine"]


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    assert main(list(args)) == code
    out, complaint = capsys.readouterr()
    assert complaint.startswith("gentrain: ") and complaint.count("\n") == 1, out + complaint
    assert not list(Path().glob("outputs")), "something was written"
    return complaint


def test_an_outsiders_model_is_trained_loaded_resumed_and_sampled(tmp_path: Path, capsys):
    words = outsider(tmp_path, "outsider_a")
    assert "trust=[outsider_a]" in refused(capsys, *words, *QUICK)
    assert main([*words, *QUICK, "trust=[outsider_a]", "model.width=5"]) == 0
    (run,) = runs(tmp_path / "outputs")
    assert run.parent.name == "mine-elbo"
    with pytest.raises(UsageError, match=r"trust=\[outsider_a\]"):
        gentrain.load(run)
    model = gentrain.load(run, trust=["outsider_a"])
    assert type(model).__name__ == "Mine" and model.encoder[1].out_features == 5
    for words in (["resume", f"run={run}", "trainer.steps=6"], ["sample", f"run={run}"]):
        assert main(words) == 2
        assert "trust=[outsider_a]" in capsys.readouterr().err
        assert main([*words, "trust=[outsider_a]"]) == 0
    assert checkpoint.find(run)[1]["step"] == 6 and (run / "samples/prior.png").exists()


@pytest.mark.parametrize("by", ["YAML file", "command line"])
def test_what_comes_from_the_environment_is_in_no_written_file(by: str, tmp_path: Path):
    words = [*outsider(tmp_path, f"outsider_{by[:4].lower()}"), f"trust=[outsider_{by[:4].lower()}]"]
    if by == "command line":
        file = tmp_path / "mine/model/mine.yaml"
        file.write_text(file.read_text().replace("${oc.env:GENTRAIN_TEST_SECRET}", "none"))
        words += ["model.token=${oc.env:GENTRAIN_TEST_SECRET}"]
    assert main([*words, *QUICK]) == 0
    (run,) = runs(tmp_path / "outputs")
    assert gentrain.load(run, trust=words[3][7:-1].split(",")).token == SECRET, "the model didn't get it"
    files = [p for p in run.rglob("*") if p.is_file()]
    assert len(files) > 8
    assert [p.name for p in files if SECRET.encode() in p.read_bytes()] == []
    assert b"GENTRAIN_TEST_SECRET" in (run / "config.yaml").read_bytes()


# --- code ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["model", "data", "objective", "optim"])
@pytest.mark.parametrize(
    "target",
    [
        "os.system", "subprocess.Popen", "builtins.eval", "torch.hub.load", "gentrain.checkpoint.os.system",
        "gentrain.models.gan.torch.hub.load", "gentrain.models.rbm.math.prod", "gentrain.files.write_atomic",
        "gentrain.data.files._decode", "gentrain.cli.main", "gentrain", "", "..os.system", "gentrain.models.",
    ],
)  # fmt: skip
def test_a_hostile_target_is_refused(section: str, target: str, capsys):
    complaint = refused(capsys, f"{section}._target_={target}")
    assert "_target_" in complaint and target in complaint


def hostile(run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run folder from somebody else, whose data set is a shell command that it says is trusted; and the canary."""
    canary = tmp_path / "canary"
    path, state = checkpoint.find(run)
    folder = tmp_path / "gift/outputs/digits" / run.name
    (folder / "checkpoints").mkdir(parents=True)
    evil = {**state["config"], "trust": ["posix"]}
    shared = {k: v for k, v in evil["data"].items() if k != "_target_"}
    evil["data"] = {**shared, "_target_": "posix.system", "command": f"touch {canary}"}
    checkpoint.save(folder / "checkpoints" / path.name, {**state, "config": evil})
    OmegaConf.save(OmegaConf.create(evil), folder / "config.yaml")
    return folder, canary


@pytest.mark.parametrize("words", ["resume", "resume trainer.steps=9 force=true", "sample kind=reconstruct"])
def test_a_run_folder_cant_vouch_for_its_own_code(words: str, trained: Path, tmp_path: Path, capsys):
    folder, canary = hostile(trained, tmp_path)
    complaint = refused(capsys, *words.split(), f"run={folder}")
    assert "posix.system" in complaint and "lies outside gentrain" in complaint
    assert not canary.exists()


def test_a_yaml_file_cant_vouch_for_its_own_code(tmp_path: Path, capsys):
    canary = tmp_path / "canary"
    (tmp_path / "gift/data").mkdir(parents=True)
    (tmp_path / "gift/data/gift.yaml").write_text(
        f"# @package _global_\ntrust: [posix]\ndata:\n  _target_: posix.system\n  command: touch {canary}\n"
    )
    assert "trust=[posix]" in refused(capsys, "--config-dir", "gift", "data=gift")
    with pytest.raises(UsageError, match=r"trust=\[posix\]"):
        gentrain.train(["data=gift"], folders=["gift"])
    assert not canary.exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "model/evil.yaml",
            "# @package _global_\nhydra: {callbacks: {e: {_target_: shutil.copy, src: a, dst: canary}}}\n",
        ),
        ("model/evil.yaml", "# @package hydra.callbacks.e\n_target_: shutil.copy\nsrc: a\ndst: canary\n"),
        ("hydra/callbacks/evil.yaml", "e: {_target_: shutil.copy, src: a, dst: canary}\n"),
        ("hydra/launcher/evil.yaml", "_target_: os.system\n"),
    ],
)
def test_nothing_in_a_config_dir_is_called_when_hydra_starts(file: str, text: str, tmp_path: Path, capsys):
    (tmp_path / "a").write_text("a")
    (tmp_path / "gift" / file).parent.mkdir(parents=True)
    (tmp_path / "gift" / file).write_text(text)
    complaint = refused(capsys, "--config-dir", "gift", f"{file.rpartition('/')[0]}=evil")
    assert file in complaint and "line" in complaint and not (tmp_path / "canary").exists()


@pytest.mark.parametrize("expression", ["${eval:1+1}", "${python:os.system('touch canary')}", "${oc.no_such:1}"])
def test_a_hostile_resolver_is_refused(expression: str, capsys, tmp_path: Path):
    complaint = refused(capsys, f"model.latent_dim='{expression}'")
    assert "latent_dim" in complaint or "nterpolation" in complaint
    assert not (tmp_path / "canary").exists()


# --- YAML ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("likelihood: no", ["no", "false", "quotes"]),
        ("likelihood: On", ["On", "true", "quotes"]),
        ("latent_dim: 010", ["010", "as 8", "10"]),
        ("latent_dim: 12:30", ["12:30", "base 60"]),
        ("latent_dim: 2\nlatent_dim: 3", ["latent_dim", "twice"]),
        ("hidden: [1, 2", ["expected"]),
        ("\tlatent_dim: 2", ["\\t"]),
        ("latent_dim: *nothing", ["nothing"]),
    ],
)
@pytest.mark.parametrize("through", ["command", "Python"])
def test_yaml_that_means_something_else_is_refused(line: str, words: list[str], through: str, tmp_path: Path, capsys):
    (tmp_path / "own/model").mkdir(parents=True)
    file = tmp_path / "own/model/own.yaml"
    file.write_text(f"defaults: [vae, _self_]\n{line}\n")
    if through == "command":
        complaint = refused(capsys, "--config-dir", "own", "model=own")
    else:
        with pytest.raises(UsageError) as error:
            gentrain.train(["model=own"], folders=["own"])
        complaint = str(error.value)
    for word in [*words, str(file), "line "]:
        assert word in complaint


def test_yaml_that_means_what_it_says_is_taken(tmp_path: Path):
    (tmp_path / "own/model").mkdir(parents=True)
    file = tmp_path / "own/model/own.yaml"
    file.write_text('# mine\ndefaults: [vae, _self_]\nlatent_dim: 10\nlikelihood: "bernoulli"\nchannels: null\n')
    run = gentrain.train([*QUICK, "model=own"], folders=["own"])
    assert gentrain.load(run.path).latent_dim == 10


def test_an_option_that_gentrain_has_itself_is_not_passed_over(tmp_path: Path, capsys):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "vae.yaml").write_text("_target_: my.VAE\n")
    complaint = refused(capsys, "--config-dir", "mine", "model=vae")
    assert "model/vae.yaml: gentrain has a model vae of its own" in complaint and "rename yours" in complaint


def test_options_of_a_config_dir_are_suggested_too(tmp_path: Path, capsys):
    outsider(tmp_path, "outsider_c")
    complaint = refused(capsys, "--config-dir", "mine", "model=mien")
    assert "Did you mean 'mine'?" in complaint and "vae" in complaint
    assert "there is no such folder" in refused(capsys, "--config-dir", "nowhere", "model=mine")
