"""How each figure is drawn in a browser: Vega-Lite specifications, without their data.

Words that depend on a choice are written `@y`, `@x`, `@scale`; the page puts them in.  Colours are
CSS variables of the page, so that dark, light and print need no second drawing; they are those of
Okabe and Ito, which colour-blind people tell apart, and shapes say the same.
"""

from typing import Any

Spec = dict[str, Any]

PATTERNS = ["no mask", "2:4", "4:8", "50%", "60%"]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross"]
PATHS = ["kernel", "compiled", "reference"]
COLOURS = [f"var(--c{index})" for index in range(7)]
MUTED, INK = "var(--muted)", "var(--ink)"
POINT = {"type": "point", "filled": True, "size": 75, "opacity": 0.9}
FEW = {"tickCount": 6}  # a grid that is read through, not looked at
RULE = {"type": "rule", "strokeWidth": 1.2, "opacity": 0.45}


def specs() -> dict[str, Spec]:
    """The specification of every figure, by its name."""
    return {
        "bits": _tradeoff("Bits per weight", log=True),
        "speed": _tradeoff("@x", log=False),
        "latency": _latency(),
        "roofline": _roofline(),
        "memory": _memory(),
        "seeds": _seeds(),
        "history": _history(),
        "values": heat({"scheme": "viridis"}),
        "difference": heat({"scheme": "purpleorange"}, middle=True),
    }


def _quantity(field: str, title: str, scale: Spec | None = None, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": scale or {}, **more}


def _tip(*fields: tuple[str, str]) -> list[Spec]:
    return [{"field": field, "title": title} for field, title in fields]


def _named(field: str, names: list[str], values: list[str], title: str | None) -> Spec:
    scale = {"domain": names, "range": values[: len(names)]}
    return {"field": field, "type": "nominal", "scale": scale, "title": title}


def _tradeoff(x_title: str, *, log: bool) -> Spec:
    """Points with their intervals, the front joined and named."""
    scale: Spec = {"type": "log"} if log else {"type": "linear", "zero": False}
    scale |= {"nice": False, "padding": 24}
    x = _quantity("x", x_title, scale, axis=FEW)
    y_scale = {"type": "@scale", "zero": False, "nice": False, "padding": 24}
    y = _quantity("y", "@y", y_scale, axis=FEW)
    ends = {"y": _quantity("low", "@y", y_scale), "y2": {"field": "high"}}
    colour = _named("pattern", PATTERNS, COLOURS, "mask")
    tip = _tip(
        ("run", "run"),
        ("steps", "steps"),
        ("said", "accuracy"),
        ("path", "path"),
        ("verdict", "against dense"),
        ("x_said" if not log else "x", "speed" if not log else "bits per weight"),
    )
    layers: list[Spec] = [
        {"mark": RULE, "encoding": {"x": x, **ends, "color": colour}},
        {
            "transform": [{"filter": "datum.front"}],
            "mark": {"type": "line", "stroke": MUTED, "strokeDash": [4, 3], "strokeWidth": 1.4},
            "encoding": {"x": x, "y": y, "order": {"field": "x"}},
        },
        {
            "mark": POINT,
            "encoding": {
                "x": x,
                "y": y,
                "color": colour,
                "shape": _named("pattern", PATTERNS, SHAPES, "mask"),
                "tooltip": tip,
            },
        },
        {
            "transform": [{"filter": "datum.front"}],
            "mark": {"type": "text", "dy": -12, "fill": INK, "fontSize": 11, "fontWeight": 600},
            "encoding": {"x": x, "y": y, "text": {"field": "place"}},
        },
    ]
    if not log:
        across = {"x": _quantity("x_low", x_title, scale), "x2": {"field": "x_high"}, "y": y}
        layers.insert(1, {"mark": RULE, "encoding": {**across, "color": colour}})
    return {"height": 380, "layer": layers}


def _runs(**more: Any) -> Spec:
    return {"field": "run", "type": "nominal", "title": None, "axis": {"grid": False}, **more}


def _latency() -> Spec:
    runs = _runs(sort={"field": "median", "op": "min"})
    colour = _named("path", PATHS, [COLOURS[1], COLOURS[2], COLOURS[0]], "path")
    tip = _tip(
        ("run", "run"), ("ms", "this repetition, ms"), ("median", "median, ms"), ("path", "path")
    )
    once = [{"filter": "isValid(datum.high)"}]
    x = _quantity("ms", "@x", {"zero": True}, axis={**FEW, "tickCount": 8})
    return {
        "height": {"step": 17},
        "layer": [
            {
                "mark": {"type": "tick", "thickness": 1.5, "opacity": 0.6, "height": 11},
                "encoding": {"y": runs, "x": x, "color": colour, "tooltip": tip},
            },
            {
                "transform": once,
                "mark": {"type": "rule", "strokeWidth": 3},
                "encoding": {
                    "y": runs,
                    "x": _quantity("low", "@x"),
                    "x2": {"field": "high"},
                    "color": colour,
                },
            },
            {
                "transform": once,
                "mark": {"type": "point", "filled": True, "size": 45},
                "encoding": {
                    "y": runs,
                    "x": _quantity("median", "@x"),
                    "color": colour,
                    "tooltip": tip,
                },
            },
        ],
    }


def _roofline() -> Spec:
    scale = {"type": "log", "nice": False, "padding": 12}
    x = _quantity("x", "Operations per byte of weights", scale, axis=FEW)
    y = _quantity("y", "GFLOP/s", scale, axis=FEW)
    tip = _tip(
        ("run", "run"),
        ("what", "what"),
        ("y", "GFLOP/s"),
        ("x", "operations per byte"),
        ("share", "% of the machine's limit there"),
        ("path", "path"),
    )
    return {
        "height": 360,
        "layer": [
            {
                "transform": [{"filter": "datum.kind == 'ceiling'"}],
                "mark": {"type": "line", "stroke": INK, "strokeWidth": 1.6},
                "encoding": {"x": x, "y": y},
            },
            {
                "transform": [{"filter": "datum.kind == 'point'"}],
                "mark": POINT,
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": _named("path", PATHS, [COLOURS[1], COLOURS[2], COLOURS[0]], "path"),
                    "shape": {"field": "what", "type": "nominal", "title": "timed"},
                    "tooltip": tip,
                },
            },
        ],
    }


