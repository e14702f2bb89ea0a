"""`gentrain evaluate`: what goes into the ledger, what is read back from it, and what never harms it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gentrain
from gentrain.cli import main
from gentrain.errors import UsageError
from gentrain.evaluation import ledger
from gentrain.evaluation.ledger import Row

ROW = Row("elbo", "elbo", -1.0, 0.1, "nats", "binary", "binary", "test", 10, {"estimator": "elbo"}, 0, "abc", 0.5)
FAST = ["metrics=[elbo,iwae]", "metric.iwae.samples=5", "device=cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    tiny = [*TINY, "model=vae", "model.hidden=[8]", "model.latent_dim=2", "data=bars", "data.n=100"]
    return gentrain.train([*tiny, f"output={folder}"]).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run folder of one's own, as training has left it."""
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    return copy


def test_rows_say_what_they_are(run: Path):
    rows = gentrain.evaluate(run, [*FAST, "seed=3"])
    assert [(r.metric, r.kind) for r in rows] == [("elbo", "elbo"), ("log_likelihood", "iwae-5")]
    iwae = rows[1]
    assert iwae.unit == "nats" and iwae.support == "binary" and iwae.split == "test" and iwae.seed == 3
    assert iwae.settings["estimator"] == "iwae" and iwae.settings["samples"] == 5
    weights = next((run / "checkpoints").glob("step-00000012.pt"))
    assert iwae.checkpoint == ledger.read(run)[0].checkpoint  # training's own rows name the same file
    assert json.loads((run / "checkpoints" / "last.json").read_text())["file"] == weights.name
    assert [r for r in ledger.read(run) if r.settings["estimator"] == "iwae"] == [iwae]


def test_the_same_again_reads_and_others_add(run: Path):
    first = gentrain.evaluate(run, FAST)
    before = len(ledger.read(run))
    marked = [replace(r, value=123.0) if r.kind == "iwae-5" else r for r in ledger.read(run)]
    ledger.add(run, marked)
    again = gentrain.evaluate(run, FAST)
    assert [r.value for r in again] == [first[0].value, 123.0]  # read, not computed
    assert len(ledger.read(run)) == before
    anew = gentrain.evaluate(run, [*FAST, "again=true"])
    assert [r.value for r in anew] == [r.value for r in first]  # the same draws give the same number
    assert len(ledger.read(run)) == before
    for change in (["seed=1"], ["n=7"], ["split=validation"], ["metric.iwae.samples=6"]):
        rows = gentrain.evaluate(run, [*FAST, *change])
        assert len(ledger.read(run)) > before, change
        before = len(ledger.read(run))
        assert rows[1].n == (7 if change == ["n=7"] else rows[1].n)


def test_a_number_over_a_few_examples_is_not_taken_for_one_over_all(run: Path):
    few, every = gentrain.evaluate(run, [*FAST, "n=7"]), gentrain.evaluate(run, FAST)
    assert [r.n for r in few] == [7, 7] and all(r.n > 7 for r in every)
    for n in (7, 5):
        assert [r.n for r in gentrain.evaluate(run, [*FAST, f"n={n}"])] == [n, n]
    block = next(b for b in gentrain.compare(run, metrics=["iwae-5"]).blocks)
    assert [e.value for e in block.entries] == [every[1].value]


def test_another_way_to_draw_gives_numbers_of_their_own(train: Callable[..., Any]):
    rbm = train("model=rbm", "model.hidden=8").path
    own, coins = (gentrain.evaluate(rbm, ["metrics=[mmd]", *to]) for to in ([], ["sampling={burn_in: 0}"]))
    assert coins[0].value > own[0].value + 5 * (coins[0].stderr + own[0].stderr), "coins are no digits"
    assert coins[0].settings["sampling"] == {"burn_in": 0} and "sampling" not in own[0].settings
    assert gentrain.evaluate(rbm, ["metrics=[mmd]"]) == own
    assert {r.tag for r in own} & {r.tag for r in coins} == set()
    measures = {b.measure.drawn for b in gentrain.compare(rbm, metrics=["mmd"]).blocks}
    assert len(measures) == 2 and any(words.endswith("drawn by burn_in=0") for words in measures)
    with pytest.raises(UsageError, match=r"sampling\.hidden: is nothing that RBM draws by; it has burn_in"):
        gentrain.evaluate(rbm, ["metrics=[mmd]", "sampling={hidden: 3}"])


