"""ES modules as one script: each module in its own function, in the order in which they need each other."""

from __future__ import annotations

import re
from importlib.resources import files

IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w-]+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) (\w+))", re.MULTILINE)


def source(name: str) -> str:
    """The text of a file of `web/static`."""
    return files("airserve.web").joinpath("static", name).read_text(encoding="utf-8")


def bundle(entry: str) -> str:
    """The module `entry` and all that it imports, as one classic script.

    Only what our modules use is understood: `import {a, b} from "./x.js";` on a line of its own, and `export` before a
    function, const or class. Raises `ValueError` for any other import or export, and for a circle of imports.

    >>> bundle("words").startswith('"use strict";')
    True
    """
    parts: dict[str, str] = {}
    _add(entry, parts, ())
    return '"use strict";\n' + "\n".join(parts.values())


def _add(name: str, parts: dict[str, str], within: tuple[str, ...]) -> None:
    if name in within:
        raise ValueError(f"the modules {' -> '.join((*within, name))}.js import each other in a circle; break it.")
    if name in parts:
        return
    text = source(f"{name}.js")
    for found in IMPORT.finditer(text):
        _add(found[2], parts, (*within, name))
    body = IMPORT.sub(lambda found: f"const {{{found[1]}}} = {_variable(found[2])};\n", text)
    exports = [found[1] for found in EXPORT.finditer(body)]
    body = EXPORT.sub("", body)
    if odd := re.search(r"^(?:import|export)\b.*", body, re.MULTILINE):
        raise ValueError(f"{name}.js has {odd[0]!r}, which the report cannot inline; see airserve/web/bundle.py.")
    parts[name] = f"const {_variable(name)} = (() => {{\n{body}\nreturn {{{', '.join(exports)}}};\n}})();"


def _variable(name: str) -> str:
    return f"module_{name.replace('-', '_')}"
