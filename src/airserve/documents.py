"""YAML that users write (YAML 1.2.2): a key stands once in its mapping (3.2.1.3), and what is wrong has a line."""

from __future__ import annotations

from typing import Any

import yaml

from airserve.errors import UserError

Node = yaml.Node


class DocumentError(UserError, ValueError):
    """A text that is no YAML, or has a key twice; the message says what and in which line."""


class _Repeated(yaml.MarkedYAMLError):
    """A key that stands twice in a mapping."""


class _Loader(yaml.SafeLoader):
    """PyYAML's, which keeps the last of two equal keys without a word and knows no line for 2024-02-30."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set[tuple[str, str]]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise _Repeated(problem=f"{key.value[:60]} stands twice; write it once", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


def parse(text: str, where: str) -> tuple[Any, Node | None]:
    """The data in a text, and its nodes, which know their lines. Raises `DocumentError`; `where` names the text in it.

    >>> parse("sites: [mast]", "hall.yaml")[0]
    {'sites': ['mast']}
    >>> parse("sites: [mast]\\nsites: [region]", "hall.yaml")
    Traceback (most recent call last):
    airserve.documents.DocumentError: hall.yaml, line 2: sites stands twice; write it once.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except (yaml.YAMLError, RecursionError) as error:  # the latter: brackets in brackets without end
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        kind = "" if isinstance(error, _Repeated) else "not YAML: "
        raise DocumentError(f"{where}{line}: {kind}{problem}.") from None


def line(node: Node | None, where: tuple[int | str, ...]) -> int:
    """The line of the deepest part of a path that exists, from 1.

    >>> line(parse("sites:\\n- name: mast", "hall.yaml")[1], ("sites", 0, "name", "more"))
    2
    """
    found = 1
    for part in where:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == part]
            if not pairs:
                break
            key, node = pairs[-1]  # those merged by `<<` come first, and its own hold
            found = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            found = node.start_mark.line + 1
        else:
            break
    return found
