"""Interrupted and resumed is uninterrupted: bit for bit, file for file, through real signals to real processes."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import TINY, command, runs
from helpers import bare_trainer, differences, fit, learned, resumed
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gentrain
from gentrain import checkpoint
from gentrain.checkpoint import Keeper
from gentrain.cli import main
from gentrain.errors import GentrainError
from gentrain.evaluation import ledger
from gentrain.run import Run, read_metrics

BARS = ["data=bars", "data.n=40", "data.batch_size=10"]  # four steps an epoch
TRAININGS = {
    "vae": ["model=vae", "model.hidden=[8]", "objective.warmup=0.5", "optim.schedule=cosine", "optim.warmup=0.3"],
    "gan": ["model=gan", "model.hidden=[8]", "objective.discriminator_steps=2", "optim.parts.generator.lr=1e-4"],
    "pcd": ["model=rbm", "objective=pcd", "model.hidden=6", "model.burn_in=5", "optim.momentum=0.9"],
    "cd": ["model=rbm", "objective=cd", "model.hidden=6", "model.burn_in=5", "optim=adam", "optim.schedule=step"],
}


@pytest.mark.parametrize("step", [3, 4, 5], ids=["mid-epoch", "epoch edge", "after the edge"])
@pytest.mark.parametrize("training", TRAININGS)
def test_stopping_anywhere_changes_nothing(training: str, step: int, tmp_path: Path):
    overrides = [*BARS, *TRAININGS[training], "trainer.steps=9", "trainer.log_every=2", "trainer.ema=0.8"]
    overrides += ["trainer.clip=0.5", "trainer.checkpoint_every=4"]
    whole = fit(bare_trainer(tmp_path / "whole", *overrides))
    first = fit(bare_trainer(tmp_path / "parts", *overrides), until=step)
    second = fit(resumed(bare_trainer(tmp_path / "parts", *overrides)))
    assert differences(learned(whole.state_dict()), learned(second.state_dict())) == []
    assert first.report.filed + second.report.filed == whole.report.filed
    saved = checkpoint.newest(tmp_path / "parts")
    assert saved is not None and differences(learned(saved[1]), learned(whole.state_dict() | _stamp(saved[1]))) == []


def _stamp(state: dict) -> dict:
    return {key: state[key] for key in ("format", "schema", "version")}


# --- whole runs ---------------------------------------------------------------------------------------------------

LONG = ["trainer.log_every=20", "trainer.evaluate_every=200", "trainer.sample_every=400", "trainer.steps=1000"]
LONG += ["trainer.checkpoint_every=100", "device=cpu", "trainer.ema=0.99"]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("speed/")
    }


def metrics(run: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if not k.startswith("speed/")} for r in read_metrics(run)]


def assert_same_run(whole: Path, parts: Path) -> None:
    """Weights, averages, optimizers, buffers, generators, metrics, curves, best checkpoint, test numbers."""
    a, b = (checkpoint.find(run)[1] for run in (whole, parts))
    assert differences(learned(a), learned(b)) == []
    assert metrics(parts) == metrics(whole)
    curves = scalars(parts)
    assert curves == scalars(whole)
    assert {"validation/elbo", "validation/pseudo_log_likelihood"} & curves.keys()
    for tag, values in curves.items():
        steps = [step for step, _ in values]
        assert steps == sorted(set(steps)), f"{tag}: a step twice"
    best_a, best_b = (json.loads((run / "checkpoints/best.json").read_text()) for run in (whole, parts))
    assert {k: best_a[k] for k in ("step", "value", "metric")} == {k: best_b[k] for k in ("step", "value", "metric")}
    rows_a, rows_b = (ledger.read(run) for run in (whole, parts))
    assert [(r.metric, r.value, r.stderr, r.n) for r in rows_a] == [(r.metric, r.value, r.stderr, r.n) for r in rows_b]
    assert rows_a
    assert json.loads((parts / "status.json").read_text())["state"] == "done"


def start(tmp_path: Path, *overrides: str) -> tuple[subprocess.Popen, Path]:
    """A real process that trains; it and its run folder, once it has written its first checkpoint."""
    process = subprocess.Popen(
        command(*overrides, f"output={tmp_path}/parts"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        for run in runs(tmp_path / "parts"):
            if list(run.glob("checkpoints/step-*.pt")):
                return process, run
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint came: {process.communicate()}")


def test_sigterm_then_resume_is_the_uninterrupted_run(tmp_path: Path, capsys):
    overrides = [*BARS, *TRAININGS["vae"], *LONG]
    process, run = start(tmp_path, *overrides)
    assert main(["resume", f"run={run}"]) == 1  # while the process is at it
    busy = capsys.readouterr().err
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 143
    assert busy.count("\n") == 1 and f"still running (process {process.pid})" in busy
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted" and 100 <= status["step"] < 1000
    assert complaint.count("\n") == 1 and "SIGTERM" in complaint and f"gentrain resume run={run}" in complaint
    assert (run / f"checkpoints/step-{status['step']:08d}.pt").exists()
    assert "Traceback" in (run / "train.log").read_text()
    assert main(["resume", f"run={run}"]) == 0
    whole = gentrain.train([*overrides, f"output={tmp_path}/whole"])
    assert_same_run(whole.path, run)


def test_kill_9_then_resume_is_the_uninterrupted_run(tmp_path: Path):
    overrides = [*BARS, *TRAININGS["pcd"], *LONG, "trainer.steps=600"]
    process, run = start(tmp_path, *overrides)
    while process.poll() is None and metrics(run)[-1]["step"] % 100 < 50:
        time.sleep(0.002)  # until there are lines that no checkpoint covers
    process.kill()
    process.communicate(timeout=60)
    assert json.loads((run / "status.json").read_text())["state"] == "running"
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None and found[1]["step"] < metrics(run)[-1]["step"] < 600
    with open(run / "metrics.jsonl", "a") as file:  # as if it had died writing a line
        file.write('{"step": 599, "train/lo')
    assert main(["resume", f"run={run}"]) == 0
    whole = gentrain.train([*overrides, f"output={tmp_path}/whole"])
    assert_same_run(whole.path, run)


# --- asking for something else --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps."""
    output = tmp_path_factory.mktemp("short")
    return gentrain.train([*TINY, *BARS, *TRAININGS["cd"], "trainer.sample_every=0", f"output={output}"]).path


