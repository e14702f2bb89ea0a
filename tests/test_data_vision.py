"""Sets in torchvision's layout: read, verified, downloaded over real HTTP, and refused clearly."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from gentrain.data import vision
from gentrain.data.idx import read_idx
from gentrain.data.pipeline import Pipeline
from gentrain.data.places import data_root
from gentrain.errors import DataError, UsageError

REAL = Path(os.environ.get("GENTRAIN_DATA", "")) / "MNIST" / "raw"
needs_mnist = pytest.mark.skipif(
    not os.environ.get("GENTRAIN_DATA") or not REAL.is_dir(), reason="needs GENTRAIN_DATA with MNIST/raw in it"
)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def small_set(n: int = 40) -> dict[str, bytes]:
    """Four IDX files under torchvision's names: n training and n / 2 test examples of 28 x 28."""
    rng = np.random.default_rng(0)
    files = {}
    for name, count in (("train", n), ("t10k", n // 2)):
        files[f"{name}-images-idx3-ubyte"] = idx_bytes(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        files[f"{name}-labels-idx1-ubyte"] = idx_bytes(rng.integers(0, 10, count, dtype=np.uint8))
    return files


def write_set(root: Path, dataset: str, files: dict[str, bytes]) -> Path:
    raw = root / dataset / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return raw


# ------------------------------------------------------------------------------------------------------- real MNIST


@needs_mnist
def test_real_mnist():
    source = vision.mnist()
    assert source.spec.sizes == {"train": 50_000, "validation": 10_000, "test": 10_000}
    assert (source.spec.shape, source.spec.levels, source.spec.classes) == ((1, 28, 28), 256, 10)
    whole = vision.mnist(validation=0)
    assert whole.spec.sizes == {"train": 60_000, "test": 10_000}
    train, held = whole.splits["train"], source.splits["validation"]
    assert torch.equal(train.x[50_000:], held.x) and train.y is not None and held.y is not None
    assert torch.equal(train.y[50_000:], held.y)  # the last 10,000, as in the literature
    mean = float(Pipeline(whole, "unit", 100, seed=0).mean().mean())
    assert mean == pytest.approx(0.1307, abs=5e-5)
    assert train.y[:5].tolist() == [5, 0, 4, 1, 9]


@needs_mnist
def test_one_flipped_bit_of_real_mnist_is_noticed_and_the_file_named(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in REAL.iterdir():
        (raw / file.name).symlink_to(file)
    damaged = raw / "t10k-images-idx3-ubyte"
    content = bytearray(damaged.read_bytes())
    content[3_000_000] ^= 1
    damaged.unlink()
    damaged.write_bytes(content)
    expected = r"t10k-images-idx3-ubyte is damaged .*expected 2646ac647ad5339dbf082846283269ea; delete .*download"
    with pytest.raises(DataError, match=expected):
        vision.mnist(str(tmp_path))


# ----------------------------------------------------------------------------------------------------- what is there


def test_files_are_read_plain_or_compressed_without_torchvision(tmp_path):
    files = small_set()
    write_set(tmp_path / "plain", "KMNIST", files)
    write_set(tmp_path / "packed", "KMNIST", {name + ".gz": gzip.compress(data) for name, data in files.items()})
    script = (
        "import sys\nfrom gentrain.data.vision import kmnist\n"
        "print(*[kmnist(root, validation=10).fingerprint() for root in sys.argv[1:]])\n"
        "assert not {'torchvision', 'scipy', 'sklearn', 'PIL'} & set(sys.modules)"
    )
    roots = [str(tmp_path / "plain"), str(tmp_path / "packed")]
    done = subprocess.run([sys.executable, "-c", script, *roots], capture_output=True, text=True, check=True)
    plain, packed = done.stdout.split()
    assert plain == packed
    source = vision.kmnist(roots[0], validation=10)
    assert source.spec.sizes == {"train": 30, "validation": 10, "test": 20}
    expected = np.frombuffer(files["train-images-idx3-ubyte"][16:], np.uint8).reshape(40, 1, 28, 28)
    assert np.array_equal(source.splits["train"].x.numpy(), expected[:30])
    with pytest.raises(UsageError, match=r"data\.validation=10000 leaves nothing of the 40 .* at most 39"):
        vision.kmnist(roots[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], r"expected for 40 x 28 x 28, 31,375 found"),
        (lambda data: data + b"\0", r"31,376 bytes expected .* 31,377 found"),
        (lambda data: b"<html>" + data, r"begins with bytes 3c 68 74 6d, expected 00 00 08 03"),
        (lambda data: data[:3], r"begins with bytes 00 00 08, expected"),
        (lambda data: b"", r"begins with bytes \(none\), expected"),
        (lambda data: data[:3] + b"\1" + data[4:], r"has 1 dimensions, expected 3"),
        (lambda data: data[:2] + b"\x0d" + data[3:], r"125,456 bytes expected"),
        (lambda data: data[:2] + b"\x07" + data[3:], r"no IDX file"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, damage, message):
    files = small_set()
    raw = write_set(tmp_path, "KMNIST", files)
    (raw / "train-images-idx3-ubyte").write_bytes(damage(files["train-images-idx3-ubyte"]))
    with pytest.raises(DataError, match=message) as caught:
        vision.kmnist(str(tmp_path), validation=0)
    assert str(raw / "train-images-idx3-ubyte") in str(caught.value) and f"delete {raw}" in str(caught.value)


def test_idx_files_of_every_type_and_damaged_compression(tmp_path):
    file = tmp_path / "a.gz"
    values = np.array([[1, -2, 300], [4, 5, -6]], dtype=">i4")
    file.write_bytes(gzip.compress(bytes([0, 0, 0x0C, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + values.tobytes()))
    assert read_idx(file, 2).tolist() == values.tolist()
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"a\.gz is damaged: Compressed file ended"):
        read_idx(file, 2)
    file.write_bytes(b"not compressed at all")
    with pytest.raises(DataError, match=r"a\.gz is damaged: Not a gzipped file"):
        read_idx(file, 2)


def test_cifar10_is_read_in_channel_order_and_only_with_the_published_checksums(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng, sums = np.random.default_rng(0), {}
    for name in vision._CIFAR10_MD5:
        record = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": list(range(10)) * 2}
        (folder / name).write_bytes(pickle.dumps(record, protocol=2))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    with pytest.raises(DataError, match=r"data_batch_1 is damaged .* expected c99cafc152244af753f735de768cd75f"):
        vision.cifar10(str(tmp_path))  # so nothing foreign is ever unpickled
    monkeypatch.setattr(vision, "_CIFAR10_MD5", sums)
    source = vision.cifar10(str(tmp_path), validation=30)
    assert source.spec.sizes == {"train": 70, "validation": 30, "test": 20} and source.spec.shape == (3, 32, 32)
    second = pickle.loads((folder / "data_batch_2").read_bytes())["data"]
    assert source.splits["train"].x[21, 1, 2, 3] == second[1, 1024 + 2 * 32 + 3]


def test_svhn_calls_the_digit_zero_zero(tmp_path, monkeypatch):
    from scipy.io import savemat

    rng, sums, kept = np.random.default_rng(0), {}, {}
    for name in vision._SVHN_MD5:
        kept[name] = rng.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
        savemat(tmp_path / name, {"X": kept[name], "y": np.arange(1, 11).repeat(2)[:, None].astype(np.uint8)})
        sums[name] = hashlib.md5((tmp_path / name).read_bytes()).hexdigest()
    monkeypatch.setattr(vision, "_SVHN_MD5", sums)
    source = vision.svhn(str(tmp_path), validation=4)
    assert source.spec.sizes == {"train": 16, "validation": 4, "test": 20}
    test = source.splits["test"]
    assert test.y is not None and test.y.tolist() == [d % 10 for d in range(1, 11) for _ in range(2)]
    assert test.x[7, 2, 5, 9] == kept["test_32x32.mat"][5, 9, 2, 7]


def test_where_data_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("GENTRAIN_DATA", "/somewhere")
    assert data_root("~/x") == Path.home() / "x" and data_root(None) == Path("/somewhere")
    monkeypatch.delenv("GENTRAIN_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root(None) == tmp_path / "gentrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root(None) == Path.home() / ".cache" / "gentrain"


# -------------------------------------------------------------------------------------------------------- downloading


class Mirror:
    """A real HTTP server of compressed files, once its `gate` is open; `stall` names one whose transfer never ends."""

    def __init__(self, files: dict[str, bytes], stall: str = ""):
        self.fetched: Counter[str] = Counter()
        self.stalled, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                name = self.path.strip("/")
                if self.headers.get("Method") == "HEAD":  # how torchvision follows redirections
                    return self.do_HEAD()
                mirror.fetched[name] += 1
                mirror.gate.wait(60)
                self.send_response(200)
                self.send_header("Content-Length", str(len(files[name])))
                self.end_headers()
                if name == stall:
                    self.wfile.write(files[name][: len(files[name]) // 2])
                    self.wfile.flush()
                    mirror.stalled.set()
                    time.sleep(60)
                self.wfile.write(files[name])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"


@pytest.fixture
def packed() -> dict[str, bytes]:
    return {name + ".gz": gzip.compress(data, mtime=0) for name, data in small_set().items()}


@pytest.fixture
def mirror(request, packed):
    served = Mirror(packed | getattr(request, "param", {}))
    yield served
    served.server.shutdown()


def resources(packed: dict[str, bytes]) -> list[tuple[str, str]]:
    return [(name, hashlib.md5(data).hexdigest()) for name, data in packed.items()]


@pytest.fixture
def point_torchvision(monkeypatch, packed):
    """Make torchvision's own KMNIST download from `url`."""

    def point(url: str) -> None:
        dataset = vision._torchvision().datasets.KMNIST
        monkeypatch.setattr(dataset, "mirrors", [url])
        monkeypatch.setattr(dataset, "resources", resources(packed))

    return point


CLIENT = """
import sys
from gentrain.data import vision
dataset = vision._torchvision().datasets.KMNIST
dataset.mirrors, dataset.resources = [sys.argv[2]], eval(sys.argv[3])
print("ready", flush=True)
print(vision.kmnist(sys.argv[1], validation=10).fingerprint())
"""


def client(root: Path, url: str, packed: dict[str, bytes], program: str = CLIENT) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(root), url, repr(resources(packed))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


TRAINING = """
import sys
from gentrain.cli import main
from gentrain.data import vision
dataset = vision._torchvision().datasets.KMNIST
dataset.mirrors, dataset.resources = [sys.argv[2]], eval(sys.argv[3])
sys.exit(main(["data=kmnist", f"data.root={sys.argv[1]}", f"output={sys.argv[1]}/outputs", "device=cpu"]))
"""


def test_sigterm_during_a_download_ends_the_command_at_once(tmp_path, packed):
    stalling = Mirror(packed, stall="t10k-labels-idx1-ubyte.gz")
    process = client(tmp_path, stalling.url, packed, TRAINING)
    assert stalling.stalled.wait(60), process.stderr and process.stderr.read()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=60)
    stalling.server.shutdown()
    assert process.returncode == 143 and time.monotonic() - began < 10, complaint
    assert complaint.splitlines()[-1] == "gentrain: stopped at once by SIGTERM"
    assert not (tmp_path / "KMNIST").exists() and not (tmp_path / "outputs").exists()


def test_two_processes_at_once_download_once_and_both_succeed(tmp_path, mirror, packed):
    mirror.gate.clear()
    processes = [client(tmp_path / "root", mirror.url, packed) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # both are past looking for the files: one downloads, the other waits
    mirror.gate.set()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] and len(outputs[0][0].strip()) == 64
    assert mirror.fetched == Counter(packed.keys())  # each file once
    assert all("%" not in errors for _, errors in outputs)  # no progress bar where there is no terminal
    raw = tmp_path / "root" / "KMNIST" / "raw"
    assert sorted(file.name for file in raw.iterdir()) == sorted(["MD5SUMS", *vision._IDX_FILES])
    assert {path.name for path in (tmp_path / "root").iterdir()} <= {"KMNIST", ".KMNIST.lock"}


def test_a_killed_download_leaves_nothing_that_looks_whole_and_the_next_one_succeeds(
    tmp_path, mirror, packed, point_torchvision
):
    stalling = Mirror(packed, stall="t10k-labels-idx1-ubyte.gz")
    process = client(tmp_path, stalling.url, packed)
    assert stalling.stalled.wait(60), process.stderr and process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stalling.server.shutdown()
    assert (tmp_path / ".KMNIST.partial").exists() and not (tmp_path / "KMNIST").exists()
    raw = tmp_path / ".KMNIST.partial" / "KMNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"")  # as if killed a moment later, while unpacking
    assert sorted(file.name for file in raw.iterdir() if not file.suffix) == sorted(vision._IDX_FILES)
    point_torchvision(mirror.url)
    assert vision.kmnist(str(tmp_path), validation=10).spec.sizes["train"] == 30
    assert not (tmp_path / ".KMNIST.partial").exists()


def test_downloaded_files_are_verified_ever_after(tmp_path, mirror, point_torchvision):
    point_torchvision(mirror.url)
    vision.kmnist(str(tmp_path), validation=10)
    file = tmp_path / "KMNIST" / "raw" / "train-labels-idx1-ubyte"
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte is damaged .*its MD5 is .*download it afresh"):
        vision.kmnist(str(tmp_path), validation=10)


@pytest.mark.parametrize("mirror", [{"t10k-labels-idx1-ubyte.gz": gzip.compress(b"something else")}], indirect=True)
def test_a_download_that_is_not_what_was_published_is_refused(tmp_path, mirror, point_torchvision):
    point_torchvision(mirror.url)
    with pytest.raises(DataError, match=r"data=kmnist: .*download failed: .*t10k-labels.* corrupted.*data=digits"):
        vision.kmnist(str(tmp_path), validation=10)
    assert not (tmp_path / "KMNIST").exists() and not (tmp_path / ".KMNIST.partial").exists()


def test_offline_and_missing_is_one_message_at_once(tmp_path, point_torchvision):
    point_torchvision("http://127.0.0.1:9/")  # nobody listens there
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        vision.kmnist(str(tmp_path))
    assert time.monotonic() - start < 3
    message = str(caught.value)
    assert "\n" not in message and "KMNIST/raw/train-images-idx3-ubyte" in message and str(tmp_path) in message
    assert "no network?" in message and "data=digits needs nothing" in message and "127.0.0.1:9" in message


def test_a_server_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        reason = vision._unreachable([f"http://127.0.0.1:{silent.getsockname()[1]}/x"], patience=0.3)
        assert reason is not None and time.monotonic() - start < 2


def test_no_download_when_told_so(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is not in .* and data\.download=false; put the"):
        vision.mnist(str(tmp_path), download=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"is not in .*file/data, and it can't be stored there: Not a directory"):
        vision.mnist(str(tmp_path / "file" / "data"))


@pytest.mark.parametrize("broken", ["torchvision", "torchvision.datasets"])
def test_a_torchvision_that_does_not_go_with_torch_is_one_clear_line(tmp_path, monkeypatch, broken):
    if broken == "torchvision":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    else:
        monkeypatch.setitem(sys.modules, broken, None)
    expected = "needs torchvision: pip install" if broken == "torchvision" else "torchvision that matches the installed"
    with pytest.raises(DataError, match=expected):
        vision.mnist(str(tmp_path))
