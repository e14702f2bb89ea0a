"""What is configured wrongly is refused in one line, with a remedy, before torch is imported and anything written."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import fitting_pairs
from omegaconf import OmegaConf

from gentrain import config
from gentrain.cli import main
from gentrain.signatures import parameters

GROUPS = config.groups()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    """The one line with which the command refuses `args`; it has written nothing."""
    assert main(list(args)) == code
    out, complaint = capsys.readouterr()
    assert complaint.startswith("gentrain: ") and complaint.count("\n") == 1, out + complaint
    assert "Traceback" not in complaint and "+key" not in complaint
    assert not list(Path().glob("outputs")), "something was written"
    return complaint


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("model=vea", ["model=vea", "Did you mean 'vae'?", "dcgan"]),
        ("objective=eblo", ["Did you mean 'elbo'?", "pcd"]),
        ("data=minst", ["Did you mean 'mnist'?", "digits"]),
        ("optim=adamm", ["Did you mean 'adam'?"]),
        ("device=gpu", ["device=gpu", "cuda", "cpu"]),
        ("modle=vae", ["modle", "Did you mean 'model'?"]),
        ("model.latnet_dim=3", ["Did you mean 'latent_dim'?", "hidden"]),
        ("trainer.stesp=3", ["Did you mean 'steps'?", "epochs"]),
        ("optim.learning_rate=1", ["optim.learning_rate", "lr"]),
        ("+model.depth=3", ["model.depth", "there is no such key"]),
        ("data@data.of=mnst", ["data@data.of=mnst: there is no data 'mnst'", "Did you mean 'mnist'"]),
        ("data=unpaired data@data.og=mnist", ["no key 'data.og'", "Valid:", "of, pad, shape"]),
        ("data=unpaired data@data.of=digits data.of.root=x", ["data.of.root=x: there is no key 'data.of.root'"]),
        ("+modell=vae", ["modell"]),
        ("++trainer.stesp=3", ["stesp", "Did you mean 'steps'?"]),
        ("model=null", ["model"]),
        ("optim.lr=abc", ["optim.lr=abc", "number above 0"]),
        ("optim.lr=-1", ["optim.lr=-1", "above 0"]),
        ("optim.lr=nan", ["optim.lr=nan", "above 0"]),
        ("optim.lr=inf", ["optim.lr=inf"]),
        ("model.latent_dim=-1", ["model.latent_dim=-1", "at least 1"]),
        ("model.latent_dim=2.5", ["model.latent_dim=2.5", "whole number"]),
        ("model.latent_dim=010", ["model.latent_dim=010", "whole number"]),
        ("model.latent_dim=12:30", ["model.latent_dim=12:30", "whole number"]),
        ("model.latent_dim=null", ["model.latent_dim=null", "whole number"]),
        ("model.hidden=[10,x]", ["model.hidden=", "list"]),
        ("model.network=mpl", ["model.network=mpl", "Did you mean 'mlp'?", "conv"]),
        ("trainer.steps=0", ["trainer.steps=0", "at least 1"]),
        ("trainer.steps=null", ["trainer.steps", "trainer.epochs"]),
        ("trainer.ema=1", ["trainer.ema=1", "below 1"]),
        ("trainer.clip=yes", ["trainer.clip=yes", "number"]),
        ("trainer.steps=true", ["trainer.steps=true", "whole number"]),
        ("data.batch_size=100000", ["data.batch_size=100000", "training examples"]),
        ("data.binarization=sometimes", ["data.binarization=sometimes", "dynamic"]),
        ("data.shape=[3,3]", ["data.shape", "leave"]),
        ("seed=-1", ["seed=-1", "at least 0"]),
        ("seed=no", ["seed=no", "whole number"]),
        ("model=rbm objective=elbo", ["LatentVariable", "Objectives that fit the model: cd", "Models that fit", "vae"]),
        ("model=vae objective=pcd", ["Harmonium", "elbo", "rbm"]),
        ("model=vae objective=cd", ["Harmonium", "elbo", "rbm"]),
        ("model=dcgan data=ring", ["images", "model=gan"]),
        ("model=ddpm model.sampler=didm", ["model.sampler=didm", "ancestral | ddim"]),
        ("model=ddpm model.schedule=cosin", ["model.schedule=cosin", "linear | cosine. Did you mean 'cosine'?"]),
        ("model=autoencoder objective.loss=error", ["objective.loss=error", "auto | squared_error | cross_entropy"]),
        ("model=dcgan data=bars", ["3"]),
        ("model.network=conv data=ring", ["model.network=conv", "mlp"]),
        ("model=gan optim.parts.critic.lr=1", ["critic"]),
        ("model=gan optim.parts.generator.rl=1", ["rl", "lr"]),
        ("model=gan optim.parts.generator.lr=abc", ["optim.parts.generator.lr=abc", "number above 0"]),
        ("model=vae optim=adam_gan", ["optim.parts", "optim=adam"]),
        ("optim=sgd optim.nesterov=true optim.momentum=0", ["nesterov", "momentum"]),
        ("device.precision=fp16", ["fp16", "bf16"]),
        ("device.graphs=true", ["CUDA GPU", "leave it false"]),
        ("data=folder", ["data.path"]),
        ("model._target_=gentrain.models.vae.VEA", ["VEA", "Did you mean 'VAE'?"]),
        ("model._target_=gentrain.models.vea.VAE", ["gentrain.models.vea"]),
        ("optim.lr=${optim.rate}", ["rate"]),
        ("optim.lr=${oc.env:NOWHERE_TO_BE_FOUND}", ["NOWHERE_TO_BE_FOUND"]),
        ("a", ["there is no such verb", "sample"]),
        ("trian model=vae", ["Did you mean 'train'?"]),
        ("model=vae gan", ["gan"]),
        ("sample", ["run", "must be given"]),
        ("sample run=nowhere", ["nowhere"]),
        ("sample run=nowhere n=0", ["n=0", "at least 1"]),
        ("sample run=nowhere kind=dream", ["kind=dream", "prior"]),
        ("sample run=nowhere fromat=png", ["fromat", "Did you mean 'format'?"]),
        ("sample n", ["key=value"]),
        ("model=rbm objective=pcd objective.hidden=x", ["objective.hidden=x", "whole number"]),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line(args: str, words: list[str], capsys):
    code = 1 if args == "sample run=nowhere" else 2
    complaint = refused(capsys, *args.split(), code=code)
    for word in words:
        assert word in complaint


@pytest.mark.parametrize("group", ["model", "objective", "data", "optim", "device"])
def test_every_option_composes_and_passes_the_checks(group: str):
    """Every argument of every constructor stands in its YAML file, typed and in range."""
    fits = {o: m for m, o in fitting_pairs()}
    for option in GROUPS[group]:
        overrides = [f"{group}={option}"]
        if group == "objective":
            overrides.append(f"model={fits[option]}")
        cfg = config.compose("train", overrides)
        missing = [f"{s}.{k}=x" for s in ("data", "model") for k in cfg[s] if OmegaConf.is_missing(cfg[s], str(k))]
        plain = config.check(config.compose("train", [*overrides, *missing]))
        if "_target_" in plain[group]:
            takes = parameters(plain[group]["_target_"])
            assert set(takes) <= set(plain[group]), f"{group}={option} doesn't list every argument"


def test_every_option_says_what_it_is_on_its_first_line():
    for group in ("model", "objective", "data", "optim", "device"):
        for option in GROUPS[group]:
            first = (config.conf_dir() / group / f"{option}.yaml").read_text().splitlines()[0]
            assert first.startswith("# ") and len(first) > 5, f"{group}/{option}.yaml"
