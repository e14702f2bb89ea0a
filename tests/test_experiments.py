"""Experiments: each composes and runs in small; a verdict is right; finished and interrupted runs are used; the page of
results is what the records say."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import runs

import gentrain
from gentrain import checkpoint, config, run
from gentrain.cli import main
from gentrain.errors import RunBusyError, UsageError
from gentrain.evaluation.ledger import Row
from gentrain.files import read_json
from gentrain.run import Run
from gentrain.settings import Expectation
from gentrain.tasks import results
from gentrain.tasks.reproduce import Reproduction, judge, plan

NAMES = config.groups()["experiment"]

EXPECTED = Expectation(
    metric="log_likelihood", kind="ais", value=-86.34, tolerance=2.0, protocol="binary, static binarization",
    source="a paper", minutes={"gpu": 30.0}, status="not run",
)  # fmt: skip


def row(value: float, **changes: Any) -> Row:
    """A ledger's row that `EXPECTED` speaks of."""
    usual = {
        "metric": "log_likelihood", "kind": "ais", "stderr": 0.3, "unit": "nats", "support": "binary",
        "protocol": "binary, static binarization", "split": "test", "n": 10_000, "settings": {"estimator": "ais"},
        "seed": 0, "checkpoint": "c", "seconds": 1.0,
    }  # fmt: skip
    return Row(**{**usual, **changes, "value": value})


