"""The embedded and synthetic sets, their distributions, and the YAMLs of all sets."""

from __future__ import annotations

import ast
import inspect
import math
import typing
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import gentrain.types
from gentrain.data import captions, embedded, files, pairs, stacked, synthetic, text, vision
from gentrain.data.embedded import PYDOC_VOCABULARY, digits, pydoc
from gentrain.data.source import Source, Split, make_source
from gentrain.data.synthetic import bars, bars_distribution, grid, grid_centres, moons, ring, ring_centres
from gentrain.errors import DataError, UsageError

CONF = Path(__file__).parent.parent / "conf" / "data"
MODULES = {module.__name__: module for module in (captions, embedded, files, pairs, stacked, synthetic, text, vision)}


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_lists_every_argument_with_its_default(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and len(lines[0]) > 20
    config = OmegaConf.load(path)
    module, _, name = config.pop("_target_").rpartition(".")
    assert name == path.stem
    parameters = dict(inspect.signature(getattr(MODULES[module], name)).parameters)
    assert parameters.pop("validation").default is None
    sets = [key for entry in config.pop("defaults", ["_self_"]) if entry != "_self_" for key in entry]
    for key in sets:  # other data sets within this one
        assert key.startswith("/data@") and any(f"- {key}: " in line and "  # " in line for line in lines)
        parameters.pop(key.removeprefix("/data@"))
        config.pop(key.removeprefix("/data@"), None)
    assert list(config) == list(parameters)
    for key, parameter in parameters.items():
        default = "???" if parameter.default is inspect.Parameter.empty else parameter.default
        default = list(default) if isinstance(default, tuple) else default
        assert OmegaConf.to_container(config)[key] == default
        assert any(line.startswith(f"{key}:") and "  # " in line for line in lines), f"{key} has no comment"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_annotations_can_be_read_without_importing_the_module(path):
    module, _, name = OmegaConf.load(path)["_target_"].rpartition(".")
    tree = ast.parse(Path(MODULES[module].__file__).read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    known = {key: getattr(gentrain.types, key) for key in gentrain.types.__all__} | {
        "Literal": typing.Literal,
        "Sequence": Sequence,
        "Source": Source,
    }
    for argument in function.args.args:
        assert argument.annotation is not None
        eval(ast.unparse(argument.annotation), known)


def test_digits_are_scikit_learns_and_never_change():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    source = digits()
    assert source.spec.sizes == {"train": 1257, "validation": 270, "test": 270}
    assert (source.spec.shape, source.spec.support, source.spec.levels, source.spec.classes) == (
        (1, 8, 8),
        "levels",
        17,
        10,
    )
    rows = [tuple(row) for split in source.splits.values() for row in split.x.flatten(1).tolist()]
    assert sorted(rows) == sorted(tuple(int(v) for v in row) for row in images)
    known = {tuple(int(v) for v in row): label for row, label in zip(images, labels, strict=True)}
    for split in source.splits.values():
        assert split.y is not None
        assert [known[tuple(row)] for row in split.x.flatten(1).tolist()] == split.y.tolist()
        share = split.y.bincount(minlength=10) / len(split)
        assert (share - torch.tensor(labels).bincount() / 1797).abs().max() < 0.004  # stratified
    assert source.fingerprint() == "129e988dc69653ce5097b501d37d1dc7e39eea246a9467cfd1cc8ab66456d8f1"


def test_digits_test_split_does_not_depend_on_the_validation_split():
    reference = digits()
    for validation, train in ((0, 1527), (1, 1526), (500, 1027), (1526, 1)):
        source = digits(validation)
        assert source.spec.sizes["train"] == train and source.spec.sizes.get("validation", 0) == validation
        assert torch.equal(source.splits["test"].x, reference.splits["test"].x)
    with pytest.raises(UsageError, match=r"data\.validation=1527 leaves nothing of the 1527"):
        digits(1527)


def test_pydoc_is_a_contiguous_text_in_three_parts():
    source = pydoc(length=100)
    sizes, vocabulary = source.spec.sizes, source.vocabulary
    assert vocabulary is PYDOC_VOCABULARY and source.spec.levels == 97 and source.spec.shape == (100,)
    assert sizes["train"] == pytest.approx(8 * sizes["test"], rel=0.02)
    assert sizes["validation"] == pytest.approx(sizes["test"], abs=2)
    whole = "".join(vocabulary.decode(split.x.flatten()) for split in source.splits.values())
    assert len(set(whole)) <= 97 and whole.count("\ufffd") < 100
    assert "The Python debugger" in whole or "class definition" in whole
    test = vocabulary.decode(source.splits["test"].x.flatten())
    assert test not in vocabulary.decode(source.splits["train"].x.flatten())


def test_text_reads_ones_own_file(tmp_path):
    file = tmp_path / "my text.txt"
    file.write_text("añb\n" * 250 + "ζ", encoding="utf-8")
    source = text.text(str(file), length=10)
    assert source.vocabulary is not None and source.vocabulary.characters == "\nabñ\ufffd"
    assert source.vocabulary.decode(source.splits["train"].x[0]) == "añb\nañb\nañ"
    assert source.spec.sizes == {"train": 80, "validation": 10, "test": 10}
    assert text.text(str(file), length=10, validation=3).spec.sizes == {"train": 87, "validation": 3, "test": 10}
    with pytest.raises(DataError, match=r"1001 characters are too few for windows of data\.length=102"):
        text.text(str(file), length=102)
    file.write_bytes(b"abc\xff")
    with pytest.raises(DataError, match=r"my text\.txt is not UTF-8 text \(byte 3\)"):
        text.text(str(file))
    with pytest.raises(DataError, match="nowhere"):
        text.text(str(tmp_path / "nowhere.txt"))


def test_ring_has_distinct_modes_that_all_get_their_share():
    centres = ring_centres(8, 2.0)
    distances = torch.cdist(centres, centres) + 9 * torch.eye(8)
    torch.testing.assert_close(distances.min(1).values, torch.full((8,), 4 * math.sin(math.pi / 8)))
    torch.testing.assert_close(centres[2], torch.tensor([0.0, 2.0]), atol=1e-6, rtol=0)
    train = ring(n=8000).splits["train"]
    assert train.y is not None and torch.equal(torch.cdist(train.x, centres).argmin(1), train.y)
    assert ((train.y.bincount() - 1000) / 1000**0.5).abs().max() < 4
    residual = train.x - centres[train.y]
    assert residual.std() == pytest.approx(0.02, rel=0.03)


def test_grid_is_centred_and_spaced():
    centres = grid_centres(5, 2.0)
    assert sorted(centres.tolist()) == [[a, b] for a in (-4, -2, 0, 2, 4) for b in (-4, -2, 0, 2, 4)]
    train = grid(n=5000).splits["train"]
    assert train.y is not None and torch.equal(torch.cdist(train.x, centres).argmin(1), train.y)
    assert len(train.y.unique()) == 25


def test_moons_lie_on_their_half_circles():
    train = moons(noise=0.0, n=2000).splits["train"]
    assert train.y is not None
    upper, lower = train.x[train.y == 0], train.x[train.y == 1]
    torch.testing.assert_close(upper.norm(dim=1), torch.ones(len(upper)))
    assert upper[:, 1].min() >= 0 and upper[:, 0].min() < -0.99
    torch.testing.assert_close((lower - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(len(lower)))
    assert lower[:, 1].max() <= 0.5 and lower[:, 0].max() > 1.99


def test_bars_follow_their_exact_distribution():
    patterns, probabilities = bars_distribution(3)
    assert len(patterns) == len(patterns.unique(dim=0)) == 14 and float(probabilities.sum()) == 1
    assert float(probabilities[patterns.flatten(1).sum(1) == 9]) == 1 / 8
    lines = (patterns == patterns[..., :1, :]).flatten(1).all(1) | (patterns == patterns[..., :, :1]).flatten(1).all(1)
    assert bool(lines.all())  # each is made of whole rows or whole columns
    for split in bars(n=20_000).splits.values():
        match = (split.x.flatten(1).unsqueeze(1) == patterns.flatten(1)).all(2)
        assert bool((match.sum(1) == 1).all())
        expected = len(split) * probabilities
        chi_square = float(((match.sum(0) - expected) ** 2 / expected).sum())
        assert chi_square < 34.5  # 13 degrees of freedom, p = 0.001
    assert bars(size=1).spec.shape == (1, 1, 1) and bars_distribution(1)[1].tolist() == [0.5, 0.5]


def test_which_draw_of_synthetic_data_is_an_argument_of_its_own():
    first, again, other = ring(n=100), ring(n=200), ring(n=100, seed=1)
    assert torch.equal(first.splits["test"].x, again.splits["test"].x)
    assert not torch.equal(first.splits["train"].x, other.splits["train"].x)
    alike = ring(n=10_000)  # as many as test examples, and yet others
    assert not torch.equal(alike.splits["test"].x, alike.splits["train"].x)
    assert first.spec.sizes == {"train": 100, "validation": 2000, "test": 10_000}
    assert "validation" not in ring(n=100, validation=0).splits


def test_a_fingerprint_is_of_the_training_data():
    x, y = torch.arange(12, dtype=torch.uint8).view(3, 4), torch.tensor([0, 1, 2])
    base = make_source("a", "levels", {"train": Split(x, y)}, levels=256).fingerprint()
    assert base == make_source("b", "levels", {"train": Split(x, y), "test": Split(x, y)}, levels=256).fingerprint()
    changed = x.clone()
    changed[2, 3] ^= 1
    others = [Split(changed, y), Split(x, y.flip(0)), Split(x), Split(x.view(3, 2, 2), y)]
    prints = {make_source("a", "levels", {"train": split}, levels=256).fingerprint() for split in others}
    assert len(prints | {base}) == 5


def test_splits_that_disagree_are_refused():
    x = torch.zeros(4, 3, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"test examples are shaped \(2,\), training ones \(3,\)"):
        make_source("a", "levels", {"train": Split(x), "test": Split(x[:, :2])}, levels=256)
    with pytest.raises(DataError, match="test has 4 examples but 3 labels"):
        make_source("a", "levels", {"train": Split(x), "test": Split(x, torch.zeros(3))}, levels=256)
    with pytest.raises(DataError, match="data=a has no training examples"):
        make_source("a", "levels", {"train": Split(x[:0]), "test": Split(x)}, levels=256)
