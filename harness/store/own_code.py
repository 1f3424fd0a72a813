"""Fingerprints of code: what a stage was made by, so that it is not reused after a change.

What counts is derived and not listed: the modules of the code that fills the stage, and all that
they import, inside Trinity, and inside a plugin's own distribution where a method is one.  Other
packages count by their versions: of those that a plugin imports, and where a stage names them.
Comments, docstrings and layout do not count.  A module that is imported by a name made at run time
would be missed; nothing here does.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    packages_distributions,
    version,
)
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from trinity.harness.store.stages import file_sha256
from trinity.methods.plugins import OURS, Owner

if TYPE_CHECKING:
    from trinity.methods.declarations import Registered

PACKAGES = ("trinity.harness", "trinity.lowering", "trinity.methods")
# Files that a module reads, from the folder that it is in: kernels that are compiled already.  The
# suites' YAML is not here: what a suite says is in the keys of its stages.
DATA: Mapping[str, str] = {"trinity.lowering.kernels": "*/*"}
# Every file beside a plugin's code, or a kernel's, may be data that it reads, but for these.
NOT_DATA = frozenset({".py", ".pyc"})


class CodeHash(str):
    """A hash of code, with what it was taken of: whether it is today's can be asked again.

    modules: of Trinity, from which the rest follows; None where a plugin's count too
    """

    modules: tuple[str, ...] | None = None


def sha256(
    *code: object,
    methods: "Iterable[Registered]" = (),
    parts: Iterable[tuple[object, Sequence[Owner]]] = (),
) -> CodeHash:
    """Hash of all code that these run.

    code: modules, classes, functions or objects of classes of Trinity
    methods: of Trinity or of plugins, with what they import
    parts: the same of anything else that is registered: an object, and who registers it
    """
    own, plugins = {module_of(thing) for thing in code}, []
    assert all(map(_is_ours, own)), own
    for part, owners in [*_with_owners(methods), *parts]:
        modules, distributions = _origin(part, owners)
        foreign = frozenset(name for name in modules if not _is_ours(name))
        own |= modules - foreign
        if foreign:
            tree = _plugin_tree(foreign, distributions)
            outside = tree.outside(foreign)
            own |= {name for name in outside if _is_ours(name)}
            plugins += [tree.sha256(foreign), *_versions(outside)]
    digest = hashlib.sha256(own_tree().sha256(frozenset(own)).encode())
    for found in sorted(plugins):
        digest.update(found.encode())
    result = CodeHash(digest.hexdigest())
    result.modules = None if plugins else tuple(sorted(own))
    return result


def is_todays(found: str, modules: Sequence[str]) -> bool:
    """Whether code that a stage was made by, none of a plugin's, is still what would make it."""
    return hashlib.sha256(own_tree().sha256(frozenset(modules)).encode()).hexdigest() == found


def module_of(thing: object) -> str:
    """The module where a function, a class or an object's class is defined."""
    if isinstance(thing, partial):
        return module_of(thing.func)
    if isinstance(thing, ModuleType):
        return thing.__name__
    owner = thing if hasattr(thing, "__qualname__") else type(thing)
    return str(owner.__module__)


@dataclass(frozen=True)
class _Source:
    """One module: what it imports, as names that may be modules or objects of some, and a hash."""

    imports: tuple[str, ...]
    sha256: str


