"""Questions to all records at once: one row a measurement, in pandas and in SQL."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trinity.harness.records import flat
from trinity.harness.terminal.grid import Column, Grid
from trinity.methods.errors import ConfigError, MachineError

if TYPE_CHECKING:
    import pandas as pd

VIEW = "measurements"
_INSTALL = "Install it with `pip install 'compression-trinity[tracking]'`."


def frame(results: Path | str = "results") -> "pd.DataFrame":
    """Every measurement of every record, a row each; the columns are `flat.COLUMNS`."""
    # Imported here: only who asks for a data frame waits for pandas.
    try:
        import pandas as pd
    except ImportError as error:
        msg = f"the flat view of records needs pandas, which is not installed. {_INSTALL}"
        raise MachineError(msg) from error

    return pd.DataFrame(list(flat.rows(Path(results))), columns=list(flat.COLUMNS))


def ask(sql: str, results: Path) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of a query over the view `measurements`.

    ConfigError in DuckDB's words for a query that it refuses
    """
    if not (results / "v1").is_dir():
        msg = f"table --sql: {results} holds no records. Name their folder with --out."
        raise ConfigError(msg)
    # Imported here: an optional dependency, for this one question.
    try:
        import duckdb
    except ImportError as error:
        msg = f"--sql needs DuckDB, which is not installed. {_INSTALL}"
        raise MachineError(msg) from error

    with duckdb.connect() as connection:
        connection.register(VIEW, frame(results))
        try:
            answer = connection.execute(sql)
            names = [column[0] for column in answer.description or ()]
            return names, [tuple(map(_plain, row)) for row in answer.fetchall()]
        except duckdb.Error as error:
            said = " ".join(str(error).split())
            msg = f"--sql: {said} The view is `{VIEW}`; `DESCRIBE {VIEW}` lists its columns."
            raise ConfigError(msg) from error


def grid(names: list[str], rows: list[tuple[Any, ...]]) -> Grid:
    """A query's answer as a table."""
    numbers = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(names))]
    columns = [Column(name, right) for name, right in zip(names, numbers, strict=True)]
    return Grid("", columns, [[_text(value) for value in row] for row in rows])


def _plain(value: Any) -> Any:
    """A value as JSON has it: dates and decimals are text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value if value == value else None  # pandas holds a missing number as NaN
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
