"""Comparing runs: what may share a table, who is best within error, and files that are damaged or hostile."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

import gentrain
from gentrain import config
from gentrain.cli import main
from gentrain.comparison.ranking import rank
from gentrain.comparison.table import Block, Comparison
from gentrain.errors import UsageError
from gentrain.evaluation.ledger import Row
from gentrain.tasks.compare import render

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m|"
WITHOUT_TORCH = """
import sys
from gentrain.cli import main
for words in sys.argv[1:]:
    assert main(["compare", "runs=runs", *words.split()]) == 0
assert not {"torch", "torchvision", "tensorboard", "matplotlib", "sklearn"} & set(sys.modules)
"""

Make = Callable[..., Path]


def a_row(value: float = -86.0, stderr: float = 0.3, **other: Any) -> Row:
    fields: dict[str, Any] = {
        "metric": "log_likelihood", "kind": "exact", "value": value, "stderr": stderr, "unit": "nats",
        "support": "binary", "protocol": "binary, dynamic binarization", "split": "test", "n": 100,
        "settings": {"estimator": "exact", "ema": False}, "seed": 0, "checkpoint": "aa", "seconds": 1.0,
    }  # fmt: skip
    return Row(**{**fields, **other})


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make("a", [rows], seed=1, lr=…): a run folder under runs/ with known numbers, written by hand."""

    def folder(name: str, rows: list[Row] = [], state: str = "done", seed: int = 0, **settings: Any) -> Path:  # noqa: B006
        path = tmp_path / "runs" / name
        for inside in ("checkpoints", "samples"):
            (path / inside).mkdir(parents=True)
        shared = {"binarization": "dynamic", "dequantize": False, "shape": [1, 8, 8], "levels": 17, "classes": 10}
        config = {
            "seed": seed, "output": f"somewhere/{name}", "trust": [], "traceback": False,
            "data": {"_target_": "gentrain.data.embedded.digits", "batch_size": 10, "validation": None,
                     "support": None, **shared},
            "model": {"_target_": f"gentrain.models.rbm.{settings.pop('model', 'RBM')}", "shape": "${data.shape}",
                      "hidden": settings.pop("hidden", 25)},
            "objective": {"_target_": "gentrain.objectives.contrastive.CD", "k": settings.pop("k", 1)},
            "optim": {"_target_": "gentrain.optim.SGD", "lr": settings.pop("lr", 0.1), "betas": [0.9, 0.999]},
            "trainer": {"steps": 100, "log_every": 50 + seed, "clip": None},
        }  # fmt: skip
        assert not settings
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        reason = "" if state == "done" else f"ended as {state}"
        write(path / "status.json", {"state": state, "step": 100, "reason": reason, "pid": 1, "time": ""})
        write(path / "run.json", {"command": [], "data": "f00d", "parameters": 1234})
        write(path / "evaluation.json", {"schema": 1, "rows": [asdict(row) for row in rows]})
        lines = [
            {"step": 50, "train/loss": 3.0, "validation/elbo": -4.0, "speed/examples_per_second": 100.0},
            {"step": 100, "train/loss": 2.0, "validation/elbo": -3.0, "speed/examples_per_second": 50.0},
            {"step": 100, "test/elbo": -3.0},
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (path / "samples" / "samples-00000100.png").write_bytes(PNG)
        return path

    return folder


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def only(comparison: Comparison) -> Block:
    assert len(comparison.blocks) == 1
    return comparison.blocks[0]


def marks(block: Block) -> dict[str, str]:
    return {entry.group.label: entry.mark for entry in block.entries}


class TestLines:
    """Which runs make one line, and what stands in it."""

    def test_a_mean_is_over_numbers_that_were_made_alike(self, make: Make, place: Path):
        few, many = ({"estimator": "ais", "chains": chains, "ema": False} for chains in (10, 500))
        for seed, (value, how) in enumerate([(-86.0, few), (-84.0, few), (-90.0, many)]):
            make(f"r{seed}", [a_row(value, 0.5, kind="ais", settings=how)], seed=seed)
        block = only(gentrain.compare(place))
        assert block.columns == ["run", "metric.chains"]
        found = {entry.cells["metric.chains"]: (entry.value, len(entry.members), entry.over) for entry in block.entries}
        assert found == {10: (-85.0, 2, "seeds"), 500: (-90.0, 1, "examples")}
        assert block.notes == ["made with different settings of the estimator: chains 10, 500"]
        assert only(gentrain.compare(place, group_by="model")).columns == ["model", "metric.chains"]

    def test_seeds_become_mean_and_standard_deviation(self, make: Make, place: Path):
        values = [-86.0, -85.0, -87.5]
        for seed, value in enumerate(values):
            make(f"r{seed}", [a_row(value, 0.3)], seed=seed)
        entry = only(gentrain.compare(place)).entries[0]
        deviation = statistics.stdev(values)
        assert entry.over == "seeds"
        assert entry.value == pytest.approx(sum(values) / 3)
        assert entry.spread == pytest.approx(deviation)
        assert entry.error == pytest.approx(math.sqrt(deviation**2 / 3 + 0.3**2))
        assert "-86.2 ± 1.3  3 seeds" in str(gentrain.compare(place))

    def test_of_one_seed_the_standard_error_is_shown(self, make: Make, place: Path):
        make("r", [a_row(-86.0, 0.25)])
        entry = only(gentrain.compare(place)).entries[0]
        assert (entry.value, entry.spread, entry.error) == (-86.0, 0.25, 0.25)
        assert "-86.00 ± 0.25  100 examples" in str(gentrain.compare(place))

    def test_a_repeated_seed_counts_once_and_that_is_said(self, make: Make, place: Path):
        make("20260101-a", [a_row(-86.0)])
        make("20260102-b", [a_row(-85.0)])
        block = only(gentrain.compare(place))
        assert [(e.value, e.over) for e in block.entries] == [(-85.0, "examples")]
        assert any("20260101-a" in note for note in block.notes)

    def test_only_settings_that_differ_are_columns(self, make: Make, place: Path):
        make("a", [a_row()], lr=0.1, seed=0)
        make("b", [a_row()], lr=0.2, seed=3)
        block = only(gentrain.compare(place))
        assert block.columns == ["run", "optim.lr"]
        assert [entry.cells for entry in block.entries] == [
            {"run": "rbm-cd", "optim.lr": 0.1}, {"run": "rbm-cd", "optim.lr": 0.2}
        ]  # fmt: skip

    def test_a_setting_of_different_classes_is_no_difference(self, make: Make, place: Path):
        make("a", [a_row()], model="RBM", hidden=25)
        make("b", [a_row()], model="Other", hidden=[400])
        assert only(gentrain.compare(place)).columns == ["run"]
        assert set(marks(only(gentrain.compare(place)))) == {"rbm-cd", "other-cd"}

    def test_lines_by_named_settings_say_what_they_average_over(self, make: Make, place: Path):
        for i, (k, lr, value) in enumerate([(1, 0.1, -90.0), (1, 0.2, -92.0), (10, 0.1, -86.0)]):
            make(f"r{i}", [a_row(value)], k=k, lr=lr)
        block = only(gentrain.compare(place, group_by=["objective.k"]))
        assert {e.group.label: e.value for e in block.entries} == {"objective.k=1": -91.0, "objective.k=10": -86.0}
        assert any("objective.k=1" in note and "optim.lr" in note for note in block.notes)
        assert [e.over for e in block.entries] == ["examples", "runs"], "runs of one seed are no seeds"

    def test_cost_stands_beside_quality(self, make: Make, place: Path):
        make("r", [a_row()])
        entry = only(gentrain.compare(place)).entries[0]
        assert entry.mean("seconds") == pytest.approx(50 * 10 / 100 + 50 * 10 / 50)
        assert entry.mean("rate") == pytest.approx(1000 / 15)
        assert entry.mean("parameters") == 1234
        write(place / "r/run.json", {"command": []})
        assert re.search(r"examples +– +15\.0 s +67 +100$", str(gentrain.compare(place)), re.MULTILINE)

    def test_of_rows_of_one_measure_the_newest_checkpoints_counts(self, make: Make, place: Path):
        rows = [a_row(-90.0, checkpoint="old"), a_row(-80.0, checkpoint="new"), a_row(-85.0, checkpoint="old")]
        path = make("r", rows)
        files = {"step-00000050.pt": "old", "step-00000100.pt": "new"}
        write(path / "checkpoints/last.json", {"file": "", "step": 100, "sha256": "new", "files": files})
        assert only(gentrain.compare(place)).entries[0].value == -80.0
        (path / "checkpoints/last.json").unlink()
        assert only(gentrain.compare(place)).entries[0].value == -85.0

    @pytest.mark.parametrize(
        "sort, order", [("value", [10, 1, 5]), ("objective.k", [1, 5, 10]), ("time", [5, 10, 1]), ("name", [1, 10, 5])]
    )
    def test_sorting(self, sort: str, order: list[int], make: Make, place: Path):
        for k, value, rate in [(1, -88.0, 10.0), (5, -90.0, 1000.0), (10, -86.0, 100.0)]:
            path = make(f"r{k}", [a_row(value)], k=k)
            (path / "metrics.jsonl").write_text(json.dumps({"step": 100, "speed/examples_per_second": rate}))
        assert [e.cells["objective.k"] for e in only(gentrain.compare(place, sort=sort)).entries] == order


class TestBlocks:
    """Which numbers are held against each other, and which never."""

    @pytest.mark.parametrize(
        "other",
        [
            {"kind": "elbo", "metric": "elbo"}, {"kind": "iwae-5000"}, {"kind": "iwae-50"}, {"kind": "ais"},
            {"kind": "reverse-ais"}, {"unit": "bits/dim"}, {"support": "unit"}, {"split": "validation"},
            {"protocol": "binary, static binarization"},
            {"settings": {"n_fake": 10, "n_real": 20, "reference": "train"}},
        ],
    )  # fmt: skip
    def test_numbers_of_another_sort_have_a_table_of_their_own(self, other: dict[str, Any], make: Make, place: Path):
        make("a", [a_row(-86.0)], k=1)
        make("b", [a_row(-50.0, **other)], k=2)
        blocks = gentrain.compare(place).blocks
        assert [len(block.entries) for block in blocks] == [1, 1]
        assert {entry.mark for block in blocks for entry in block.entries} == {""}
        with pytest.raises(UsageError, match="can't be ranked together"):
            rank([a_row(-86.0), a_row(-50.0, **other)])

    def test_pictures_are_judged_on_one_scale(self, make: Make, place: Path):
        """A Frechet distance sees examples on [0, 1], whatever the model's support; bits are other examples."""
        what: dict[str, Any] = {"metric": "fid", "kind": "fid", "unit": "squared distance (classifier)"}
        protocols = ["signed", "levels", "real, scaled to [0,1]", "unit", "binary, static binarization"]
        for i, protocol in enumerate(protocols):
            row = a_row(float(i), support=protocol.split(",")[0], protocol=protocol, **what)
            make(f"r{i}", [row], lr=0.1 * (i + 1))
        assert sorted(len(block.entries) for block in gentrain.compare(place).blocks) == [1, 4]

    def test_data_sets_are_kept_apart(self, make: Make, place: Path):
        make("a", [a_row()])
        path = make("b", [a_row()], k=2)
        told = yaml.safe_load((path / "config.yaml").read_text())
        told["data"] |= {"_target_": "gentrain.data.synthetic.bars", "size": 3}
        (path / "config.yaml").write_text(yaml.safe_dump(told))
        assert [(block.data, len(block.entries)) for block in gentrain.compare(place).blocks] == [
            ("bars", 1), ("digits", 1)
        ]  # fmt: skip

    def test_a_clear_winner_is_best_and_within_error_nobody_is(self, make: Make, place: Path):
        make("a", [a_row(-86.0, 0.3)], k=1)
        make("b", [a_row(-86.8, 0.3)], k=2)  # 0.8 < 2 √(0.3² + 0.3²) = 0.849
        make("c", [a_row(-86.9, 0.3)], k=3)  # 0.9 is more
        assert marks(only(gentrain.compare(place))) == {
            "rbm-cd objective.k=1": "tied", "rbm-cd objective.k=2": "tied", "rbm-cd objective.k=3": ""
        }  # fmt: skip
        write(place / "b/evaluation.json", {"schema": 1, "rows": []})
        assert marks(only(gentrain.compare(place)))["rbm-cd objective.k=1"] == "best"

    @pytest.mark.parametrize(
        "what, best",
        [
            ({"kind": "exact"}, 2), ({"kind": "exact", "unit": "bits/dim"}, 1), ({"metric": "fid", "kind": "fid"}, 1),
            ({"metric": "reconstruction_error", "kind": "recon"}, 1), ({"metric": "recall", "kind": "prdc"}, 2),
            ({"metric": "probe_accuracy_10_labels", "kind": "probe"}, 2), ({"metric": "log_partition"}, None),
            ({"metric": "kl", "kind": "kl"}, None), ({"metric": "free_energy", "kind": "free-energy"}, None),
            ({"metric": "reconstruction", "kind": "recon"}, None),
        ],
    )  # fmt: skip
    def test_the_better_direction(self, what: dict[str, Any], best: int | None, make: Make, place: Path):
        rows = {k: a_row(float(k), 0.01, **what) for k in (1, 2)}
        for k, row in rows.items():
            make(f"r{k}", [row], k=k)
        block = only(gentrain.compare(place))
        assert [e.cells["objective.k"] for e in block.entries if e.mark == "best"] == ([] if best is None else [best])
        if best is None:
            with pytest.raises(UsageError, match="neither more nor less"):
                rank(list(rows.values()))
        else:
            assert rank(list(rows.values()))[0] == rows[best]

    def test_other_settings_and_numbers_of_examples_are_noted(self, make: Make, place: Path):
        iwae = {"estimator": "iwae", "samples": 50, "chunk": 10, "ema": False, "found": 1}
        make("a", [a_row(kind="ais", n=100, settings={"estimator": "mine", "chains": 100})], k=1)
        make("b", [a_row(kind="ais", n=200, settings={"estimator": "mine", "chains": 500})], k=2)
        notes = only(gentrain.compare(place)).notes
        assert any("100, 200" in note for note in notes) and any("chains 100, 500" in note for note in notes)
        make("c", [a_row(kind="iwae-50", settings=iwae)], k=3)
        make("d", [a_row(kind="iwae-50", settings={**iwae, "chunk": 99, "found": 2})], k=4)
        quiet = [block.notes for block in gentrain.compare(place).blocks if block.measure.kind == "iwae-50"]
        assert quiet == [[]], "what an estimator found, or how it spends memory, is no setting of the number"

    def test_only_the_metrics_asked_for(self, make: Make, place: Path):
        make("a", [a_row(), a_row(metric="fid", kind="fid"), a_row(metric="kl", kind="kl")])
        assert {b.measure.metric for b in gentrain.compare(place, metrics=["exact", "fid"]).blocks} == {
            "log_likelihood", "fid"
        }  # fmt: skip
        make("b", [a_row(metric="kl", kind="kl")])
        assert "has other numbers than those asked for" in str(gentrain.compare(place, metrics="exact"))


class TestTrouble:
    """Runs that failed or aren't finished, files that are damaged, words that nobody knows."""

    @pytest.mark.parametrize("state", ["failed", "nan", "oom", "interrupted"])
    def test_unfinished_runs_are_listed_and_never_ranked(self, state: str, make: Make, place: Path):
        make("a", [a_row(-86.0)], k=1)
        make("b", [a_row(-96.0)], k=2)
        make("c", [a_row(-6.0)], k=2, state=state)
        comparison = gentrain.compare(place)
        assert [(r.path.name, r.state, r.step, r.reason) for r in comparison.others] == [
            ("c", state, 100, f"ended as {state}")
        ]  # fmt: skip
        found = {entry.members[0][0].path.name: entry.mark for entry in only(comparison).entries}
        assert found == {"a": "best", "b": "", "c": ""}
        assert f"{state} at 100" in str(comparison)

    def test_a_run_whose_process_died_is_told_from_one_at_work(self, make: Make, place: Path):
        from filelock import FileLock

        path = make("a", state="running")
        with FileLock(path / ".lock"):
            assert [r.state for r in gentrain.compare(place).others] == ["running"]
        assert [r.state for r in gentrain.compare(place).others] == ["killed"]

    @pytest.mark.parametrize(
        "name, content",
        [
            ("evaluation.json", '{"schema": 1, "rows": [{'), ("evaluation.json", '{"schema": 9, "rows": []}'),
            ("evaluation.json", '{"schema": 1, "rows": null}'), ("config.yaml", "a: [b"),
            ("evaluation.json", json.dumps({"schema": 1, "rows": [asdict(a_row()) | {"value": "lots"}]})),
            ("evaluation.json", json.dumps({"schema": 1, "rows": [asdict(a_row(math.nan))]})),
        ],
    )  # fmt: skip
    def test_a_damaged_file_is_a_warning_and_hides_no_other_run(
        self, name: str, content: str, make: Make, place: Path, capsys: pytest.CaptureFixture[str]
    ):
        make("good", [a_row(-86.0)], k=1)
        (make("bad", [], k=2) / name).write_text(content)
        assert main(["compare", "runs=runs"]) == 0
        out, err = capsys.readouterr()
        assert "-86.00 ± 0.30" in out and "bad" in out
        lines = [line for line in err.splitlines() if line.startswith("warning: ")]
        assert len(lines) == 1 and f"bad/{name}" in lines[0]

    def test_a_missing_or_unreadable_status_and_metrics_are_survived(self, make: Make, place: Path):
        path = make("a", [a_row()])
        (path / "status.json").write_text("[1]")
        (path / "run.json").write_text("null")
        (path / "metrics.jsonl").write_bytes(b'\xff\n{"step": "x"}\n')
        comparison = gentrain.compare(place)
        assert [r.state for r in comparison.others] == ["unknown"]
        assert any("metrics.jsonl" in w for w in comparison.warnings)

    @pytest.mark.parametrize(
        "words, said",
        [
            (["runs=nowhere"], "no such folder"), (["runs=empty"], "no runs in it"), (["sort=optim.rl"], "'optim.lr'"),
            (["group_by=modle"], "'model'"), (["metrics=elob"], "no run has such a number"),
            (["format=cvs"], "format=cvs: must be"), (["group_yb=model"], "Did you mean 'group_by'"),
            (["sort=[a]"], "sort="),
            (["runs=runs,nowhere"], "no such folder"),
        ],
    )  # fmt: skip
    def test_bad_words_are_one_line_and_code_2(
        self, words: list[str], said: str, make: Make, place: Path, capsys: pytest.CaptureFixture[str]
    ):
        make("a", [a_row()])
        (place.parent / "empty").mkdir()
        assert main(["compare", *(["runs=runs"] if "runs=" not in words[0] else []), *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err and "+" not in err

    def test_secrets_of_the_environment_stay_names(self, make: Make, place: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("GENTRAIN_TEST_SECRET", "hunter2")
        make("a", [a_row()], lr=1)
        make("b", [a_row()], lr="${oc.env:GENTRAIN_TEST_SECRET}")
        comparison = gentrain.compare(place)
        assert all("hunter2" not in render(comparison, kind) for kind in ("table", "csv", "json", "md", "html"))
        assert "GENTRAIN_TEST_SECRET" in render(comparison, "json")


class Page(HTMLParser):
    """What a page shows and loads; complains about tags that don't close in order."""

    VOID = ("meta", "img", "br", "line", "circle", "path", "polyline")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID or (tag in ("circle", "polyline")):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


class TestFormats:
    """The same numbers in every format; a page that stands alone and runs nothing of its runs'."""

    def two(self, make: Make) -> None:
        for seed, value in enumerate([-86.25, -85.5]):
            make(f"a{seed}", [a_row(value, 0.1)], seed=seed, k=1)
        make("b", [a_row(-90.125, 0.5)], k=10)
        make("c", state="nan", k=10)

    def test_csv_and_json_read_back_the_same_numbers(self, make: Make, place: Path):
        self.two(make)
        comparison = gentrain.compare(place)
        expected = [(e.value, e.spread, e.error, e.mark) for e in only(comparison).entries]
        assert [e[0] for e in expected] == [-85.875, -90.125]
        content = json.loads(render(comparison, "json"))
        assert [(r["value"], r["spread"], r["stderr"], r["mark"]) for r in content["rows"]] == expected
        assert content["rows"][0]["values"] == [-86.25, -85.5] and content["rows"][0]["seeds"] == [0, 1]
        assert content["rows"][0]["better"] == "higher" and content["rows"][1]["settings"]["objective.k"] == 10
        assert [(r["state"], r["reason"]) for r in content["others"]] == [("nan", "ended as nan")]
        lines = list(csv.DictReader(io.StringIO(render(comparison, "csv"))))
        assert [
            (float(r["value"]), float(r["spread"]), float(r["stderr"]), r["mark"]) for r in lines[:2]
        ] == expected  # fmt: skip
        assert [r["settings.objective.k"] for r in lines] == ["1", "10", ""]
        assert lines[2]["state"] == "nan" and lines[2]["value"] == ""

    def test_markdown_has_a_table_a_block(self, make: Make, place: Path):
        self.two(make)
        text = render(gentrain.compare(place), "md")
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows[:4]}) == 1
        assert "| rbm-cd | 1 | -85.88 ± 0.53 | 2 seeds | **best** | 1,234 |" in rows[2]

    def test_the_page_stands_alone(self, make: Make, place: Path):
        self.two(make)
        text = render(gentrain.compare(place), "html")
        page = Page(text)
        images = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
        assert len(images) == 3, "one for each line of settings"
        assert all(base64.b64decode(src.removeprefix("data:image/png;base64,")) == PNG for src in images)
        lines = [attrs for tag, attrs in page.tags if tag == "polyline"]
        assert len(lines) == 4 * 2, "four runs, two quantities"
        assert {"step", "-85.88 ± 0.53", "train/loss", "validation/elbo"} <= {piece.strip() for piece in page.text}
        assert not re.search(r"https?://|//[a-z]|@import|url\(", text)
        assert {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "form"} == set()
        assert [tag for tag, _ in page.tags].count("script") == 1

    def test_hostile_names_stay_text(self, make: Make, place: Path):
        make(HOSTILE.replace("/", "⁄"), [a_row(metric=HOSTILE, protocol=HOSTILE)], model=HOSTILE.replace(".", ""))
        path = make("b", [], k=HOSTILE, state=HOSTILE)
        (path / "metrics.jsonl").write_text(json.dumps({"step": 1, f"train/{HOSTILE}": 1.0}))
        (path / "evaluation.json").write_text(HOSTILE)
        comparison = gentrain.compare(place)
        text = render(comparison, "html")
        assert [tag for tag, _ in Page(text).tags].count("script") == 1 and "<script>alert" not in text
        assert "&lt;script&gt;alert(1)" in text
        for kind in ("table", "md"):
            assert "\x1b" not in render(comparison, kind)
        assert "<script>" not in render(comparison, "md")
        assert json.loads(render(comparison, "json"))["rows"][0]["metric"] == HOSTILE

    def test_curves_share_a_plot_only_where_the_protocol_does(self, make: Make, place: Path):
        make("a", [a_row()], k=1)
        make("b", [], k=2, state="interrupted")
        assert render(gentrain.compare(place), "html").count("<b>validation/elbo</b>") == 1
        path = make("c", [a_row(protocol="binary, static binarization")], k=3)
        config = (path / "config.yaml").read_text().replace("dynamic", "static")
        (path / "config.yaml").write_text(config)
        assert render(gentrain.compare(place), "html").count("<b>validation/elbo</b>") == 2

    def test_what_a_run_wrote_stays_text(self, make: Make, place: Path):
        path = make("a", [a_row()])
        (path / "samples/samples-00000100.png").unlink()
        (path / "samples/samples-00000100.txt").write_text("ROMEO:\n<script>alert(1)</script> \x1b[31m" + "x" * 9000)
        text = render(gentrain.compare(place), "html")
        assert "<pre>ROMEO:\n&lt;script&gt;alert(1)&lt;/script&gt; \ufffd[31mxx" in text and "x" * 2000 not in text

    def test_what_isnt_a_picture_isnt_embedded(self, make: Make, place: Path):
        path = make("a", [a_row()])
        (path / "samples/samples-00000100.png").write_bytes(b"<svg onload=alert(1)>")
        assert "<img" not in render(gentrain.compare(place), "html")

    def test_a_plot_of_one_point_and_of_equal_values(self, make: Make, place: Path):
        path = make("a", [a_row(stderr=0.0)])
        lines = [{"step": 1, "validation/one": 5.0}, *[{"step": i, "train/same": 0.0} for i in (1, 2)]]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        text = render(gentrain.compare(place), "html")
        assert text.count("<circle") == 1 and text.count("<polyline") == 1
        assert not [attrs for _, attrs in Page(text).tags if "nan" in f"{attrs.get('points')} {attrs.get('cy')}"]

    @pytest.mark.parametrize("name", ["t.csv", "deep/er/t.json", "t.md", "t.html", "t.txt"])
    def test_the_files_ending_chooses_the_format(
        self, name: str, make: Make, place: Path, capsys: pytest.CaptureFixture[str]
    ):
        self.two(make)
        assert main(["compare", "runs=runs", f"out={name}"]) == 0
        assert capsys.readouterr().out == f"{name}\n"
        kind = {"txt": "table"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
        assert Path(name).read_text() == render(gentrain.compare("runs"), kind)

    def test_a_file_that_cant_be_written(self, make: Make, place: Path, capsys: pytest.CaptureFixture[str]):
        make("a", [a_row()])
        Path("taken").write_text("")
        assert main(["compare", "runs=runs", "out=taken/t.csv"]) == 74
        assert capsys.readouterr().err.count("\n") == 1

    def test_torch_isnt_imported(self, make: Make, place: Path):
        self.two(make)
        words = ["", "format=csv", "format=json", "format=md", "format=html", "group_by=model,objective.k"]
        subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], check=True, capture_output=True)


def test_real_runs_through_the_command(train, cli, tmp_path: Path):
    small = ["model=rbm", "data=bars", "data.size=3", "data.n=200", "model.hidden=4", "trainer.evaluate_every=0"]
    runs = [train(*small, f"seed={seed}") for seed in (0, 1)]
    done = cli("compare", "runs=outputs", "metrics=exact", "format=json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["values"] == [run.test["log_likelihood"].mean for run in runs]
    assert row["spread"] == pytest.approx(statistics.stdev(row["values"]))
    assert row["parameters"] == 9 * 4 + 9 + 4 and row["steps"] == 12 and row["seconds"] > 0
    assert cli("compare", "out=page.html").returncode == 0
    page = Page((tmp_path / "page.html").read_text())
    assert [tag for tag, _ in page.tags].count("img") == 1


def test_where_a_set_lies_is_no_part_of_what_was_learned(tmp_path: Path):
    """Not of a nested one either: two machines keep their files in different places."""
    from gentrain.comparison.runs import read
    from gentrain.tasks import reproduce, resume

    for key in ("data.root", "data.of.root", "data.to.download"):
        assert reproduce._free(key) and resume._is_free(key), key
    assert not reproduce._free("data.of.path") and not resume._is_free("data.of.path")
    words = []
    for root in ("here", "there"):
        cfg = config.compose("train", ["model=pix2pix", "data=paired", "data@data.of=mnist", f"data.of.root={root}"])
        (tmp_path / root).mkdir()
        (tmp_path / root / "config.yaml").write_text(yaml.safe_dump(config.stored(cfg)))
        words.append(read(tmp_path / root).data)
    assert words[0] == words[1] and "of=mnist" in words[0]
