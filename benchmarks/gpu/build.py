"""Build here what a bare GPU machine needs to try our kernels, for the first time or again.

The compiler is too large to travel, so modules are compiled here.  Weights of single products are
made from a seed there; a small model's travel, with the logits that torch gives for it.

    python -m benchmarks.gpu.build --out first-day

There, in the copied folder, with a Python of the wheels' version that has torch and NumPy:

    pip install --no-deps *.whl && python first_day.pyz
"""

import argparse
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipapp
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu import small_model
from benchmarks.gpu.profiles import PROFILES, Profile
from trinity import lowering, methods
from trinity.harness.records.environment import commit_here
from trinity.harness.records.migrations import SCHEMA_VERSION
from trinity.harness.store.stages import write_json
from trinity.lowering.module.chain import chain_text
from trinity.lowering.module.check import linears_text
from trinity.lowering.module.compile import compile_text
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import storage_of
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import WeightFormat

HERE = Path(__file__).parent
MOST_BYTES = 60 << 20
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")
# Sources, and code that travels in modules; `alone` launches the others of the PTX files itself.
NOT_NEEDED = ("*.cu*", "*.hip", "*.comp", "*.spv", "*.hsaco", "lanes_*.ptx", "decoder.ptx")
Case = dict[str, Any]