def _memory() -> Spec:
    return {
        "height": {"step": 15},
        "mark": {"type": "bar", "height": {"band": 0.8}},
        "encoding": {
            "y": _runs(sort={"field": "MiB", "op": "sum", "order": "descending"}),
            "x": _quantity("MiB", "@x", stack="zero"),
            "color": {
                "field": "component",
                "type": "nominal",
                "title": None,
                "sort": {"field": "order"},
                "scale": {"range": [COLOURS[i] for i in (1, 2, 3, 4)]},
            },
            "order": {"field": "order"},
            "tooltip": _tip(("run", "run"), ("component", "component"), ("MiB", "MiB")),
        },
    }


def _seeds() -> Spec:
    runs = _runs(sort={"field": "mean", "op": "min"})
    tip = _tip(("run", "run"), ("value", "this seed"), ("mean", "mean"))
    return {
        "height": {"step": 22},
        "layer": [
            {
                "mark": RULE,
                "encoding": {
                    "y": runs,
                    "x": _quantity("low", "@x", {"zero": False}),
                    "x2": {"field": "high"},
                    "color": {"value": COLOURS[1]},
                },
            },
            {
                "mark": POINT,
                "encoding": {
                    "y": runs,
                    "x": _quantity("value", "@x", {"zero": False}),
                    "color": {"value": COLOURS[1]},
                    "tooltip": tip,
                },
            },
        ],
    }


def _history() -> Spec:
    x = {
        "field": "when",
        "type": "ordinal",
        "title": None,
        "sort": {"field": "order"},
        "axis": {"labelAngle": -35, "labelLimit": 150},
    }
    scale = {"zero": False, "nice": True}
    y = _quantity("value", "@y", scale)
    tip = _tip(("when", "record"), ("said", "value"), ("path", "path"))
    colour = {"color": {"value": COLOURS[1]}}
    ends = {"y": _quantity("low", "@y", scale), "y2": {"field": "high"}}
    return {
        "height": 260,
        "layer": [
            {"mark": RULE, "encoding": {"x": x, **ends, **colour}},
            {
                "mark": {"type": "line", "strokeWidth": 1.4, "opacity": 0.7},
                "encoding": {"x": x, "y": y, "order": {"field": "order"}, **colour},
            },
            {"mark": POINT, "encoding": {"x": x, "y": y, "tooltip": tip, **colour}},
            {
                "transform": [{"filter": "isValid(datum.level)"}],
                "mark": {"type": "line", "interpolate": "step", "stroke": COLOURS[3]},
                "encoding": {
                    "x": x,
                    "y": _quantity("level", "@y", scale),
                    "order": {"field": "order"},
                },
            },
            {
                "transform": [{"filter": "isValid(datum.step)"}],
                "mark": {"type": "point", "shape": "triangle-down", "filled": True, "size": 140},
                "encoding": {
                    "x": x,
                    "y": _quantity("level", "@y", scale),
                    "color": {"value": COLOURS[3]},
                    "tooltip": [*tip, *_tip(("step", "step"))],
                },
            },
        ],
    }


def heat(colours: Spec, *, middle: bool = False) -> Spec:
    """Linears of a block against blocks.  middle: whether colours part at 0"""
    scale = {**colours, **({"domainMid": 0} if middle else {})}
    legend = {
        "orient": "bottom",
        "direction": "horizontal",
        "gradientThickness": 9,
        "gradientLength": 180,
        "titleLimit": 240,
    }
    return {
        "height": {"step": 20},
        "mark": {"type": "rect"},
        "encoding": {
            "x": {
                "field": "block",
                "type": "ordinal",
                "title": "block",
                "axis": {"labelAngle": 0, "labelOverlap": True, "grid": False},
            },
            "y": {
                "field": "linear",
                "type": "ordinal",
                "title": None,
                "sort": None,
                "axis": {"grid": False},
            },
            "color": {
                "field": "value",
                "type": "quantitative",
                "title": "@y",
                "scale": scale,
                "legend": legend,
            },
            "tooltip": _tip(("linear", "linear"), ("block", "block"), ("value", "value")),
        },
    }