class SourceTree:
    """The modules of some packages: what each imports, and a hash of all that some of them need."""

    def __init__(self, packages: Mapping[str, list[Path]], data: Mapping[str, str]) -> None:
        """packages: name -> folders, or file of a module that is no package

        data: module -> glob of the files that it reads, from its folder on
        """
        self.packages, self.data = packages, data
        # What was read of the tree once is what this process runs.
        self._sources: dict[str, _Source] = {}
        self._places: dict[str, Path | None] = {}
        self._hashes: dict[frozenset[str], str] = {}

    def closure(self, modules: frozenset[str]) -> frozenset[str]:
        """These modules, what they import of this tree, what that imports, and so on."""
        reached: set[str] = set()
        waiting = [module for name in modules if (module := self._module(name))]
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += self._inside(name)
        return frozenset(reached)

    def outside(self, modules: frozenset[str]) -> frozenset[str]:
        """Names that the closure imports from other trees."""
        named = {found for name in self.closure(modules) for found in self._read(name).imports}
        return frozenset(name for name in named if not self._module(name))

    def sha256(self, modules: frozenset[str]) -> str:
        """Hash of a closure's code and data."""
        if modules not in self._hashes:
            self._hashes[modules] = self._sha256(self.closure(modules))
        return self._hashes[modules]

    def _sha256(self, reached: frozenset[str]) -> str:
        digest = hashlib.sha256()
        for name in sorted(reached):
            digest.update(f"{name} {self._read(name).sha256}\n".encode())
        # A package without code of its own (a namespace) is in no closure, and may have data.
        for name in sorted({name.partition(".")[0] for name in reached} | reached):
            for path in self._data(name):
                digest.update(f"{path.name} {file_sha256(path)}\n".encode())
        return digest.hexdigest()

    def _data(self, name: str) -> list[Path]:
        if name not in self.data:
            return []
        path = self._path(name)
        folders = self.packages.get(name, []) if path is None else [path.parent]
        found = sorted(file for folder in folders for file in folder.glob(self.data[name]))
        return [file for file in found if file.is_file() and file.suffix not in NOT_DATA]

    def _inside(self, name: str) -> Iterator[str]:
        """Modules of this tree that run when a module is imported and used."""
        for imported in (name, *self._read(name).imports):
            module = self._module(imported)
            while module:
                yield module
                # A package's own code runs before its modules'.
                module = self._module(module.rpartition(".")[0])

    def _module(self, name: str) -> str | None:
        """The module that a dotted name is, or is an object of."""
        while name and not self._path(name):
            name = name.rpartition(".")[0]
        return name or None

    def _path(self, name: str) -> Path | None:
        if name not in self._places:
            self._places[name] = self._looked_up(name)
        return self._places[name]

    def _looked_up(self, name: str) -> Path | None:
        for package, places in self.packages.items():
            if name != package and not name.startswith(f"{package}."):
                continue
            for place in places:
                inside = place.joinpath(*name.removeprefix(package).split(".")[1:])
                beside = inside.with_name(f"{inside.name}.py")
                for path in (place, inside / "__init__.py", beside):
                    if path.is_file():
                        return path
        return None

    def _read(self, name: str) -> _Source:
        if name not in self._sources:
            path = self._path(name)
            assert path is not None  # only modules of this tree are asked for
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            self._sources[name] = _source(path.read_bytes(), package)
        return self._sources[name]


