"""One's own data: folders of images (and their cache), NumPy arrays, IDX files."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gentrain.data import files
from gentrain.data.files import folder, idx, npz
from gentrain.data.pipeline import Pipeline
from gentrain.errors import DataError, DiskError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gentrain" / "folders"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the images decoded so far."""
    names: list[str] = []
    real = files._decode
    monkeypatch.setattr(files, "_decode", lambda path, *rest: names.append(path.name) or real(path, *rest))
    return names


def save(path: Path, colour: tuple[int, int, int] | int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)


def colours(split) -> set[tuple[int, ...]]:
    return {tuple(example[:, 0, 0].tolist()) for example in split.x}


# ------------------------------------------------------------------------------------------------------------ folders


def test_a_flat_folder_is_divided_without_labels(tmp_path):
    for i in range(30):
        save(tmp_path / "flat" / f"{i}.png", i)
    (tmp_path / "flat" / "notes.txt").write_text("not an image")
    source = folder(str(tmp_path / "flat"), size=8, channels=1)
    assert source.spec.sizes == {"train": 25, "validation": 2, "test": 3} and source.spec.classes is None
    assert source.spec.shape == (1, 8, 8) and source.spec.levels == 256
    seen = [int(x.max()) for split in source.splits.values() for x in split.x]
    assert sorted(seen) == list(range(30)) and seen != list(range(30))
    other = folder(str(tmp_path / "flat"), size=8, channels=1, validation=7)
    assert other.spec.sizes == {"train": 20, "validation": 7, "test": 3}
    assert torch.equal(other.splits["test"].x, source.splits["test"].x)
    assert Pipeline(source, "signed", 25, seed=0).batch(0).x.max() <= 1


def test_sub_folders_are_labels(tmp_path):
    for label, colour in (("cats", (200, 0, 0)), ("dogs", (0, 0, 100))):
        for i in range(10):
            save(tmp_path / "pets" / label / f"{i}.jpg", colour)
    source = folder(str(tmp_path / "pets"), size=4)
    assert source.spec.classes == 2 and sum(source.spec.sizes.values()) == 20
    for split in source.splits.values():
        assert split.y is not None
        for x, y in zip(split.x, split.y.tolist(), strict=True):
            assert bool(x[0].max() > 150) == (y == 0) and bool(x[2].max() > 60) == (y == 1)


def test_split_folders_are_splits(tmp_path):
    top = tmp_path / "set"
    for split, base in (("train", 0), ("val", 50), ("test", 100)):
        for label in ("a", "b"):
            for i in range(4):
                save(top / split / label / f"{i}.png", base + i + (10 if label == "b" else 0))
    source = folder(str(top), size=8, channels=1)
    assert source.spec.sizes == {"train": 8, "validation": 8, "test": 8}
    for name, base in (("train", 0), ("validation", 50), ("test", 100)):
        split = source.splits[name]
        assert split.y is not None
        assert colours(split) == {(base + i + 10 * b,) for i in range(4) for b in (0, 1)}
        assert [int(x.max()) % 50 >= 10 for x in split.x] == [bool(y) for y in split.y]


def test_images_are_resized_cropped_turned_and_converted(tmp_path):
    top = tmp_path / "odd"
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, :10], wide[:, 10:20], wide[:, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    top.mkdir()
    Image.fromarray(wide).save(top / "wide.png")
    cut = folder(str(top), size=10).splits["train"].x[0]
    assert bool((cut.movedim(0, 2) == torch.tensor([0, 255, 0])).all())  # the middle third
    small = folder(str(top), size=2, channels=1).splits["train"].x
    assert small.shape == (1, 1, 2, 2) and (small - 0.587 * 255).abs().max() < 12  # green's share of luminance
    (top / "wide.png").unlink()
    tall = Image.fromarray(np.vstack([np.full((2, 4), 250, np.uint8), np.zeros((2, 4), np.uint8)]))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    tall.save(top / "turned.png", exif=exif)
    x = folder(str(top), size=4, channels=1).splits["train"].x[0, 0]
    assert x[0].tolist() == [0] * 4 and x[3].tolist() == [250] * 4
    (top / "turned.png").unlink()
    Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)).save(top / "deep.png")
    assert colours(folder(str(top), size=4, channels=1).splits["train"]) == {(128,)}


def test_the_cache_is_used_until_a_file_changes(tmp_path, decoded, cache):
    top = tmp_path / "set"
    for i in range(6):
        save(top / f"{i}.png", i)
    folder(str(top), size=8, channels=1)
    assert len(decoded) == 6
    again = folder(str(top), size=8, channels=1, validation=2)
    assert len(decoded) == 6 and sum(again.spec.sizes.values()) == 6
    save(top / "3.png", 77)
    os.utime(top / "3.png", ns=(1, 1))
    changed = folder(str(top), size=8, channels=1)
    assert len(decoded) == 12
    assert set().union(*map(colours, changed.splits.values())) == {(i,) for i in (0, 1, 2, 77, 4, 5)}
    folder(str(top), size=4, channels=1)
    assert len(decoded) == 18  # another size is another cache …
    folder(str(top), size=8, channels=1)
    assert len(decoded) == 18 and len(list(cache.rglob("*.npy"))) == 2  # … and the outdated one is gone