@pytest.fixture
def copy(short: Path, tmp_path: Path) -> Path:
    target = tmp_path / "outputs/bars/rbm-cd" / short.name
    return Path(shutil.copytree(short, target))


def test_a_finished_run_has_nothing_to_resume(copy: Path, capsys):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    assert main(["resume", f"run={copy}"]) == 0
    assert "done at step 12" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_tensorboard_is_to_look_at_the_outputs_or_at_a_run_that_lies_elsewhere(copy: Path, tmp_path: Path, capsys):
    elsewhere = Path(shutil.copytree(copy, tmp_path / "kept"))
    for run, looked_at in ((copy, tmp_path / "outputs"), (elsewhere, elsewhere)):
        assert main(["resume", f"run={run}", "trainer.steps=13"]) == 0
        assert f"tensorboard --logdir {looked_at}\n" in capsys.readouterr().out


def test_more_steps_is_the_longer_run(copy: Path, tmp_path: Path):
    """The learning rate's schedule follows the steps asked for, so it is left constant here."""
    constant = [
        *TINY,
        *BARS,
        "trainer.sample_every=0",
        "model=rbm",
        "model.hidden=6",
        "model.burn_in=5",
        "optim.schedule=constant",
    ]
    run = gentrain.train([*constant, f"output={tmp_path}/a"]).path
    assert main(["resume", f"run={run}", "trainer.steps=20"]) == 0
    whole = gentrain.train([*constant, "trainer.steps=20", f"output={tmp_path}/b"]).path
    a, b = (checkpoint.find(folder)[1] for folder in (run, whole))
    assert differences(learned(a), learned(b)) == [] and a["step"] == 20
    assert [r for r in metrics(run) if "epoch" in r] == [r for r in metrics(whole) if "epoch" in r]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("optim.lr=0.5", "optim.lr: 0.001 -> 0.5"),
        ("data.batch_size=20", "data.batch_size: 10 -> 20"),
        ("model.hidden=7", "model.hidden: 6 -> 7"),
        ("trainer.ema=0.9", "trainer.ema: None -> 0.9"),
        ("seed=1", "seed: 0 -> 1"),
    ],
)
@pytest.mark.parametrize("by", ["command line", "config.yaml"])
def test_a_change_to_what_is_learned_is_refused_and_listed(change: str, difference: str, by: str, copy: Path, capsys):
    args = ["resume", f"run={copy}", "trainer.steps=14"]
    if by == "command line":
        args.append(change)
    else:
        cfg = OmegaConf.load(copy / "config.yaml")
        key, _, value = change.partition("=")
        OmegaConf.update(cfg, key, json.loads(value))
        OmegaConf.save(cfg, copy / "config.yaml")
    before = (copy / "metrics.jsonl").read_bytes()
    assert main(args) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and difference in complaint and "force=true" in complaint
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_force_accepts_a_change_and_writes_it_down(copy: Path):
    assert main(["resume", f"run={copy}", "trainer.steps=14", "optim.lr=0.5", "force=true"]) == 0
    state = checkpoint.find(copy)[1]
    assert state["step"] == 14 and state["config"]["optim"]["lr"] == 0.5
    assert read_metrics(copy)[-2]["optim/lr"] == pytest.approx(0.5 * 0.01)
    assert "lr: 0.5" in (copy / "config.yaml").read_text()