TINY = """# @package _global_
# {title}
defaults:
  - override /model: {model}
  - override /data: digits
data: {{batch_size: 100}}
trainer: {{steps: 10, checkpoint_every: 5, log_every: 5, sample_every: 0, evaluate_every: 0}}
{more}
evaluate: {{metrics: [{estimator}]}}
expect:
  - metric: {metric}
    kind: {estimator}
    value: {value}
    tolerance: {tolerance}
    protocol: binary, dynamic binarization
    source: none
    minutes: {{cores2: 0.1}}
    status: not run
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of experiments of one's own, tiny ones; the current folder is another empty one."""
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    counted = {"model": "factorial", "estimator": "exact", "metric": "log_likelihood", "more": ""}
    (folder / "low.yaml").write_text(TINY.format(title="Out of reach", value=-5, tolerance=1, **counted))
    (folder / "fits.yaml").write_text(TINY.format(title="Within reach", value=-27, tolerance=2, **counted))
    diverges = "optim: {lr: 1e30}\nmodel: {hidden: [4]}"
    text = TINY.format(
        title="NaN", value=0, tolerance=1, model="vae", estimator="elbo", metric="elbo", more=diverges
    )  # fmt: skip
    (folder / "diverges.yaml").write_text(text)
    (folder / "silent.yaml").write_text("# @package _global_\n# Expects nothing\nseed: 1\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "conf"


@pytest.fixture
def command(own: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """command(…): exit code and output of `gentrain reproduce …` with the tiny experiments at hand."""

    def run(*words: str) -> tuple[int, str]:
        code = main(["reproduce", "--config-dir", str(own), *words, "device=cpu"])
        out, complaint = capsys.readouterr()
        assert "Traceback" not in out + complaint
        return code, out + complaint

    return run


class TestShipped:
    """The experiments in conf/experiment."""

    @pytest.mark.parametrize("name", NAMES)
    def test_it_composes_is_checked_and_says_all_there_is_to_say(self, name: str) -> None:
        one = plan(name)
        assert one.expectations and not one.changes and one.overrides == [f"experiment={name}"]
        title, _text = results.comments(name)
        assert title and not title.startswith("@")
        for e in one.expectations:
            assert e.minutes and (e.measured is None) == (e.status == "not run")
            if e.status != "not run":
                assert e.holds(e.measured or math.nan) == (e.status == "reached")
            assert "gpu" in e.minutes or e.minutes["cores2"] <= 60, (
                "what takes two cores more than an hour is for a GPU"
            )

    @pytest.mark.parametrize("name", NAMES)
    def test_in_small_it_gives_the_numbers_that_are_expected_but_no_verdict(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr("gentrain.evaluation.classifier.STEPS", 3)  # of the classifier that judges samples
        small = [
            *_data(name, tmp_path),
            "data.validation=null",
            "data.batch_size=40",
            "trainer.steps=3",
            "trainer.epochs=null",
        ]
        small += ["trainer.sample_every=0", "trainer.evaluate_every=0", "device=cpu", f"output={tmp_path}"]
        found = gentrain.reproduce(name, [*small, *SMALLER.get(name, [])])
        assert found.verdict == "smoke" and any(
            key.startswith("data.") and key.endswith(("_target_", "path", "n")) for key in found.changes
        )
        for judgement in found.judgements:
            assert judgement.row is not None and "protocol" not in judgement.reason, judgement.reason
            assert math.isfinite(judgement.row.value)
        content = read_json(found.run / "reproduction.json")
        assert content["verdict"] == "smoke" and all(item["holds"] is None for item in content["expectations"])

    def test_the_base_rate_of_mnist(self, mnist_root: str, tmp_path: Path) -> None:
        found = gentrain.reproduce("base_rate_mnist", ["device=cpu", f"output={tmp_path}"])
        assert found.verdict == "pass" and not found.changes
        (row,) = found.rows
        assert row.value == pytest.approx(-205.81, abs=0.05) and row.stderr == pytest.approx(0.45, abs=0.02)
        assert row.n == 10_000


def _data(name: str, folder: Path) -> list[str]:
    """Small data in place of an experiment's own: digits, of a text a short one, of drawn points a few."""
    own = plan(name).config.data
    if "of" in own:  # pairs
        return ["data@data.of=digits", *(["data@data.to=digits"] if own.get("to") else [])]
    if {"modes", "size"} & {*own}:  # a ring, bars and stripes
        return ["data.n=200"]
    if "withhold" in own:
        return ["data=captioned_digits"]
    if "channels" in own:
        return ["data=stacked_digits", "data.n=200"]
    if "path" not in own:
        return ["data=digits"]
    (folder / "short.txt").write_text("What is in a name? " * 2000)
    return [f"data.path={folder}/short.txt"]


SHORT = "schedule=[[1.0,20]]"
SMALLER: dict[str, list[str]] = {
    **{name: ["+evaluate.n=4", "model.hidden=[8]"] for name in ("vae50_mnist", "vae50_mnist_short")},
    **{
        name: ["model.hidden=5"]
        for name in ("rbm25_cd1_mnist", "rbm25_cd10_mnist", "rbm25_pcd_mnist", "rbm25_fpcd_mnist")
    },
    **{
        name: [f"evaluate.metric.ais.{SHORT}", f"evaluate.metric.reverse_ais.{SHORT}", "model.hidden=5"]
        for name in ("rbm500_cd1_mnist", "rbm500_cd3_mnist", "rbm500_cd25_mnist", "rbm500_pcd_mnist")
    },
    "label_rbm_mnist": ["model.hidden=8"],
    **{name: [f"evaluate.metric.bound.{SHORT}", "model.hidden=[8, 8]"] for name in ("dbm_mnist", "dbm_mnist_short")},
    "dbm3_mnist": [f"evaluate.metric.bound.{SHORT}", "model.hidden=[8, 8, 8]"],
    **{
        name: ["model.hidden=[8, 8]", "objective.stages.classify.share=400000"]
        for name in ("dbm_classifier_mnist", "dbm_classifier_mnist_short")
    },
    **{
        name: [f"evaluate.metric.bound.{SHORT}", "model.hidden=[8, 8]"]
        for name in ("dbn500_2000_mnist", "dbn500_2000_mnist_short")
    },
    **{
        name: ["model.hidden=[8, 8]"]
        for name in ("dbn_mnist", "dbn_mnist_short", "dbn_classifier_mnist", "dbn_classifier_mnist_short")
    },
    "sbn_mnist": ["model.hidden=[8, 8]", "+evaluate.n=4"],
    "parzen_real_mnist": ["evaluate.metric.parzen.samples=50", "evaluate.metric.nearest.n_fake=50"],
    "gan_mnist_parzen": ["evaluate.metric.parzen.samples=50", "model.hidden=[8]", "model.discriminator_hidden=[8]"],
    "char_rnn_shakespeare": ["model.hidden=8", "+evaluate.n=50"],
    "dcgan_mnist": ["evaluate.metric.modes.n_fake=50", "model.channels=2"],
    **{name: ["evaluate.metric.modes.n_fake=50"] for name in ("stacked_mnist_dcgan", "stacked_mnist_unrolled")},
    "ddpm_mnist": [
        "evaluate.metric.modes.n_fake=50",
        "evaluate.metric.fid.n_fake=50",
        "model.channels=4",
        "model.sample_steps=2",
        "+evaluate.n=50",
    ],
    "ddpm_ring": ["model.sample_steps=5", "evaluate.metric.diffusion_bound.draws=2"],
    "lapgan_mnist": ["model.halvings=1", "model.channels=4"],
    "stackgan_mnist": ["model.channels=4"],
    "pixel_rnn_mnist": ["model.hidden=4", "+evaluate.n=50"],
    "pixel_rnn_mnist_short": ["model.hidden=4", "+evaluate.n=50"],
    "pixel_cnn_pp_mnist": ["model.channels=4", "model.blocks=1", "+evaluate.n=50"],
    "pixel_cnn_pp_cifar10": ["model.channels=4", "model.blocks=1", "+evaluate.n=50"],
    "bernoulli_mixture_mnist": ["model.components=10"],
    "nade500_mnist": ["model.hidden=8", "+evaluate.n=50"],
    **{name: ["model.hidden=[8, 8]", "model.masks=2"] for name in ("made_mnist_short", "made2x8000_mnist")},
    **{
        name: ["model.hidden=[8, 8]", "model.orderings=2", "+evaluate.n=50"]
        for name in ("eonade_mnist", "eonade128_mnist")
    },
}
"""What makes an experiment's evaluation small; kinds and protocols stay."""


class TestVerdict:
    """An expectation held against rows of a ledger, with numbers chosen for it."""

    @pytest.mark.parametrize(
        ("direction", "value", "holds"),
        [
            ("within", -88.3, True),
            ("within", -88.4, False),
            ("within", -84.4, True),
            ("within", -84.3, False),
            ("at_least", -88.3, True),
            ("at_least", -88.4, False),
            ("at_least", -10.0, True),
            ("at_most", -84.4, True),
            ("at_most", -84.3, False),
            ("at_most", -900.0, True),
            ("within", math.nan, False),
            ("at_least", math.nan, False),
            ("at_most", math.nan, False),
            ("at_least", math.inf, True),
            ("within", -math.inf, False),
        ],
    )
    def test_direction_and_tolerance(self, direction: Any, value: float, holds: bool) -> None:
        found = judge(replace(EXPECTED, direction=direction), [row(value)])
        assert found.holds == holds and bool(found.reason) != holds

    def test_only_the_row_that_is_meant_counts(self) -> None:
        others = [
            row(-86, metric="elbo"), row(-86, kind="reverse-ais"), row(-86, unit="bits/dim"), row(-86, split="train"),
        ]  # fmt: skip
        assert judge(EXPECTED, [*others, row(-90)]).row == row(-90)
        missing = judge(EXPECTED, others)
        assert missing.row is None and not missing.holds
        assert "no row of log_likelihood (ais, nats, test)" in missing.reason and "reverse-ais" in missing.reason
        assert not judge(EXPECTED, []).holds

    def test_another_protocol_never_passes(self) -> None:
        found = judge(EXPECTED, [row(-86.34, protocol="binary, dynamic binarization")])
        assert not found.holds and "dynamic" in found.reason


class TestCommand:
    """`gentrain reproduce`, on tiny experiments."""

    def test_pass_and_fail(self, command) -> None:
        code, out = command("experiment=fits")
        assert code == 0 and "fits: pass" in out and "-27 ± 2" in out
        (run,) = runs(Path("outputs"))
        content = read_json(run / "reproduction.json")
        assert content["verdict"] == "pass" and content["changes"] == {} and content["steps"] == 10
        (item,) = content["expectations"]
        (measured,) = read_json(run / "evaluation.json")["rows"][1:]
        assert item["holds"] is True and item["found"] == measured["value"] == content["rows"][0]["value"]
        assert str(round(measured["value"], 2)) in out
        assert content["git"] == content["trained"]["git"] and content["machine"]["cores"] >= 1
        assert content["command"] == "gentrain reproduce experiment=fits device=cpu"
        code, out = command("experiment=low")
        assert code == 1 and "low: fail" in out and "is not -5 ± 1" in out

    def test_a_changed_recipe_has_no_verdict(self, command) -> None:
        code, out = command("experiment=low", "trainer.steps=4", "seed=3", "trainer.log_every=1")
        assert code == 0 and "not the declared recipe: trainer.steps 10 -> 4: " in out and "low: smoke" in out
        assert "fail" not in out and "pass" not in out.replace("passes", "")
        code, out = command("experiment=low", "seed=3", "trainer.log_every=1", "device.threads=1")
        assert code == 1 and "low: fail" in out, "a seed and how often to look are free"

    def test_a_finished_run_is_evaluated_and_not_trained_again(self, command) -> None:
        command("experiment=fits")
        (run,) = runs(Path("outputs"))
        code, out = command("experiment=fits", "trainer.log_every=2")
        assert code == 0 and str(run) in out and "evaluating the finished run" in out
        assert runs(Path("outputs")) == [run]
        for words in (["experiment=fits", "reuse=false"], ["experiment=fits", "seed=1"], ["experiment=low"]):
            before = len(runs(Path("outputs")))
            command(*words)
            assert len(runs(Path("outputs"))) == before + 1, words

    def test_an_interrupted_run_goes_on(self, command) -> None:
        command("experiment=fits")
        (run,) = runs(Path("outputs"))
        (run / "checkpoints" / "step-00000010.pt").unlink()
        status = read_json(run / "status.json")
        (run / "status.json").write_text(json.dumps({**status, "state": "interrupted", "step": 5}))
        code, out = command("experiment=fits")
        assert code == 0 and "going on with the run" in out and "resumed at step 5" in out
        assert runs(Path("outputs")) == [run]
        assert checkpoint.find(run)[1]["step"] == 10

    def test_a_run_that_is_being_trained_is_left_alone(self, own: Path) -> None:
        gentrain.reproduce("fits", ["device=cpu"], [own])
        (run,) = runs(Path("outputs"))
        held = Run.open(run)
        try:
            with pytest.raises(RunBusyError, match="still running"):
                gentrain.reproduce("fits", ["device=cpu"], [own])
        finally:
            held.close()

    def test_several_in_turn_and_none_hides_another(self, command) -> None:
        code, out = command("-m", "experiment=diverges,low,fits")
        assert code == 1 and len(runs(Path("outputs"))) == 3, out
        closing = out[out.rindex("reproduced") :]
        assert re.search(r"diverges .*learning rate 1e\+30", closing.replace("\n", " "))
        assert re.search(r"low .* fail", closing) and re.search(r"fits .* pass", closing)
        assert command("-m", "experiment=fits")[0] == 0

    def test_a_run_that_became_nan_is_no_use(self, command) -> None:
        command("experiment=fits")
        (run,) = runs(Path("outputs"))
        status = read_json(run / "status.json")
        (run / "status.json").write_text(json.dumps({**status, "state": "nan"}))
        assert command("experiment=fits")[0] == 0 and len(runs(Path("outputs"))) == 2

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            ([], "experiment=: must be given"),
            (["experiment=fit"], "Did you mean 'fits'?"),
            (["experiment=silent"], "nothing to reproduce"),
            (["experiment=fits,low"], "reproduce -m experiment="),
            (["-m", "experiment=fits,lwo"], "Did you mean 'low'?"),
            (["experiment=fits", "trainer.stesp=3"], "Did you mean 'steps'?"),
            (["experiment=fits", "evaluate.metrics=[exakt]"], "exact"),
            (["experiment=fits", "evaluate.metrics=exact"], "evaluate.metrics=exact"),
            (["experiment=fits", "reuse=perhaps"], "reuse=perhaps"),
            (["experiment=fits", "rrecord=true"], "rrecord"),
            (["experiment=fits", "record=true"], "of your own"),
            (["experiment=base_rate_mnist", "record=true", "trainer.epochs=2"], "trainer.epochs 1 -> 2"),
            (["experiment=fits", "--quick"], "--quick"),
            (["experiment=fits", "+expect.0.value=x", "trainer.steps=1"], "expect"),
        ],
    )
    def test_a_mistake_is_one_line_before_anything_is_trained(self, command, words: list[str], complaint: str) -> None:
        code, out = command(*words)
        assert code == 2 and complaint in out and out.count("\n") == 1, out
        assert not Path("outputs").exists()


class TestExpectBlock:
    """What a file may say under `expect` and `evaluate`."""

    @pytest.mark.parametrize(
        ("before", "after", "words"),
        [
            ("tolerance: 2", "tolerance: -1", ["expect.0.tolerance=-1", "at least 0"]),
            ("status: not run", "status: yes, really", ["expect.0.status", "reached"]),
            ("value: -27", "value: a lot", ["expect.0.value", "number"]),
            ("    source: none\n", "", ["expect.0.source", "missing"]),
            ("source: none", "sauce: none", ["expect.0.sauce", "Did you mean 'source'?"]),
            ("cores2: 0.1", "cores3: 0.1", ["expect.0.minutes"]),
            ("metrics: [exact]", "metric: {}", ["evaluate.metrics", "missing"]),
        ],
    )
    def test_a_mistake_in_it(self, own: Path, before: str, after: str, words: list[str]) -> None:
        file = own / "experiment" / "fits.yaml"
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, after))
        with pytest.raises(UsageError) as refused:
            plan("fits", folders=[own])
        for word in words:
            assert word in str(refused.value)

    def test_only_an_experiment_brings_it(self) -> None:
        with pytest.raises(UsageError, match="expect"):
            config.compose("train", ["expect=[]"])

    def test_it_travels_with_the_run_and_not_into_the_model(self, own: Path) -> None:
        found = gentrain.reproduce("fits", ["device=cpu"], [own])
        kept = config.read(found.run / "config.yaml")
        assert kept.expect[0].value == -27 and "expect" not in kept.model
        assert gentrain.load(found.run).support == "binary"