def test_a_damaged_cache_is_built_again(tmp_path, decoded, cache):
    for i in range(4):
        save(tmp_path / "set" / f"{i}.png", i)
    folder(str(tmp_path / "set"), size=8)
    (file,) = cache.rglob("*.npy")
    whole = file.read_bytes()
    np.save(tmp_path / "other.npy", np.zeros((3, 3, 8, 8), np.uint8))
    for damaged in (whole[:-5], (tmp_path / "other.npy").read_bytes(), b""):
        file.write_bytes(damaged)
        source = folder(str(tmp_path / "set"), size=8)
        assert set().union(*map(colours, source.splits.values())) == {(i, i, i) for i in range(4)}
        assert file.read_bytes() == whole
    assert len(decoded) == 4 * 4


def test_two_processes_build_one_cache(tmp_path, cache):
    for i in range(50):
        save(tmp_path / "set" / f"{i}.png", i)
    script = (
        "import sys, time\nfrom gentrain.data import files\nreal, count = files._decode, []\n"
        "files._decode = lambda *a: count.append(1) or time.sleep(0.02) or real(*a)\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "source = files.folder(sys.argv[1], size=16)\nprint(len(count), source.fingerprint())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "set")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:  # both begin at once, and decoding takes a while
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(output[0] for output in outputs) == ["0", "50"]  # one decoded, the other waited
    assert outputs[0][1] == outputs[1][1]


def test_an_unreadable_image_is_named_and_leaves_no_cache(tmp_path, cache):
    for i in range(3):
        save(tmp_path / "set" / "label" / f"{i}.jpg", (i, i, i), size=(64, 64))
    broken = tmp_path / "set" / "label" / "broken.jpg"
    broken.write_bytes((tmp_path / "set" / "label" / "0.jpg").read_bytes()[:300])
    with pytest.raises(DataError, match=r"set/label/broken\.jpg can't be read as an image: .*; mend or remove it"):
        folder(str(tmp_path / "set"))
    assert [path.name for path in cache.rglob("*") if path.is_file() and path.name != ".lock"] == []
    broken.write_text("hello")
    with pytest.raises(DataError, match=r"broken\.jpg can't be read"):
        folder(str(tmp_path / "set"))


def test_folders_without_images_or_with_half_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        folder(str(tmp_path / "nowhere"))
    (tmp_path / "set" / "sub").mkdir(parents=True)
    (tmp_path / "set" / "sub" / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"set holds no images \(\.bmp"):
        folder(str(tmp_path / "set"))
    save(tmp_path / "set" / "bare.png", 1)
    save(tmp_path / "set" / "sub" / "a.png", 1)
    with pytest.raises(DataError, match=r"with a label \(in sub-folders\) and without, e\.g\. bare\.png"):
        folder(str(tmp_path / "set"))
    save(tmp_path / "only" / "test" / "a.png", 1)
    with pytest.raises(DataError, match="has images in test but none in train"):
        folder(str(tmp_path / "only"))


def test_a_full_disk_is_said_and_leaves_no_cache(tmp_path, cache):
    for i in range(50):
        save(tmp_path / "set" / f"{i}.png", i)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # Python turns the signal into an OSError
    try:
        with pytest.raises(DiskError, match=r"cache of decoded images in .* can't be written: File too large"):
            folder(str(tmp_path / "set"), size=32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(cache.rglob("*.npy")) and not list(cache.rglob("*.tmp"))


# ------------------------------------------------------------------------------------------------------------- arrays


def write(tmp_path: Path, **arrays: np.ndarray) -> str:
    np.savez(tmp_path / "my.npz", **arrays)
    return str(tmp_path / "my.npz")


RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (40, 8, 6), dtype=np.uint8)


@pytest.mark.parametrize(
    ("x", "support", "levels"),
    [
        (BYTES, "levels", 256),
        (BYTES.astype(np.int64), "levels", 256),
        (BYTES > 99, "binary", 2),
        ((BYTES > 99).astype(np.int32), "binary", 2),
        (BYTES / 7.0, "real", None),
    ],
)
def test_what_an_array_holds_follows_from_its_values(tmp_path, x, support, levels):
    source = npz(write(tmp_path, x=x))
    assert (source.spec.support, source.spec.levels, source.spec.shape) == (support, levels, (1, 8, 6))
    assert source.spec.sizes == {"train": 33, "validation": 3, "test": 4}
    stored = torch.cat([split.x for split in source.splits.values()])[:, 0].numpy()
    assert stored.dtype == (np.float32 if support == "real" else np.uint8)
    assert sorted(map(bytes, stored)) == sorted(bytes(row.astype(stored.dtype)) for row in x)