def test_what_is_not_learned_may_change(copy: Path):
    assert main(["resume", f"run={copy}", "trainer.steps=14", "trainer.log_every=1", "trainer.keep=1"]) == 0
    assert [r["step"] for r in read_metrics(copy) if "epoch" in r][-2:] == [13, 14]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run=nowhere"], "there is no such folder"),
        (["run=."], "is not a run folder"),
        ([], "run=…: must be given"),
        (["run={copy}", "trainer.stesp=20"], "Did you mean 'steps'?"),
        (["run={copy}", "optim.lr=abc", "force=true"], "optim.lr=abc: must be a number above 0"),
        (["run={copy}", "model=vae"], "model"),
        (["run={copy}", "+model.depth=3"], "only key=value"),
    ],
)
def test_a_wrong_resume_is_one_line(args: list[str], words: str, copy: Path, capsys, monkeypatch):
    monkeypatch.chdir(copy.parent)
    assert main(["resume", *(a.format(copy=copy) for a in args)]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and words in complaint


@pytest.mark.parametrize("content", ["model: [1", "- a\n- b\n", "", "a: 1\na: 2\n"])
def test_a_broken_config_yaml_is_named(content: str, copy: Path, capsys):
    (copy / "config.yaml").write_text(content)
    assert main(["resume", f"run={copy}", "trainer.steps=14"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and "config.yaml" in complaint


def test_killed_before_the_first_checkpoint_it_starts_over_and_each_step_stands_once(tmp_path: Path, monkeypatch):
    overrides = [*TINY, *BARS, *TRAININGS["vae"], "trainer.log_every=1", "trainer.sample_every=0"]

    def die(self: Keeper, *args: object) -> None:
        raise RuntimeError("died before the first checkpoint")

    with monkeypatch.context() as patch, pytest.raises(GentrainError, match="died before"):
        patch.setattr(Keeper, "save", die)
        gentrain.train([*overrides, f"output={tmp_path}/parts"])
    (run,) = runs(tmp_path / "parts")
    assert [r["step"] for r in metrics(run)] == [1, 2, 3, 4]
    assert main(["resume", f"run={run}"]) == 0
    assert_same_run(gentrain.train([*overrides, f"output={tmp_path}/whole"]).path, run)


def test_two_runs_of_the_same_second_have_two_folders(tmp_path: Path, monkeypatch):
    tokens = iter(["aaaa", "aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr("gentrain.run.secrets.token_hex", lambda n: next(tokens))

    noon = datetime.datetime(2026, 1, 31, 12, 0, 0)

    class Frozen:
        @staticmethod
        def now() -> datetime.datetime:
            return noon

    monkeypatch.setattr("gentrain.run.datetime.datetime", Frozen)
    first, second = (Run.create(tmp_path, "digits", "vae-elbo") for _ in range(2))
    assert (first.path.name, second.path.name) == ("20260131-120000-aaaa", "20260131-120000-bbbb")


def test_temporaries_of_a_dead_process_are_removed_at_the_next_start(copy: Path):
    stale = copy / "checkpoints" / f".step-00000016.pt.tmp.{os.getpid() + 1}"
    stale.write_bytes(b"half")
    assert main(["resume", f"run={copy}", "trainer.steps=14"]) == 0
    assert not stale.exists()
