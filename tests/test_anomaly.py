"""The anomaly estimator: its AUROC and errors against other computations, and as a command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from helpers import build
from sklearn.metrics import average_precision_score, roc_auc_score

import gentrain
from gentrain.cli import main
from gentrain.data.pipeline import Pipeline
from gentrain.evaluation.anomaly import Anomaly, auroc
from gentrain.evaluation.estimator import Finding, Subject, seeded
from gentrain.models.base import Reconstructs
from gentrain.models.factorial import Factorial


def test_the_area_is_the_share_of_pairs_in_order_ties_counted_half():
    torch.manual_seed(0)
    own, strange = torch.randint(0, 5, (40,)).double(), torch.randint(1, 7, (30,)).double()
    pairs = (strange[:, None] > own).double() + 0.5 * (strange[:, None] == own).double()
    assert auroc(own, strange)[0] == pytest.approx(float(pairs.mean()), abs=1e-12)
    labels = [0] * 40 + [1] * 30
    assert auroc(own, strange)[0] == pytest.approx(roc_auc_score(labels, torch.cat([own, strange])), abs=1e-12)
    assert auroc(own, own + 10)[0] == 1 and auroc(own, own - 10)[0] == 0 and auroc(own, own)[0] == 0.5


def test_its_error_is_the_deviation_over_fresh_data():
    rng = np.random.default_rng(0)
    found = [auroc(torch.from_numpy(rng.normal(0, 1, 80)), torch.from_numpy(rng.normal(1, 2, 50))) for _ in range(600)]
    values, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)  # of 600 repetitions, 3 % by itself


def test_a_model_of_pixels_finds_other_pixels_strange(tmp_path: Path):
    """Against a likelihood worked out by hand, for binary images lit with probability 0.2 and others with 0.35."""
    rng = np.random.default_rng(1)
    own = (rng.random((500, 1, 3, 3)) < 0.2).astype(np.uint8)
    other = (rng.random((300, 1, 3, 3)) < 0.35).astype(np.uint8)
    sources = []
    for name, x in (("own", own), ("other", other)):
        np.savez(tmp_path / f"{name}.npz", x_train=x, x_test=x)
        path = f"data.path={tmp_path}/{name}.npz"
        sources.append(build("model=factorial", "data=npz", path, "data.layout=chw", "data.validation=0").source)
    model = Factorial((1, 3, 3), levels=2)
    model.accumulate(torch.from_numpy(own).float())
    pipelines = [Pipeline(source, "binary", 10, 0) for source in sources]
    subject = Subject(model, pipelines[0], elsewhere=lambda named: pipelines[1])
    with seeded(0):
        found = [f for f in Anomaly(against="other")(subject) if isinstance(f, Finding)]
    p = (own.reshape(500, 9).sum(0) + 1) / (500 + 2)
    nll = [-(x.reshape(-1, 9) * np.log(p) + (1 - x.reshape(-1, 9)) * np.log(1 - p)).sum(1) for x in (own, other)]
    labels, scores = np.repeat([0, 1], [500, 300]), np.concatenate(nll).round(5)
    assert [(f.metric, f.kind, f.n) for f in found] == [
        ("anomaly_auroc", "exact", 500), ("anomaly_average_precision", "exact", 500),
    ]  # fmt: skip
    assert found[0].value == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)  # float32 parts some ties
    assert found[1].value == pytest.approx(average_precision_score(labels, scores), abs=5e-3)
    assert 0.01 < found[1].stderr < 0.04


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("anomaly")
    return gentrain.train([*TINY, "model=vae", "model.hidden=[8]", "model.latent_dim=2", f"output={folder}"]).path


def test_the_command_takes_another_data_set_by_name_or_by_its_options(run: Path, tmp_path: Path, capsys):
    x = np.full((40, 1, 8, 8), 255, np.uint8)  # all lit: nothing like a digit
    np.savez(tmp_path / "white.npz", x_train=x, x_test=x)
    white = f"data.anomaly={{set: npz, path: '{tmp_path}/white.npz'}}"
    rows = gentrain.evaluate(run, ["metrics=[anomaly]", white, "device=cpu"])
    assert {(r.metric, r.kind) for r in rows} == {
        (metric, kind) for metric in ("anomaly_auroc", "anomaly_average_precision") for kind in ("elbo", "recon")
    }
    model = gentrain.load(run)
    assert isinstance(model, Reconstructs)
    digits = Subject(model, Pipeline(build("model=vae").source, "binary", 10, 0)).examples()
    with torch.no_grad():
        errors = [(t - model.reconstruct(t)).square().flatten(1).sum(1) for t in (digits, torch.ones(40, 1, 8, 8))]
    expected = roc_auc_score([0] * len(digits) + [1] * 40, torch.cat(errors))
    [row] = [r for r in rows if r.metric == "anomaly_auroc" and r.kind == "recon"]
    assert row.value == pytest.approx(expected, abs=1e-3) and expected > 0.5
    assert row.unit == "share (against npz)" and row.settings["n_other"] == 40
    again = gentrain.evaluate(run, ["metrics=[anomaly]", "data.anomaly=digits", "device=cpu"])
    assert {round(r.value, 6) for r in again if r.metric == "anomaly_auroc" and r.kind == "recon"} == {0.5}
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "needs another data set to be told from: say data.anomaly=NAME"),
        ("data.anomaly=bars", "data.anomaly=bars: must hold examples like the run's own"),
        ("data.anomaly=fashion", "Did you mean 'fashion_mnist'?"),
        ("data.anomaly={path: x}", "says no set"),
        ("data.anomaly=3", "data.anomaly=3"),
    ],
)
def test_data_that_cannot_be_told_from_are_one_line(run: Path, words: str, complaint: str, capsys):
    assert main(["evaluate", f"run={run}", "metrics=[anomaly]", *([words] if words else [])]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and complaint in said
