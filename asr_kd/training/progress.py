"""What people see of a training: a table with a row for every epoch, and curves for TensorBoard."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from asr_kd.errors import AsrKdError, install_hint

HEADER = "epoch    step  train loss  dev xent  dev frame acc        lr    frames/s  elapsed     left"
CURVES = ("train_loss", "dev_xent", "dev_frame_acc", "learning_rate", "frames_per_second")


class Curves(Protocol):
    """The part of TensorBoard's SummaryWriter that is used."""

    def add_scalar(self, tag: str, value: float, global_step: int) -> None: ...


class Progress:
    """Rows for `log` with the time that has gone by and the time left, and curves where `curves` takes them."""

    def __init__(self, first_step: int, num_steps: int, log: Callable[[str], None], curves: Curves | None = None):
        """first_step: where a resumed run goes on. HEADER stands above the rows."""
        self._first, self._num_steps, self._log, self._curves = first_step, num_steps, log, curves
        self._begin = time.monotonic()

    def epoch(self, row: dict[str, Any], best: bool) -> None:
        """A row of the history; the best epoch so far gets a star, a rejected one is called so."""
        note = "  rejected" if not row.get("accepted", True) else "  *" if best else ""
        self._log(
            f"{row['epoch']:5d}  {row['step']:6d}  {row['train_loss']:10.4f}  {row['dev_xent']:8.4f}  "
            f"{row['dev_frame_acc']:11.2f} %  {row['learning_rate']:8.2e}  {row['frames_per_second']:10,.0f}  "
            f"{self._times(row['step'])}{note}"
        )
        for name in CURVES if self._curves else ():
            self._curves.add_scalar(name, row[name], row["step"])

    def within(self, step: int, mean_loss: float) -> None:
        """A sign of life from a long epoch."""
        self._log(f"       {step:6d}  {mean_loss:10.4f}  {'saved within the epoch':>47}  {self._times(step)}")

    def _times(self, step: int) -> str:
        elapsed = time.monotonic() - self._begin
        left = elapsed / max(step - self._first, 1) * (self._num_steps - step)
        return f"{_clock(elapsed)}  {_clock(left)}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def tensorboard(folder: Path, first_step: int) -> Iterator[Curves]:
    """A writer of TensorBoard's event files in `folder`; what an earlier run wrote after `first_step` is hidden.

    Raises AsrKdError where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise AsrKdError(f"tensorboard true: needs TensorBoard; {install_hint('tensorboard')}") from error
    with SummaryWriter(str(folder), purge_step=first_step + 1) as writer:
        yield writer