def test_named_splits_and_labels(tmp_path):
    y = np.arange(40) % 4
    path = write(tmp_path, train_x=BYTES, train_y=y, x_test=BYTES[:9], y_test=y[:9], val_x=BYTES[9:12], val_y=y[9:12])
    source = npz(path)
    assert source.spec.sizes == {"train": 40, "validation": 3, "test": 9} and source.spec.classes == 4
    assert np.array_equal(source.splits["test"].x[:, 0].numpy(), BYTES[:9])
    train, by_bytes = source.splits["train"], dict(zip(map(bytes, BYTES), y, strict=True))
    assert train.y is not None
    assert [by_bytes[bytes(x[0].numpy())] for x in train.x] == train.y.tolist()
    assert npz(path, validation=2).spec.sizes == {"train": 40, "validation": 2, "test": 9}


def test_the_channels_are_found_or_asked_for(tmp_path):
    last = RNG.integers(0, 256, (12, 5, 7, 3), dtype=np.uint8)
    stored = {}
    for name, array in (("hwc", last), ("chw", last.transpose(0, 3, 1, 2))):
        source = npz(write(tmp_path, x=array))
        assert source.spec.shape == (3, 5, 7)
        stored[name] = source.fingerprint()
    assert stored["hwc"] == stored["chw"]
    doubtful = write(tmp_path, x=last[:, :3])  # 3 x 7 x 3
    with pytest.raises(DataError, match=r"channels of an array shaped \(12, 3, 7, 3\)\? Say data\.layout=chw or"):
        npz(doubtful)
    assert npz(doubtful, layout="hwc").spec.shape == (3, 3, 7) and npz(doubtful, layout="chw").spec.shape == (3, 7, 3)
    assert npz(write(tmp_path, x=last.reshape(12, -1))).spec.shape == (105,)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": BYTES}, "has no array x or x_train, only images"),
        ({"x": BYTES.astype(np.int64) + 200}, r"integers must lie in 0…255, found 200…455"),
        ({"x": BYTES.astype(np.int64) - 1}, r"found -1…254"),
        ({"x": np.array([[1.0, np.nan]])}, "train array has NaN or infinite values"),
        ({"x": np.array([["a"]])}, "all floats, or all booleans or integers; found train <U1"),
        ({"x": BYTES, "x_test": BYTES / 2}, "found train uint8, test float64"),
        ({"x": BYTES, "y": np.zeros(39, int)}, r"train labels must be 40 integers, found int64 shaped \(39,\)"),
        ({"x": BYTES, "y": np.zeros(40)}, "train labels must be 40 integers, found float64"),
        ({"x": BYTES, "y": np.full(40, -1)}, "train labels begin at -1"),
        ({"x": np.zeros(5)}, r"train array is shaped \(5,\), expected \(examples, …\)"),
        ({"x": BYTES, "x_test": BYTES[:, :4]}, r"test examples are shaped \(1, 4, 6\), training ones \(1, 8, 6\)"),
        ({"x": np.array([[{}]], dtype=object)}, "can't be read as arrays: Object arrays cannot be loaded"),
        ({"x": np.zeros((2, 2, 2, 2, 2))}, "neither points, .* nor images"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        npz(write(tmp_path, **arrays))


def test_files_that_hold_no_arrays_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.npz does not exist"):
        npz(str(tmp_path / "nowhere.npz"))
    path = Path(write(tmp_path, x=BYTES))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"my\.npz can't be read as arrays"):
        npz(str(path))
    np.save(tmp_path / "one.npy", BYTES)
    with pytest.raises(DataError, match=r"one\.npy holds a single array"):
        npz(str(tmp_path / "one.npy"))


# ---------------------------------------------------------------------------------------------------------------- IDX


def idx_file(path: Path, array: np.ndarray) -> str:
    content = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def test_ones_own_idx_files(tmp_path):
    labels = (np.arange(40) % 5).astype(np.uint8)
    images = idx_file(tmp_path / "images", BYTES)
    y = idx_file(tmp_path / "labels.gz", labels)
    source = idx(images, y, idx_file(tmp_path / "more.gz", BYTES[:7]), idx_file(tmp_path / "more-labels", labels[:7]))
    assert source.spec.sizes == {"train": 36, "validation": 4, "test": 7} and source.spec.classes == 5
    assert np.array_equal(source.splits["test"].x[:, 0].numpy(), BYTES[:7])
    assert idx(images, validation=0).spec.sizes == {"train": 36, "test": 4}
    with pytest.raises(DataError, match="train labels must be 40 integers, found uint8 shaped"):
        idx(images, idx_file(tmp_path / "short", labels[:39]))
    with pytest.raises(DataError, match=r"data\.test_labels needs data\.test_images"):
        idx(images, y, test_labels=y)
    with pytest.raises(DataError, match=r"labels\.gz has 1 dimensions, expected 3"):
        idx(y)
    with pytest.raises(DataError, match="nowhere can't be read: No such file"):
        idx(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"data\.validation=36 leaves nothing"):
        idx(images, validation=36)