@cache
def _source(text: bytes, package: str) -> _Source:
    """package: that relative imports start from"""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        # Of another Python or a plugin's slip: whoever imports it is told by Python.
        return _Source((), hashlib.sha256(text).hexdigest())
    return _Source(tuple(dict.fromkeys(_imports(tree, package))), _ast_sha256(tree))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of what a module's statements import, those inside functions too."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and (name := _imported_by_call(node, package)):
            yield name
        elif isinstance(node, ast.If) and _name_of(node.test) == "TYPE_CHECKING":
            waiting += node.orelse  # what is imported for types alone does not run
            continue
        waiting += ast.iter_child_nodes(node)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    base = parents[: len(parents) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _name_of(node: ast.expr) -> str | None:
    """'y' of `y` and of `x.y`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _imported_by_call(node: ast.Call, package: str) -> str | None:
    """'x' of `import_module("x")`, however that is spelt.

    package: that a relative name starts from where the call spells no other
    """
    called = _name_of(node.func)
    if called not in ("import_module", "__import__"):
        return None
    name = _argument(node, 0, "name")
    if name is None or called == "__import__":
        return name
    try:
        return resolve_name(name, _argument(node, 1, "package") or package)
    except ImportError:  # beyond the top: whoever runs it is told by Python
        return None


def _argument(node: ast.Call, place: int, keyword: str) -> str | None:
    """The text that is given for an argument, if it is spelt out."""
    given = [*node.args[place : place + 1], *(k.value for k in node.keywords if k.arg == keyword)]
    value = given[0].value if given and isinstance(given[0], ast.Constant) else None
    return value if isinstance(value, str) else None


def _ast_sha256(tree: ast.AST) -> str:
    """Hash of what a program does: its syntax tree without docstrings and places."""
    words: list[str] = []
    _spell(tree, words)
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()


def _spell(node: ast.AST, words: list[str]) -> None:
    words.append(type(node).__name__)
    for field in node._fields:
        value = getattr(node, field, None)
        if isinstance(value, ast.AST):
            _spell(value, words)
        elif isinstance(value, list):
            words.append("[")
            for item in value:
                if not isinstance(item, ast.AST):
                    words.append(repr(item))
                elif not _is_docstring(item):
                    _spell(item, words)
            words.append("]")
        else:
            words.append(repr(value))


def _is_docstring(node: ast.AST) -> bool:
    """A text that stands alone does nothing, wherever it is."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return False
    return isinstance(node.value.value, str)


def _is_ours(module: str) -> bool:
    return module in PACKAGES or module.startswith(tuple(f"{name}." for name in PACKAGES))


@cache
def own_tree() -> SourceTree:
    """Trinity's own modules."""
    return SourceTree({name: _places(name) for name in PACKAGES}, DATA)


def _places(package: str) -> list[Path]:
    """The folders of a package, or the file of a module that is none."""
    spec = find_spec(package)
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin else []
    return [Path(place) for place in spec.submodule_search_locations]


def _with_owners(methods: "Iterable[Registered]") -> Iterator[tuple[object, Sequence[Owner]]]:
    for method in methods:
        # Imported here: it loads torch, which hashing Trinity's own code does not need.
        from trinity.methods import registry

        yield type(method), registry.owners(method.name)


def _origin(part: object, owners: Sequence[Owner]) -> tuple[set[str], frozenset[str]]:
    """Modules where a registered part is defined (its class and, where registered, its object), and
    the distributions that register it.
    """
    modules = {module_of(part), *(o.target.partition(":")[0] for o in owners)}
    return modules, frozenset(o.distribution for o in owners if o.distribution != OURS)


@cache
def _plugin_tree(modules: frozenset[str], distributions: frozenset[str]) -> SourceTree:
    """The packages that these modules are of, and all others of the distributions.

    Any file of a package may be data of its methods, but for `NOT_DATA`; of a module alone, any
    that is called after it.
    """
    packages = {name.partition(".")[0] for name in modules}
    for name in distributions:
        packages |= _packages(name)
    places = {name: _places(name) for name in packages}
    # A module that is no package lies among those of others.
    alone = {name for name, found in places.items() if any(place.is_file() for place in found)}
    return SourceTree(places, {name: f"{name}*" if name in alone else "**/*" for name in packages})


def _versions(modules: frozenset[str]) -> list[str]:
    """'scipy 1.17.0' of every distribution that one of these modules is of."""
    packages = {name.partition(".")[0] for name in modules}
    owners = packages_distributions()
    distributions = {owner for name in packages for owner in owners.get(name, ())}
    return [f"{owner} {version(owner)}" for owner in sorted(distributions)]


def _packages(name: str) -> set[str]:
    """Top-level packages and modules of a distribution, as far as its metadata say."""
    try:
        installed: Distribution = distribution(name)
    except PackageNotFoundError:
        return set()
    declared = (installed.read_text("top_level.txt") or "").split()
    files = [file for file in installed.files or () if file.suffix == ".py"]
    listed = {file.parts[0].removesuffix(".py") for file in files}
    return {package for package in (*declared, *listed) if package.isidentifier()}
