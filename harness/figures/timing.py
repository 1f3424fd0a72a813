"""Where time goes: every sample of a latency, and how near the limits of the machine each comes."""

from collections.abc import Iterator, Sequence
from statistics import median

from trinity.harness.figures.figure import Choice, Figure, Option, Row, significant
from trinity.harness.figures.shown import Shown
from trinity.harness.records.facts import Conditions, Floor, Numbers, Product
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.statistics.intervals import quartiles

TIMES = {"tpot_s": "Time per later token, ms", "ttft_s": "Time to first token, ms"}
READ, MATMUL = "read_bytes_per_s", "matmul_flop_per_s"
NAMES = {"tpot_s": "decode", "ttft_s": "prefill"}
PRODUCT = "seconds"  # the metric of the suite `layers`


def latencies(runs: Sequence[Shown]) -> Figure:
    """Every repetition of every timed run."""
    name, title = "latency", "Latency, every repetition"
    says = (
        "Each tick is one repetition; the dot is the median, the bar the quartiles. Runs in torch "
        "on dequantized weights (simulated) are left out: their speed means nothing."
    )
    rows: list[Row] = []
    options: dict[str, Option] = {}
    for run in runs:
        for m in run.record.measurements:
            if m.metric in TIMES and m.samples and m.path != "simulated":
                of = f"{run.model}|{m.metric}"
                label = f"{run.model}, {TIMES[m.metric].partition(',')[0].lower()}"
                options.setdefault(of, Option(of, label, {"x": TIMES[m.metric]}))
                rows += _samples(run, m, of)
    if not rows:
        lacking = "No run was timed. `bench: {suites: [prefill, decode]}` in a recipe times it."
        return Figure(name, title, says, lacking=lacking)
    return Figure(name, title, says, tuple(rows), (Choice("of", "Timed", tuple(options.values())),))


def roofline(runs: Sequence[Shown]) -> Figure:
    """Each timed run and kernel under what its machine can do."""
    name, title = "roofline", "Roofline: how near the machine's limits"
    says = (
        "Across: multiplications and additions for each byte of weights read. Up: how many of them "
        "a second. The slanted line is the measured read bandwidth, the flat one the rate of large "
        "float32 products, both measured in the process that timed. A point on a line could not be "
        "faster on this machine; kernels that multiply in 8 bits may stand above the flat line. "
        "Ceilings change with the machine's load, so each point's share is of its own record's."
    )
    rows: list[Row] = []
    options: dict[str, Option] = {}
    for run in runs:
        points = list(_places(run))
        if not points:
            continue
        of = f"{run.model}|{run.machine}"
        options.setdefault(of, Option(of, f"{run.model} on {run.machine}", {}))
        rows += [{"of": of, **point} for point in points]
    if not rows:
        lacking = (
            "No record holds timed runs beside the ceilings of their machine. `bench: {suites: "
            "[prefill, decode]}` measures both; the suite `layers` places single kernels."
        )
        return Figure(name, title, says, lacking=lacking)
    rows += [row for of in options for row in _ceilings(of, runs)]
    choice = Choice("of", "Timed", tuple(options.values()))
    return Figure(name, title, says, tuple(rows), (choice,))


def _samples(run: Shown, m: Measurement, of: str) -> Iterator[Row]:
    for index, sample in enumerate(m.samples):
        row: Row = {"of": of, "run": f"{run.name}, {m.path}", "ms": significant(1e3 * sample)}
        if index == 0:  # what is drawn once
            low, middle, high = (significant(1e3 * x) for x in quartiles(m.samples))
            row |= {"median": middle, "low": low, "high": high}
        yield {**row, "path": m.path, "engine": m.engine, "record": run.path}


def _places(run: Shown) -> Iterator[Row]:
    """Points of the whole model, and of single products if they were timed."""
    bandwidth, rate = ceilings_of(run.record)
    if not bandwidth or not rate:
        return
    for m in run.record.measurements:
        if m.value is None or m.path == "simulated":
            continue
        work = _product_work(m) if m.metric == PRODUCT else _model_work(run.record, m)
        if work is None:
            continue
        flop, size = work
        ceiling = min(rate, bandwidth * flop / size)
        yield {
            "kind": "point",
            "run": run.name,
            "what": NAMES.get(m.metric, m.name),
            "x": significant(flop / size),
            "y": significant(flop / m.value / 1e9),
            "share": significant(100 * flop / m.value / ceiling, 3),
            "path": m.path,
            "engine": m.engine,
            "record": run.path,
        }


def _model_work(found: Record, m: Measurement) -> tuple[float, float] | None:
    """Operations and bytes of one call, from the floors that stand beside both times."""
    prompt = found.find("ttft", "ttft_s", m.engine)
    token = found.find("tpot", "tpot_s", m.engine)
    if m.metric not in NAMES or prompt is None or token is None:
        return None
    computing, reading = Floor.of(prompt).floor_s, Floor.of(token).floor_s
    tokens = Conditions.of(prompt).prompt_tokens
    if computing is None or reading is None or not tokens:
        return None
    bandwidth, rate = ceilings_of(found)
    flop, size = computing * rate, reading * bandwidth
    return (flop, size) if m.metric == "ttft_s" else (flop / tokens, size)


def _product_work(m: Measurement) -> tuple[float, float] | None:
    made = Product.of(m)
    if not made.shape or not made.rows or not made.read_bytes:
        return None
    return 2.0 * made.rows * made.shape[0] * made.shape[1], float(made.read_bytes)


def ceilings_of(found: Record) -> tuple[float, float]:
    """Read bandwidth and rate of float32 products; 0 where a record does not hold them."""

    def best(metric: str) -> float:
        values = [
            m.value or 0.0
            for m in found.measurements
            if m.metric == metric and Numbers.of(m).dtype in (None, "float32")
        ]
        return max(values, default=0.0)

    return best(READ), best(MATMUL)


def _ceilings(of: str, runs: Sequence[Shown]) -> Iterator[Row]:
    """The two lines, at the median of the records' ceilings: three points."""
    own = [ceilings_of(run.record) for run in runs if f"{run.model}|{run.machine}" == of]
    own = [pair for pair in own if all(pair)]
    bandwidth, rate = median(b for b, _ in own), median(r for _, r in own)
    ridge = rate / bandwidth
    for x in (0.25, ridge, max(4000.0, 4 * ridge)):
        yield {
            "of": of,
            "kind": "ceiling",
            "x": significant(x),
            "y": significant(min(rate, bandwidth * x) / 1e9),
        }
