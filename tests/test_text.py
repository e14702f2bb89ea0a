"""Text: windows in streams, a vocabulary that travels with the run, texts that are shown, and nats a character."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import pytest
import torch
from conftest import TINY
from helpers import build
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gentrain
from gentrain import config, texts
from gentrain.data.embedded import digits, pydoc
from gentrain.data.pipeline import Pipeline
from gentrain.data.source import Source
from gentrain.data.text import text
from gentrain.errors import DataError, UsageError
from gentrain.evaluation.estimator import Subject
from gentrain.evaluation.text import Text
from gentrain.models.char_rnn import CharRNN
from gentrain.tasks import sample
from gentrain.tasks.evaluate import evaluate
from gentrain.tasks.train import Outcome

B = 6


def numbered(tmp_path: Path, windows: int, order: str = "stream") -> Source:
    """A text whose i-th window of four characters is the number i."""
    file = tmp_path / "numbers.txt"
    file.write_text("".join(f"{i:04d}" for i in range(windows)))
    return text(str(file), length=4, order=order, validation=0)  # type: ignore[arg-type]


def window(source: Source, x: torch.Tensor) -> list[int]:
    assert source.vocabulary is not None
    return [int(source.vocabulary.decode(row)) for row in x]


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [100, 105])
def test_each_row_goes_on_and_an_epoch_takes_every_window_once(tmp_path: Path, windows: int) -> None:
    source = numbered(tmp_path, windows)
    size = source.spec.sizes["train"]
    pipeline = Pipeline(source, "tokens", B, seed=1)
    steps = pipeline.steps_per_epoch
    assert steps == 15 and size == {100: 90, 105: 94}[windows]
    beginnings = set()
    for epoch in range(4):
        batches = [pipeline.batch(epoch * steps + w) for w in range(steps)]
        rows = [window(source, batch.x) for batch in batches]
        seen = [i for row in rows for i in row]
        assert len(set(seen)) == steps * B
        for w, batch in enumerate(batches):
            assert batch.starts is not None
            for i in range(B):
                new = w == 0 or rows[w][i] == 0
                assert bool(batch.starts[i]) == new
                assert new or rows[w][i] == rows[w - 1][i] + 1
        beginnings.add(rows[0][0])
    assert len(beginnings) > 1, "epochs begin at places of their own"


def test_a_batch_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    source = numbered(tmp_path, 100)
    one, again, other = (Pipeline(source, "tokens", B, seed=seed) for seed in (1, 1, 2))
    forward = [one.batch(step) for step in range(40)]
    for step in reversed(range(40)):
        for a, b in zip(forward[step], again.batch(step), strict=True):
            assert a is b is None or (a is not None and b is not None and torch.equal(a, b))
    assert not torch.equal(forward[0].x, other.batch(0).x)


def test_processes_share_the_streams_of_one(tmp_path: Path) -> None:
    source = numbered(tmp_path, 100)
    whole = Pipeline(source, "tokens", B, seed=1)
    parts = [Pipeline(source, "tokens", B, seed=1, rank=rank, world=2) for rank in (0, 1)]
    for step in (0, 1, 14, 15, 16):
        batch, shares = whole.batch(step), [part.batch(step) for part in parts]
        for name in ("x", "starts"):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(share, name) for share in shares]))


def test_held_out_streams_are_never_mixed(tmp_path: Path) -> None:
    for order, kept in (("stream", True), ("shuffled", False)):
        pipeline = Pipeline(numbered(tmp_path, 100, order=order), "tokens", B, seed=1)
        own, mixed = (torch.cat([b.x for b in pipeline.evaluation("train", mixed=m)]) for m in (False, True))
        assert torch.equal(own, mixed) == kept


def test_shuffled_windows_and_other_data_are_in_no_streams(tmp_path: Path) -> None:
    source = numbered(tmp_path, 100, order="shuffled")
    pipeline = Pipeline(source, "tokens", B, seed=1)
    rows = [window(source, pipeline.batch(step).x) for step in range(15)]
    assert sorted(i for row in rows for i in row) == list(range(90))
    assert sum(b == a + 1 for x, y in itertools.pairwise(rows) for a, b in zip(x, y, strict=True)) < 10
    assert pipeline.batch(0).starts is None
    assert Pipeline(digits(), "binary", 20, seed=0).batch(0).starts is None


def test_streams_of_one_window_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"data\.batch_size=46: the 90 training windows .* choose at most 45, or data\.o"
    ):
        Pipeline(numbered(tmp_path, 100), "tokens", 46, seed=0)
    assert Pipeline(numbered(tmp_path, 100), "tokens", 45, seed=0).steps_per_epoch == 2


# --- the text and its vocabulary --------------------------------------------------------------------------------------


def test_tiny_shakespeare_is_split_as_nanogpt_splits_it() -> None:
    root = os.environ.get("GENTRAIN_DATA", "")
    if not Path(root, "text", "tinyshakespeare.txt").exists():
        pytest.skip("needs tiny Shakespeare: set GENTRAIN_DATA to a folder with text/tinyshakespeare.txt")
    source = text("text/tinyshakespeare.txt", length=2, validation=0)
    assert source.spec.levels == 65 + 1 and source.vocabulary is not None
    content = Path(root, "text", "tinyshakespeare.txt").read_text()
    assert {key: 2 * n for key, n in source.spec.sizes.items()} == {"train": 1_003_854, "test": 111_540}
    for key, part in (("train", content[:1_003_854]), ("test", content[1_003_854:])):
        assert source.vocabulary.decode(source.splits[key].x.flatten()) == part
    assert set(source.vocabulary.characters) == set(content) | {"\ufffd"}


def test_the_test_part_begins_at_nine_tenths_rounded_down(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("a" * 904 + "b" * 101)
    source = text(str(tmp_path / "book.txt"), length=1, validation=0)
    assert source.spec.sizes == {"train": 904, "test": 101}
    assert source.vocabulary is not None and source.vocabulary.characters == "a\ufffd"


def test_a_text_is_found_under_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "book.txt").write_text("abc " * 100)
    assert text("shelf/book.txt", length=8, root=str(tmp_path)).spec.sizes["test"] == 5
    monkeypatch.setenv("GENTRAIN_DATA", str(tmp_path))
    assert text("shelf/book.txt", length=8).spec.sizes["test"] == 5
    with pytest.raises(DataError, match=rf"data\.path=shelf/none\.txt can't be read: .*, here or in {tmp_path}"):
        text("shelf/none.txt")


@pytest.mark.parametrize("strange", ["${x}\"\\'\n\t#:{[%é字\x85\u2028\U0001f600", "${é}"])
def test_a_vocabulary_of_any_characters_comes_back_out_of_the_configuration(strange: str, tmp_path: Path) -> None:
    (tmp_path / "strange.txt").write_text(strange * 100, encoding="utf-8")
    made = gentrain.train([
        "model=char_rnn", "model.hidden=4", "data=text", f"data.path={tmp_path}/strange.txt", "data.length=8",
        "data.batch_size=4", "trainer.steps=2", "device=cpu", f"output={tmp_path}/out",
    ])  # fmt: skip
    (tmp_path / "strange.txt").unlink()
    model = gentrain.load(made.path)
    assert isinstance(model, CharRNN) and set(model.vocabulary) == {*strange, "\ufffd"}
    stored = config.resolve(config.read(made.path / "config.yaml"))
    assert stored["data"]["vocabulary"] == model.vocabulary
    (written,) = model.write(1, 20, prime=strange)
    assert written.startswith(strange) and len(written) == len(strange) + 20


# --- what a run shows -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A tiny run of text."""
    of = ["model=char_rnn", "model.hidden=8", "data=pydoc", "data.length=20"]
    return gentrain.train([*TINY, *of, f"output={tmp_path_factory.mktemp('text')}"])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of images."""
    return gentrain.train(
        [*TINY, "model.hidden=[8]", "trainer.steps=1", f"output={tmp_path_factory.mktemp('vae')}"]
    ).path


def test_texts_are_on_the_console_on_tensorboard_and_in_files(outcome: Outcome) -> None:
    run = outcome.path
    files = sorted((run / "samples").iterdir())
    assert [file.name for file in files] == [f"samples-{step:08d}.txt" for step in (6, 12)]
    (written,) = (file.read_text(encoding="utf-8") for file in files[1:])
    assert written.count("---- 2 of 4 ----") == 1 and len(written) > 1600
    board = EventAccumulator(str(run), size_guidance={"tensors": 0}).Reload()
    assert "samples/text_summary" in board.Tags()["tensors"] and not board.Tags()["images"]
    shown = [e.tensor_proto.string_val[0].decode() for e in board.Tensors("samples/text_summary")]
    assert len(shown) == 2 and shown[1] == "\n".join("    " + line for line in written.split("\n"))
    log = (run / "train.log").read_text(encoding="utf-8")
    beginning = next(line for line in texts.excerpt([written]).split("\n") if line.strip())
    assert "step 12 writes:" in log and beginning in log


def test_an_excerpt_carries_out_nothing() -> None:
    assert texts.excerpt(["a\x1b[31mb\tc\n\x07d"]) == "    a [31mb c\n     d"
    assert texts.excerpt(["x" * 300]) == "    " + "x" * 240 + "…"


def test_sample_writes_texts(outcome: Outcome, images: Path) -> None:
    run = outcome.path

    def draw(*overrides: str) -> Path:
        return sample.main(config.compose("sample", [f"run={run}", *overrides]))

    draw("kind=text", "n=3", "kind.length=30", "kind.prime=ROMEO:", "kind.temperature=0.8")
    parts = (run / "samples" / "text.txt").read_text(encoding="utf-8").rstrip("\n")
    assert (
        parts.startswith("ROMEO:")
        and parts.count("ROMEO:") == 3
        and len(parts) == 3 * 36 + 2 * len("\n\n---- 2 of 3 ----\n\n")
    )

    assert draw("n=2").name == "prior.txt"
    assert len((run / "samples" / "prior.txt").read_text(encoding="utf-8")) == 2 * 20 + len(
        "\n\n---- 2 of 2 ----\n\n\n"
    )
    first = draw("kind=text", "seed=3", f"out={run}/a.txt").read_text(encoding="utf-8")
    assert draw("kind=text", "seed=3", f"out={run}/b.txt").read_text(encoding="utf-8") == first
    with pytest.raises(UsageError, match=r"format=png: CharRNN writes text; choose txt or npz"):
        draw("format=png")
    with pytest.raises(UsageError, match=r"kind\.prime='é': the model knows no 'é'"):
        draw("kind=text", "kind.prime='é'")
    with pytest.raises(UsageError, match=r"format=txt: VAE writes no text; choose png or npz"):
        sample.main(config.compose("sample", [f"run={images}", "format=txt"]))
    with pytest.raises(UsageError, match=r"kind=text: VAE is no Writes"):
        sample.main(config.compose("sample", [f"run={images}", "kind=text"]))


# --- nats a character -------------------------------------------------------------------------------------------------


def test_carried_is_one_long_pass_over_the_split() -> None:
    torch.manual_seed(0)
    made = build("model=char_rnn", "model.hidden=8", "data=pydoc", "data.length=20", "data.batch_size=20")
    model = made.model
    assert isinstance(model, CharRNN)
    torch.nn.init.normal_(model.head.weight)
    model.double().eval()
    for split, n in (("test", 37), ("validation", None)):
        subject = Subject(model, made.pipeline, split, n)
        with torch.no_grad():
            found = {(f.kind, f.unit): f for f in Text()(subject)}
            windows = subject.examples()
            whole = -model.read(windows.view(1, -1), model.blank(1))[0].view(len(windows), 20).mean(1)
            apart = -model.log_prob(windows) / 20
        assert len(found) == 4 and {f.metric for f in found.values()} == {"cross_entropy"}
        for kind, values in (("carried", whole), ("window-20", apart)):
            nats, bits = found[kind, "nats/char"], found[kind, "bits/char"]
            assert nats.n == len(windows) == (n or made.pipeline.spec.sizes[split])
            assert nats.value == pytest.approx(values.mean().item(), rel=1e-12)
            assert nats.stderr == pytest.approx(values.std().item() / len(windows) ** 0.5, rel=1e-9)
            assert bits.value * math.log(2) == pytest.approx(nats.value, rel=1e-12)
        assert abs(found["carried", "nats/char"].value - found["window-20", "nats/char"].value) > 1e-4


def test_the_ledger_tells_the_kinds_apart(outcome: Outcome, images: Path) -> None:
    assert outcome.test["cross_entropy"].kind == "window-20" and outcome.test["cross_entropy"].unit == "nats/char"
    rows = evaluate(outcome.path, ["metrics=[text,exact]", "n=50"])
    kinds = {(r.metric, r.kind, r.unit) for r in rows}
    assert ("cross_entropy", "carried", "nats/char") in kinds and ("log_likelihood", "exact", "nats") in kinds
    by = {(r.kind, r.unit): r for r in rows}
    assert by["window-20", "nats/char"].value == pytest.approx(-by["exact", "nats"].value / 20)
    with pytest.raises(UsageError, match=r"metrics=\[text\]: VAE is no Recurrent"):
        evaluate(images, ["metrics=[text]"])


def test_models_of_images_take_no_text() -> None:
    assert pydoc().order == "stream"
    with pytest.raises(UsageError, match="data=pydoc holds tokens"):
        build("model=vae", "data=pydoc")
