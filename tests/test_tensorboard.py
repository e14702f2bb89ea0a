"""TensorBoard on an outputs folder with a sweep in it: a real server, read over HTTP."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, command, runs
from PIL import Image

import gentrain
from gentrain.errors import NonFiniteError
from gentrain.run import read_metrics
from gentrain.tasks.resume import resume


class Server:
    """TensorBoard's answers about one folder of runs."""

    def __init__(self, address: str):
        self.address = address

    def raw(self, path: str, body: dict[str, Any] | None = None, **query: str) -> bytes:
        url = f"{self.address}/data/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def json(self, path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        return json.loads(self.raw(path, body, **query))

    def sessions(self) -> dict[str, dict[str, Any]]:
        """The rows of the HParams table by run: its settings, its metrics and its status."""
        statuses = [f"STATUS_{s}" for s in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
        body = {"experimentName": "", "startIndex": 0, "sliceSize": 100, "colParams": [], "allowedStatuses": statuses}
        rows = {}
        for group in self.json("plugin/hparams/session_groups", body)["sessionGroups"]:
            for session in group["sessions"]:
                metrics = {m["name"]["tag"]: m["value"] for m in session["metricValues"]}
                assert session["name"] not in rows
                rows[session["name"]] = {
                    "hparams": group["hparams"], "metrics": metrics, "status": session["status"],
                }  # fmt: skip
        return rows


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Server]:
    arguments = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder),
        "--port",
        "0",
        "--host",
        "127.0.0.1",
    ]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        address = None
        for line in process.stderr:
            if found := re.search(r"http://\S+?(?=/ )", line):
                address = found.group()
                break
        assert address is not None, "TensorBoard has not started"
        server = Server(address)
        expected = {str(run.relative_to(folder)) for run in runs(folder)}
        deadline = time.monotonic() + 60
        while set(server.json("runs")) != expected or set(server.sessions()) != expected:
            assert time.monotonic() < deadline, (server.json("runs"), expected)
            time.sleep(0.3)
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over two models, and from Python a GAN, a run that fails and one that failed and was then resumed."""
    root = tmp_path_factory.mktemp("board")
    subprocess.run(command("-m", "model=vae,rbm", *TINY), cwd=root, check=True, capture_output=True, timeout=200)
    folder = root / "outputs"
    mine = [*TINY, f"output={folder}"]
    gentrain.train([*mine, "model=gan"])
    for seed in (1, 2):
        with pytest.raises(NonFiniteError):
            gentrain.train([*mine, "optim.lr=1e30", f"seed={seed}"])
    resume(next(r for r in runs(folder) if "seed: 2" in (r / "config.yaml").read_text()), ["optim.lr=1e-3"], force=True)
    return folder


@pytest.fixture(scope="module")
def server(outputs: Path) -> Iterator[Server]:
    with serve(outputs) as server:
        yield server


def the(outputs: Path, name: str, seed: int = 0) -> str:
    """The name TensorBoard gives the run of this model, objective and seed: its folder below outputs/."""
    (found,) = [
        r for r in runs(outputs) if r.parent.name == name and f"seed: {seed}\n" in (r / "config.yaml").read_text()
    ]
    return str(found.relative_to(outputs))


def test_scalars_are_those_of_metrics_jsonl(server: Server, outputs: Path) -> None:
    tags = server.json("plugin/scalars/tags")
    for name in ("vae-elbo", "rbm-cd", "gan-non_saturating"):
        run = the(outputs, name)
        written: dict[str, list[tuple[int, float]]] = {}
        for record in read_metrics(outputs / run):
            for tag, value in record.items():
                if tag != "step":
                    written.setdefault(tag, []).append((record["step"], value))
        assert set(tags[run]) == set(written)
        for tag, values in written.items():
            shown = server.json("plugin/scalars/scalars", run=run, tag=tag)
            assert [step for _, step, _ in shown] == [step for step, _ in values]
            assert np.allclose([value for _, _, value in shown], [value for _, value in values], rtol=1e-6)
    vae = tags[the(outputs, "vae-elbo")]
    assert {"train/elbo", "validation/elbo", "test/elbo", "optim/lr", "optim/grad_norm", "epoch"} <= set(vae)
    assert "speed/examples_per_second" in vae


def test_images_can_be_fetched_and_show_something(server: Server, outputs: Path) -> None:
    tags = server.json("plugin/images/tags")
    expected = {
        "vae-elbo": {"samples", "reconstructions"},
        "rbm-cd": {"samples", "reconstructions", "filters"},
        "gan-non_saturating": {"samples"},
    }
    for name, pictures in expected.items():
        run = the(outputs, name)
        assert set(tags[run]) == pictures | {"samples/animation"}
        for tag in pictures:
            found = server.json("plugin/images/images", run=run, tag=tag, sample="0")
            assert [image["step"] for image in found] == [6, 12]
            png = server.raw(f"plugin/images/individualImage?{found[-1]['query']}")
            image = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
            kept = np.asarray(Image.open(outputs / run / "samples" / f"{tag}-00000012.png").convert("L"))
            assert np.array_equal(image, kept)
            assert 300 < image.shape[1] < 500
            assert len(np.unique(image)) > 2 and image.std() > 5  # not blank


def test_the_samples_of_a_training_move_in_an_animation(server: Server, outputs: Path) -> None:
    run = the(outputs, "rbm-cd")
    (shown,) = server.json("plugin/images/images", run=run, tag="samples/animation", sample="0")
    assert shown["step"] == 12
    gif = Image.open(io.BytesIO(server.raw(f"plugin/images/individualImage?{shown['query']}")))
    assert (gif.format, gif.n_frames) == ("GIF", 2)  # type: ignore[attr-defined]
    for frame, step in enumerate((6, 12)):
        gif.seek(frame)
        kept = np.asarray(Image.open(outputs / run / "samples" / f"samples-{step:08d}.png").convert("L"), dtype=float)
        assert np.abs(np.asarray(gif.convert("L"), dtype=float) - kept).max() < 3  # a palette of 256 colours


def test_histograms_show_the_codes_of_models_that_have_some(server: Server, outputs: Path) -> None:
    tags = server.json("plugin/histograms/tags")
    for name in ("vae-elbo", "rbm-cd"):
        run = the(outputs, name)
        assert "codes" in tags[run]
        found = server.json("plugin/histograms/histograms", run=run, tag="codes")
        assert [step for _, step, _ in found] == [6, 12]
        counts = np.array([count for _, _, count in found[-1][2]])
        middles = np.array([(left + right) / 2 for left, right, _ in found[-1][2]])
        units = {"vae-elbo": 20, "rbm-cd": 500}[name]
        assert np.isclose(counts.sum(), 64 * units)  # 64 fixed examples
        if name == "rbm-cd":  # codes are probabilities, and after 12 steps hardly anything but a half
            assert np.isclose(np.average(middles, weights=counts), 0.5, atol=0.1)


def test_hparams_have_the_columns_of_all_runs(server: Server) -> None:
    experiment = server.json("plugin/hparams/experiment", {"experimentName": ""})
    columns = {info["name"]: info for info in experiment["hparamInfos"]}
    shared = {"seed", "data", "data.batch_size", "model", "objective", "model.hidden", "optim.lr"}
    only_some = {"model.latent_dim", "objective.beta", "objective.k", "objective.discriminator_steps", "optim.momentum"}
    assert shared | only_some <= set(columns)
    assert set(columns["model"]["domainDiscrete"]) == {"vae", "rbm", "gan"}
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {"test/elbo", "test/pseudo_log_likelihood", "validation/elbo", "train/elbo", "train/d_loss"} <= metrics


def test_hparams_have_a_row_for_each_run_with_its_final_numbers(server: Server, outputs: Path) -> None:
    rows = server.sessions()
    assert set(rows) == {str(r.relative_to(outputs)) for r in runs(outputs)}
    vae, rbm = rows[the(outputs, "vae-elbo")], rows[the(outputs, "rbm-cd")]
    assert (vae["hparams"]["model"], vae["hparams"]["objective"]) == ("vae", "elbo")
    assert vae["hparams"]["model.latent_dim"] == 20 and "objective.k" not in vae["hparams"]
    assert rbm["hparams"]["objective.k"] == 1 and "model.latent_dim" not in rbm["hparams"]
    ledger = json.loads((outputs / the(outputs, "vae-elbo") / "evaluation.json").read_text())
    (elbo,) = [row["value"] for row in ledger["rows"] if row["metric"] == "elbo"]
    assert math.isclose(vae["metrics"]["test/elbo"], elbo, rel_tol=1e-6)
    assert "test/pseudo_log_likelihood" in rbm["metrics"]


def test_hparams_tell_success_from_failure_and_a_resumed_run_is_judged_anew(server: Server, outputs: Path) -> None:
    rows = server.sessions()
    for name in ("vae-elbo", "rbm-cd", "gan-non_saturating"):
        assert rows[the(outputs, name)]["status"] == "STATUS_SUCCESS"
    assert rows[the(outputs, "vae-elbo", seed=1)]["status"] == "STATUS_FAILURE"
    assert rows[the(outputs, "vae-elbo", seed=2)]["status"] == "STATUS_SUCCESS"