def test_tensorboard_and_a_resumed_run_keep_what_was_evaluated(run: Path):
    gentrain.evaluate(run, FAST)
    events = EventAccumulator(str(run))
    events.Reload()
    value = next(r.value for r in ledger.read(run) if r.kind == "iwae-5")
    (event,) = events.Scalars("test/log_likelihood/iwae-5")
    assert event.step == 12 and event.value == pytest.approx(value)
    rows = ledger.read(run)
    assert main(["resume", f"run={run}", "trainer.steps=15"]) == 0
    assert [r for r in ledger.read(run) if r in rows] == rows


def test_evaluating_draws_nothing_from_the_generators_of_others(run: Path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    gentrain.evaluate(run, FAST)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "args, words",
    [
        (["metrics=[pseudo]"], ["VAE is no PseudoLikelihood", "what can judge it:", "iwae"]),
        (["metrics=[exact,elbo]"], ["metrics=[exact]", "VAE is no Density"]),
        (["metrics=[iwea]"], ["'iwea'", "Did you mean 'iwae'?"]),
        (["metrics=[]"], ["metrics=[]", "name at least one"]),
        (["metric.iwae.samples=0"], ["metric.iwae.samples=0", "at least 1"]),
        (["metric.iwae.sample=1"], ["Did you mean 'samples'?"]),
        (["metrics=[fid]", "metric.fid.n_fake=1"], ["gentrain: metric.fid.n_fake=1: this estimator needs at least 4"]),
        (["n=100000"], ["n=100000", "the test split of data=bars has"]),
        (["split=tset"], ["split=tset", "Did you mean 'test'?"]),
        (["again=perhaps"], ["again=perhaps", "true or false"]),
        (["splt=test"], ["Did you mean 'split'?"]),
        (["metric.iwae._target_=os.system"], ["os.system", "outside gentrain"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_costs_no_row(args: list[str], words: list[str], run: Path, capsys):
    before = (run / "evaluation.json").read_bytes()
    assert main(["evaluate", f"run={run}", "device=cpu", *args]) == 2
    out = capsys.readouterr()
    assert len(out.err.splitlines()) == 1
    assert all(word in out.err for word in words), out.err
    assert (run / "evaluation.json").read_bytes() == before


def test_a_run_without_a_checkpoint(run: Path, capsys):
    for file in (run / "checkpoints").glob("*.pt"):
        file.unlink()
    assert main(["evaluate", f"run={run}"]) == 1
    assert "holds no checkpoint yet" in capsys.readouterr().err


def test_a_split_that_is_not_there(tmp_path: Path, capsys):
    tiny = [*TINY, "model=vae", "data=bars", "data.n=100", "data.validation=0", f"output={tmp_path}"]
    run = gentrain.train([*tiny, "trainer.evaluate_every=0"]).path
    assert main(["evaluate", f"run={run}", "split=validation"]) == 2
    assert "split=validation: data=bars has train, test" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"schema": 2, "rows": []}', "schema 2"),
        ('{"schema": 1, "rows": [{"metric": "elbo"}]}', "a row lacks"),
        ('{"schema": 1, "ro', "damaged"),
        ("[]", "damaged"),
        ('{"schema": 1, "rows": null}', "damaged"),
    ],
)
def test_a_ledger_that_cannot_be_read_stays_as_it_is(content: str, words: str, run: Path, capsys):
    (run / "evaluation.json").write_text(content)
    assert main(["evaluate", f"run={run}", *FAST]) == 1
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1
    assert (run / "evaluation.json").read_text() == content


def test_a_killed_evaluation_leaves_the_ledger_whole(run: Path):
    """Killed within the second estimator: the first one's row is there, and all older ones."""
    before = ledger.read(run)
    slow = ["metrics=[elbo,iwae]", "metric.iwae.samples=100000000", "device=cpu"]
    process = subprocess.Popen(command("evaluate", f"run={run}", *slow), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(ledger.read(run)) == len(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    after = ledger.read(run)
    assert after[: len(before)] == before
    assert [r.settings["estimator"] for r in after[len(before) :]] == ["elbo"]
    assert [r.kind for r in gentrain.evaluate(run, FAST)] == ["elbo", "iwae-5"]


def _add(run: Path, i: int) -> None:
    ledger.add(run, [replace(ROW, seed=i)])


def test_two_processes_lose_no_row_of_each_other(tmp_path: Path):
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_add, [tmp_path] * 40, range(40)))
    assert sorted(r.seed for r in ledger.read(tmp_path)) == list(range(40))


def test_a_measurement_taken_again_replaces_itself_alone(tmp_path: Path):
    ledger.add(tmp_path, [ROW, replace(ROW, unit="bits/dim"), replace(ROW, protocol="binary, static binarization")])
    ledger.add(tmp_path, [replace(ROW, value=-2.0)])
    assert [r.value for r in ledger.read(tmp_path)] == [-2.0, -1.0, -1.0]
