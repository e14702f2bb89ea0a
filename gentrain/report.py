"""The one writer: console, TensorBoard, metrics.jsonl and PNG files of a run.

Nobody else knows TensorBoard, nobody but this and `gentrain.console` rich. Processes other than the main one hold a
`Report` without a run, which writes nothing. A disk that fills up here is said once and never ends training;
checkpoints are another matter.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from gentrain import pictures, texts
from gentrain.console import QUIET, clock, console
from gentrain.files import write_atomic
from gentrain.run import read_metrics

log = logging.getLogger("gentrain")
_END = ".end"  # of the name of the event file that says how a run ended


class Report:
    """Writes what happens in a run.

    Args:
        folder: the run's folder, or None to write nothing. first_step: events at or after it belong to an abandoned
            future and are purged (0 for a fresh run). total: steps of the whole training, None when a clock ends it.
    """

    def __init__(self, folder: Path | None, first_step: int = 0, total: int | None = None):
        self.folder = folder
        self.total = total
        self._warned: set[str] = set()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._spoke = 0.0
        self.console = console()
        if folder is None:
            self._writer = None
            return
        self._rewind(folder / "metrics.jsonl", first_step)
        for end in folder.glob(f"events.out.tfevents.*{_END}"):
            self._guarded("TensorBoard", end.unlink)
        self._writer = self._guarded("TensorBoard", lambda: self._open_board(folder, first_step))

    # --- numbers ---

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """File named numbers of one step in metrics.jsonl and TensorBoard."""
        if self.folder is None:
            return
        record = {"step": step, **{k: v if math.isfinite(v) else str(v) for k, v in values.items()}}

        def append() -> None:
            assert self.folder is not None
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

        self._guarded("metrics.jsonl", append)
        for name, value in values.items():
            self._board(lambda w, n=name, v=value: w.add_scalar(n, v, step))

    def histogram(self, step: int, name: str, values: Any) -> None:
        self._board(lambda w: w.add_histogram(name, values, step))

    def text(self, step: int, name: str, text: str) -> None:
        self._board(lambda w: w.add_text(name, text, step))

    def picture(self, step: int, name: str, pixels: np.ndarray, keep: bool = True) -> Path | None:
        """File (H, W, 3) bytes in TensorBoard and, with `keep`, as samples/<name>-<step>.png; its path."""
        self._board(lambda w: w.add_image(name, pixels, step, dataformats="HWC"))
        if self.folder is None or not keep:
            return None
        path = self.folder / "samples" / f"{name.replace('/', '-')}-{step:08d}.png"
        self._guarded("samples", lambda: pictures.save_png(path, pixels))
        return path

    def animation(self, step: int, name: str) -> None:
        """The run's pictures of one name, in order, as samples/<name>.gif and in TensorBoard; none of a single one."""
        paths = sorted(self.folder.glob(f"samples/{name}-[0-9]*.png")) if self.folder is not None else []
        if self.folder is None or len(paths) < 2:
            return
        path = self.folder / "samples" / f"{name}.gif"
        size = self._guarded("samples", lambda: pictures.save_gif(path, paths))
        if size is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

            width, height = size
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
            value = Summary.Value(tag=f"{name}/animation", image=image)
            self._board(lambda w: w.file_writer.add_summary(Summary(value=[value]), step))

    def writing(self, step: int, name: str, written: Sequence[str]) -> Path | None:
        """File texts in TensorBoard and as samples/<name>-<step>.txt, show how they begin; the file's path."""
        self.text(step, name, texts.markdown(written))
        if self.folder is None:
            return None
        path = self.folder / "samples" / f"{name.replace('/', '-')}-{step:08d}.txt"
        self._guarded("samples", lambda: path.write_text(texts.sheet(written), encoding="utf-8"))
        self.say(f"step {step:,} writes:\n{texts.excerpt(written)}")
        return path

    def curve(self) -> None:
        """Draw curve.png from metrics.jsonl: a plot for everything trained or validated."""
        if self.folder is None:
            return
        series: dict[str, list[tuple[int, float]]] = {}
        for record in read_metrics(self.folder):
            for name, value in record.items():
                if name.startswith(("train/", "validation/")) and isinstance(value, float | int):
                    series.setdefault(name, []).append((record["step"], value))
        path = self.folder / "curve.png"
        if series:
            self._guarded("curve.png", lambda: pictures.save_png(path, pictures.curves(series)))

    def hparams(self, settings: Mapping[str, Any]) -> None:
        """File the run's settings for TensorBoard's HParams table, in the run's own folder.

        Only the session's start and end are written: with an experiment record as well, TensorBoard takes its columns
        from the first run alone and hides every setting that only other runs have.
        """
        if self._writer is not None:
            from tensorboard.plugins.hparams.plugin_data_pb2 import SessionStartInfo  # pyright: ignore[reportAttributeAccessIssue]

            info = SessionStartInfo(start_time_secs=time.time())
            for key, value in settings.items():
                if isinstance(value, bool):
                    info.hparams[key].bool_value = value
                elif isinstance(value, int | float):
                    info.hparams[key].number_value = value
                else:
                    info.hparams[key].string_value = str(value)
            self._session("session_start_info", info)

    def hparams_end(self, ok: bool) -> None:
        """Mark the run in the HParams table as finished, well or badly; TensorBoard's files are closed with that.

        TensorBoard believes the first end it finds. The mark lies in a file of its own, so that a run that is resumed
        can take it back.
        """
        if self._writer is not None:
            from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboard.plugins.hparams.plugin_data_pb2 import SessionEndInfo  # pyright: ignore[reportAttributeAccessIssue]
            from torch.utils.tensorboard import SummaryWriter

            status = STATUS_SUCCESS if ok else STATUS_FAILURE
            self._board(lambda w: w.close())  # before the new file: TensorBoard never goes back to an older one
            self._writer = self._guarded("TensorBoard", lambda: SummaryWriter(str(self.folder), filename_suffix=_END))
            self._session("session_end_info", SessionEndInfo(status=status, end_time_secs=time.time()))

    def _session(self, name: str, info: Any) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]

        content = HParamsPluginData(version=0, **{name: info}).SerializeToString()
        plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content)
        value = Summary.Value(tag=f"_hparams_/{name}", metadata=SummaryMetadata(plugin_data=plugin))
        self._board(lambda w: w.file_writer.add_summary(Summary(value=[value])))

    def flush(self) -> None:
        self._board(lambda w: w.flush())

    # --- console ---

    def start(self, step: int) -> None:
        """Open the progress bar (on a terminal)."""
        if self.folder is not None and self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.completed:,.0f}" + (f"/{self.total:,}" if self.total else "")),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[line]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._task = self._progress.add_task("", total=self.total, completed=step, line="")
            self._progress.start()

    def progress(self, step: int, values: Mapping[str, float], rate: float, eta: float | None) -> None:
        """Show where training stands: on the bar, or as one plain line every few seconds."""
        if self.folder is None:
            return
        line = "  ".join(f"{name} {value:.5g}" for name, value in values.items()) + f"  {rate:,.0f} ex/s"
        if self._progress is not None and self._task is not None:
            losses = [name for name in values if "loss" in name] or list(values)[:1]  # a bar has one line, not wide
            line = "  ".join(f"{name} {values[name]:.4g}" for name in losses) + f"  {rate:,.0f} ex/s"
            self._progress.update(self._task, completed=step, line=line)
        elif time.monotonic() - self._spoke > QUIET:
            self._spoke = time.monotonic()
            of = f"/{self.total:,}" if self.total else ""
            self.say(f"step {step:,}{of}  {line}" + (f"  eta {clock(eta)}" if eta is not None else ""))

    def say(self, line: str) -> None:
        """One line on the console and in train.log."""
        if self.folder is not None:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            log.info(line)

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """The closing table; where there is no terminal, a line a row that other programs can read."""
        if self.folder is None:
            return
        if not self.console.is_terminal:
            width = max(len(key) for key, _ in rows)
            for key, value in rows:
                self.say(f"{key:<{width}}  {value}")
            return
        table = Table(title=title, show_header=False, title_justify="left")
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for key, value in rows:
            table.add_row(key, value)
        self.console.print(table)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._board(lambda w: w.close())
        self._writer = None

    # --- within ---

    def _rewind(self, path: Path, first_step: int) -> None:
        """Drop the lines of steps that are about to be trained again, and a half-written last one."""
        if not path.exists():
            return
        kept = [json.dumps(r) for r in read_metrics(path.parent) if r["step"] < first_step]
        write_atomic(path, "".join(line + "\n" for line in kept).encode())

    def _open_board(self, folder: Path, first_step: int) -> Any:
        """A writer whose file TensorBoard reads after the folder's earlier ones, so it drops what they say in excess.

        TensorBoard goes by the second in a file's name, and a run may be resumed within the second it was started in.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as error:  # a broken installation fails in its own ways; it must not keep a run from training
            reason = str(error).split("\n", 1)[0]
            self.say(f"warning: no TensorBoard files: it can't be imported ({reason}); pip install tensorboard")
            return None
        seconds = [int(p.name.split(".")[3]) for p in folder.glob("events.out.tfevents.[0-9]*")]
        patience = time.monotonic() + 1.5  # a clock that was set back must not keep us
        while seconds and int(time.time()) <= max(seconds) and time.monotonic() < patience:
            time.sleep(0.02)
        threading.excepthook = _hush_board
        return SummaryWriter(str(folder), purge_step=first_step)

    def _board(self, write: Any) -> None:
        if self._writer is not None:
            self._guarded("TensorBoard", lambda: write(self._writer))

    def _guarded(self, what: str, write: Any) -> Any:
        try:
            return write()
        except OSError as error:
            if what not in self._warned:
                self._warned.add(what)
                self.say(f"warning: {what} can't be written ({error.strerror or error}); training goes on without it")
            return None


class Aside:
    """Adds to a finished run's TensorBoard and samples what was found out about it later."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._writer: Any = None

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def file(self, step: int, values: Mapping[str, float], drawn: Mapping[str, np.ndarray]) -> list[Path]:
        """File numbers and pictures of one step; the pictures' paths. A full disk is said and costs no number."""
        paths = []
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder), filename_suffix=".evaluate")
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            for name, pixels in drawn.items():
                self._writer.add_image(name, pixels, step, dataformats="HWC")
                (self.folder / "samples").mkdir(exist_ok=True)
                paths.append(self.folder / "samples" / f"{name}-{step:08d}.png")
                pictures.save_png(paths[-1], pixels)
            self._writer.flush()
        except (OSError, ImportError) as error:
            console(stderr=True).print(f"warning: pictures or TensorBoard can't be written: {error}", markup=False)
        return paths


def _hush_board(what: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread prints a traceback when the disk is full; its next caller is told and says it in words."""
    of_board = type(what.thread).__module__.startswith("tensorboard.")
    if not (of_board and issubclass(what.exc_type, OSError)):
        threading.__excepthook__(what)