class TestPage:
    """docs/results.md and the records that it is made of."""

    FOLDER = results.documents() / "results"

    def test_the_page_is_what_the_records_say(self) -> None:
        assert (results.documents() / "results.md").read_text(encoding="utf-8") == results.render(self.FOLDER)

    def test_records_and_experiments_agree(self) -> None:
        records = {path.stem: read_json(path) for path in self.FOLDER.glob("*.json")}
        assert set(records) <= set(results.experiments())
        for name, content in records.items():
            assert content["verdict"] in ("pass", "fail") and content["experiment"] == name
            assert not content["changes"] and "/" not in content["command"]
            if content["picture"]:
                assert (self.FOLDER / content["picture"]).is_file()
            for item, e in zip(content["expectations"], results.expectations(name), strict=True):
                declared = {k: v for k, v in asdict(e).items() if k not in ("status", "measured", "minutes")}
                assert {k: item[k] for k in declared} == declared, (
                    f"{name}: expects something else since it was recorded"
                )
                assert item["holds"] == e.holds(item["found"])
                assert e.status == ("reached" if item["holds"] else "short"), f"{name}: its file says another status"
                assert e.measured == pytest.approx(item["found"], abs=0.006), f"{name}: its file says another number"

    def test_recording(self, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        conf = tmp_path / "house" / "conf"
        shutil.copytree(config.conf_dir(), conf)
        for name in ("fits", "low"):
            shutil.copy(own / "experiment" / f"{name}.yaml", conf / "experiment")
        (tmp_path / "house" / "docs").mkdir()
        for module in (config, config.composing):
            monkeypatch.setattr(module, "conf_dir", lambda: conf)
        words = ["device=cpu", f"output={tmp_path}/elsewhere"]
        gentrain.reproduce("fits", words, record=True)
        gentrain.reproduce("low", words, record=True)
        folder = tmp_path / "house" / "docs" / "results"
        record = read_json(folder / "fits.json")
        assert record["verdict"] == "pass" and record["command"] == "gentrain reproduce experiment=fits"
        assert str(tmp_path) not in (folder / "fits.json").read_text()
        page = (folder.parent / "results.md").read_text()
        value = record["expectations"][0]["found"]
        assert f"| -27 ± 2 | **{value:.2f}** ± " in page and "**Within reach**" in page
        assert re.search(r"\[low\]\(#low\).*-5 ± 1.* fail \|", page) and "## fits" in page
        waiting = page[page.index("## Not run yet") :]
        assert "base_rate_mnist" in waiting and "fits" not in waiting
        assert (folder / "fits.png").read_bytes()[:4] == b"\x89PNG"

    def test_recording_what_writes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run, name = tmp_path / "run", "char_rnn_shakespeare"
        (run / "samples").mkdir(parents=True)
        for step, text in ((5, "early"), (50, "To be,\n\nor not")):
            (run / "samples" / f"samples-{step:08d}.txt").write_text(text)
        shutil.copyfile(self.FOLDER / f"{name}.json", run / "reproduction.json")
        monkeypatch.setattr(results, "documents", lambda: tmp_path / "docs")
        (tmp_path / "docs").mkdir()
        results.record(Reproduction(name, run, "pass", {}, [], [], {}))
        assert (tmp_path / "docs" / "results" / f"{name}.txt").read_text() == "To be,\n\nor not"
        assert "\n\n    To be,\n\n    or not\n\n" in (tmp_path / "docs" / "results.md").read_text()


def test_records_of_other_experiments_leave_a_checkout_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code, record = tmp_path / "gentrain" / "run.py", tmp_path / "docs" / "results.md"
    for file in (code, record):
        file.parent.mkdir()
        file.write_text("first\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(run, "__file__", str(code))
    record.write_text("second\n")
    found = run._git()
    assert found is not None and found["dirty"] is False and len(found["commit"]) == 40
    code.write_text("second\n")
    found = run._git()
    assert found is not None and found["dirty"] is True
