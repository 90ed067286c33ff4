"""metrics.csv: every logged scalar of a run, one row per step, readable while the run goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only


class MetricsCSV(Logger):
    """Rows of (epoch, step, scalars); values of one step share a row.

    Only the last row is open; a new column rewrites the file. On resume :meth:`rewind` drops what was logged after the
    checkpoint, so that the file ends up as if the run had never stopped.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns = ["epoch", "step"]
        self.rows = read_metrics(self.path)
        for row in self.rows:
            self.columns += [name for name in row if name not in self.columns]
        self._last_row_at: int | None = None  # byte where the open row begins; unknown in a file of an earlier start

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run folder's config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add scalars to the row of ``step``; on disk when this returns."""
        new_row = not self.rows or self.rows[-1]["step"] != (step or 0)
        if new_row:
            self.rows.append({"step": step or 0})
        self.rows[-1].update(metrics)
        new_columns = [name for name in metrics if name not in self.columns]
        self.columns += new_columns
        if new_columns or self._last_row_at is None:
            self._rewrite()
        else:
            self._write_last(append=new_row)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows after ``step``; a run that starts anew rewinds to -1."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        if step < 0:
            self.columns = ["epoch", "step"]
        if self.path.exists():
            self._rewrite()

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [self._line(dict(zip(self.columns, self.columns, strict=True))), *map(self._line, self.rows)]
        self.path.write_text("".join(lines))
        self._last_row_at = sum(len(line.encode()) for line in lines[:-1])

    def _write_last(self, append: bool) -> None:
        with self.path.open("r+b") as file:
            end = file.seek(0, io.SEEK_END)
            if append or self._last_row_at is None:
                self._last_row_at = end
            file.seek(self._last_row_at)
            file.truncate()
            file.write(self._line(self.rows[-1]).encode())

    def _line(self, row: Mapping[str, Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([row.get(name, "") for name in self.columns])
        return text.getvalue()


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv as numbers, empty cells left out; no rows where there is no file yet."""
    path = Path(path)
    if not path.exists():
        return []
    with path.open(newline="") as file:
        table = [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
    whole = ("epoch", "step")
    return [{k: int(v) if k in whole else v for k, v in row.items()} for row in table if "step" in row]


def final_values(rows: list[dict[str, float]]) -> dict[str, float]:
    """The figures of a finished run: means over the last epoch's lines of what is averaged, else the newest value."""
    values: dict[str, float] = {}
    for row in rows:
        values.update(row)
    last = [row for row in rows if row.get("epoch") == values.get("epoch")]
    for name in values:
        lines = [row[name] for row in last if name in row]
        if name.startswith(("train/", "time/")) and lines:
            values[name] = sum(lines) / len(lines)
    return {name: value for name, value in values.items() if name not in ("epoch", "step")}
