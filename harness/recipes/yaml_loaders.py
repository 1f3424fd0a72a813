"""How YAML is read here: a key that is given twice is an error, where YAML keeps the last, a date
is text, and a value that is not of its type is an error of YAML.
"""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

MERGE = "tag:yaml.org,2002:merge"
# Of what anyone writes by hand. Aliases of aliases stand for billions of values in ten lines (a
# "YAML bomb"): they cost nothing to read, and everything to check or to show.
MOST_VALUES, MOST_DEPTH = 100_000, 100


class RepeatedKeyError(yaml.YAMLError):
    """A mapping has a key twice, and one of the two values would be lost."""


class TooLargeError(yaml.YAMLError):
    """A file stands for more values than anyone writes by hand, or nests them deeper."""


class UniqueLoader(yaml.SafeLoader):
    """Plain YAML in which every key of a mapping is there once, and a date is text."""

    _depth = 0

    def get_single_node(self) -> yaml.Node | None:
        """TooLargeError for a file whose aliases stand for too much, or for themselves."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_VALUES:
            msg = f"its aliases stand for more than {MOST_VALUES:,} values, or for themselves"
            raise TooLargeError(msg)
        return node

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:  # as the stubs have it
        """TooLargeError where values are nested deeper than Python can follow."""
        self._depth += 1
        try:
            if self._depth > MOST_DEPTH:
                msg = f"its values are nested deeper than {MOST_DEPTH} levels"
                raise TooLargeError(msg)
            found: yaml.Node | None = super().compose_node(parent, index)
            return found
        finally:
            self._depth -= 1

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # the stubs have it wrong
        """RepeatedKeyError names the lines of both; `<<` may be repeated and overridden."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                msg = f"`{key.value}` is given twice, in lines {lines[name]} and {line}: keep one"
                raise RepeatedKeyError(msg)
            lines[name] = line
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """ConstructorError where Python cannot make a value of its type, as of `!!int x`, or text
        that no file can hold: half a pair of surrogates.
        """
        try:
            found = super().construct_object(node, deep)
            if isinstance(found, str):
                found.encode()
            return found
        except (ValueError, KeyError, AttributeError, OverflowError) as error:
            msg = f"{str(node.value)!r:.80} is not of the type {node.tag}"
            raise ConstructorError(None, None, msg, node.start_mark) from error


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Values that a node stands for, aliases written out; one that holds itself is too large."""
    if id(node) not in sizes:
        sizes[id(node)] = MOST_VALUES + 1  # of one that is met again inside itself
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inside = node.value
        elif isinstance(node, yaml.MappingNode):
            inside = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in inside)
    return sizes[id(node)]


UniqueLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class RecipeLoader(UniqueLoader):
    """Plain YAML, but `2:4` is text: YAML 1.1 reads it as the number 124 in base 60."""


RecipeLoader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(r"^[-+]?(0|[1-9][0-9]*)$") if tag.endswith(":int") else pattern)
        for tag, pattern in resolvers
    ]
    for first, resolvers in UniqueLoader.yaml_implicit_resolvers.items()
}