def main() -> None:
    """Build, and say how large it is."""
    options = parse()
    bundle = Bundle(options.out, PROFILES[options.profile])
    options.out.mkdir(parents=True)
    for name in options.targets:
        bundle.add(name)
        sys.stderr.write(f"{name}: {len(bundle.cases)} cases\n")
    bundle.finish()
    if options.python:
        wheels(options.out, options.python)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {len(bundle.cases)} cases, {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        raise SystemExit(f"more than {MOST_BYTES / 1e6:.0f} MB: leave out a target, or the wheels.")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--targets", nargs="+", default=["cuda", "vulkan"])
    parser.add_argument("--profile", choices=sorted(PROFILES), default="full")
    parser.add_argument("--python", help="version there; '' for no wheel", default="3.12")
    return parser.parse_args()


@dataclass
class Bundle:
    """A folder, and what the program there will run: `bundle.json`."""

    out: Path
    profile: Profile
    cases: list[Case] = field(default_factory=list)
    records: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Compile all that is run on a target."""
        self.records[f"products-{name}"] = self._record(name)
        self._add(name, "device", f"device {name}")
        self._checks(name)
        self._models(name)
        self._layers(name)
        if name == "cuda":
            self._alone(name)

    def finish(self) -> None:
        """Write the program, and the list of all that it runs."""
        program(self.out / "first_day.pyz")
        commit, dirty = commit_here()
        manifest = {"schema": "gpu-bundle/1", "commit": commit, "dirty": dirty}
        manifest |= {"cases": self.cases, "records": self.records}
        manifest["built"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        manifest["compiler"] = version("iree-base-compiler")
        write_json(self.out / "bundle.json", manifest)

    def _add(self, target: str, kind: str, name: str, **more: Any) -> None:
        record = more.pop("record", f"products-{target}")
        self.cases.append({"target": target, "kind": kind, "name": name, "record": record, **more})

    def _checks(self, target: str) -> None:
        """Every format that a module can hold, at every number of rows and type of model."""
        for weight_format in self._formats(target):
            for dtype in self._types(target, weight_format):
                place = targets.get(target)
                counts = self.profile.check_rows
                text = linears_text(weight_format, place, counts, dtype)
                module = self._module(target, compile_text(text, place))
                shape = "x".join(map(str, weight_format.shape))
                for rows in counts:
                    name = f"check {shape} {weight_format.label}, {rows} rows, {dtype}, {target}"
                    about = _about(weight_format, target, rows, dtype)
                    self._add(target, "check", name, module=module, **about)

    def _formats(self, target: str) -> Iterator[WeightFormat]:
        for weight_format in self.profile.check_formats():
            try:
                storage_of(weight_format, targets.get(target))
            except UnsupportedError:
                continue  # no module of any kind holds it there: docs/kernels.md says why
            yield weight_format

    def _types(self, target: str, weight_format: WeightFormat) -> Iterator[str]:
        """The types of models for which a target has kernels of their own."""
        yield "float32"
        if target == "cuda" and storage_of(weight_format, targets.get(target)).path == "kernel":
            yield "float16"

    def _layers(self, target: str) -> None:
        dtype = "float16" if target == "cuda" else "float32"
        place = targets.get(target)
        for weight_format in self.profile.layers():
            for rows in self.profile.layer_rows:
                text = chain_text(weight_format, place, rows, self.profile.chain, dtype)
                module = self._module(target, compile_text(text, place))
                out, d_in = weight_format.shape
                name = f"layer {out}x{d_in} {weight_format.label}, {rows} rows"
                about = {"format": weight_format.to_json(), "rows": rows, "dtype": dtype}
                self._add(target, "layer", name, module=module, chain=self.profile.chain, **about)

    def _alone(self, target: str) -> None:
        self._add(target, "bandwidth", "copy")
        for weight_format in self.profile.layers():
            if storage_of(weight_format, targets.get(target)).path == "kernel":
                for rows in self.profile.alone_rows:
                    out, d_in = weight_format.shape
                    name = f"kernel {out}x{d_in} {weight_format.label}, {rows} rows"
                    self._add(
                        target, "alone", name, **_about(weight_format, target, rows, "float16")
                    )

    def _models(self, target: str) -> None:
        types = ("float32", "float16") if target == "cuda" else ("float32",)
        for kind in self.profile.models:
            for dtype in types:
                made = small_model.built(self.out, kind, dtype, target, self.profile.size)
                record = f"decode-{target}-{dtype}-{small_model.slug(kind)}"
                self.records[record] = self._record(target) | made.record(record, target)
                name = f"decode {kind}, {dtype}, {target}"
                self._add(target, "decode", name, record=record, dtype=dtype, **made.case)

    def _module(self, target: str, code: bytes) -> str:
        """Write a module.  -> its place in the bundle"""
        path = self.out / "modules" / target / f"{hashlib.sha256(code).hexdigest()[:16]}.vmfb.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(code, mtime=0))  # PTX is text, in many of them
        return path.relative_to(self.out).as_posix()

    def _record(self, target: str) -> dict[str, Any]:
        """What is known already of the record of a target's single products."""
        formats = list(self._formats(target))
        stored = {of.label: storage_of(of, targets.get(target)).bits() for of in formats}
        known = hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()
        weights = "random weights that the program makes from a seed; single products, no model"
        return {
            "schema_version": SCHEMA_VERSION,
            "recipe": {"name": f"products-{target}"},
            "model": {"id": "seed:0", "label": small_model.LABEL, "revision": None}
            | {"sha256": known, "note": weights},
            "calibration": None,
            "checkpoint": {
                "fingerprint": known,
                "bits_per_weight": sum(stored.values()) / len(stored),
                "stored_bytes": {},
                "layers": {name: {"bits_per_weight": bits} for name, bits in stored.items()},
            },
            "lowering": None,
        }


def _about(weight_format: WeightFormat, target: str, rows: int, dtype: str) -> Case:
    """What the program must know of a product, and whose code computes it."""
    path = storage_of(weight_format, targets.get(target)).path
    return {"format": weight_format.to_json(), "rows": rows, "dtype": dtype, "path": path}


def program(path: Path) -> None:
    """One file of all that the program there imports of ours."""
    with tempfile.TemporaryDirectory() as folder:
        root, found = Path(folder), shutil.ignore_patterns("__pycache__", *NOT_NEEDED)
        for package in (lowering, methods):
            (source,) = package.__path__
            shutil.copytree(source, root / "trinity" / Path(source).name, ignore=found)
        shutil.copytree(HERE / "first_day", root / "benchmarks/gpu/first_day", ignore=found)
        shutil.copy(HERE.parent / "cuda_kernels.py", root / "benchmarks")
        # The first of its name: nothing of ours that is installed there is taken.
        for package in ("trinity", "benchmarks", "benchmarks/gpu"):
            (root / package / "__init__.py").touch()
        shutil.copy(HERE / "first_day/__main__.py", root)
        zipapp.create_archive(root, path, compressed=True)


def wheels(out: Path, python: str) -> None:
    """The IREE runtime for a version of Python, and what it needs beside NumPy."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    wanted = [f"{name}=={version(name)}" for name in ("iree-base-runtime", "ml-dtypes")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(out)]
    command += ["--only-binary=:all:", "--python-version", python, *platforms, *wanted]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
