"""A user's reward function by name: package.module:function, or an entry point.

The settings are checked without running any code of the user; the function is imported where it runs.
"""

import difflib
import os
import re
import symtable
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import decode_source, find_spec
from pathlib import Path
from typing import Any

ENTRY_POINT_GROUP = "rayward.reward_functions"
DOTTED_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def user_function_problem(path: str) -> str | None:
    """Why `path` cannot be imported, as far as that shows without importing it; None where nothing is wrong."""
    if DOTTED_PATH.fullmatch(path) is None:
        known = sorted(entry_points(group=ENTRY_POINT_GROUP).names)
        if path in known:
            return None
        return (
            f"is neither package.module:function nor an entry point of the group {ENTRY_POINT_GROUP}"
            f" (those installed: {', '.join(known) or 'none'})"
        )
    module, _, attributes = path.partition(":")
    spec = _find_without_running(module)
    if spec is None:
        return f"there is no module {module!r} in the working folder or on Python's import path"
    try:
        names = _names_in(spec)
    except (SyntaxError, ValueError) as error:
        return f"module {module!r} is not valid Python: {error}"
    function = attributes.partition(".")[0]
    if names is None or function in names:
        return None
    near = difflib.get_close_matches(function, names, n=1)
    return f"module {module!r} has no {function!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def load_user_function(path: str) -> Callable[..., Any]:
    """Import it. Raises what the import of the user's module raises."""
    function = _entry_point(path).load()
    if not callable(function):
        raise TypeError(f"{path} is a {type(function).__name__}, not a function")
    return function


def _entry_point(path: str) -> EntryPoint:
    if DOTTED_PATH.fullmatch(path) is not None:
        return EntryPoint(name=path, value=path, group=ENTRY_POINT_GROUP)
    return entry_points(group=ENTRY_POINT_GROUP)[path]


def _find_without_running(module: str) -> ModuleSpec | None:
    """`importlib.util.find_spec` alone would run the packages that the module lies in."""
    first, *others = module.split(".")
    if first == "__main__":  # another module in each process
        return None
    spec = PathFinder.find_spec(first, [os.getcwd(), *sys.path]) or find_spec(first)
    for name in others:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # By its own name: for a dotted one, a folder without __init__.py would look for its parent among imported modules.
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec


def _names_in(spec: ModuleSpec) -> set[str] | None:
    """The names that a module's source defines or imports; None where its source does not tell."""
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    source = decode_source(Path(spec.origin).read_bytes())
    symbols = symtable.symtable(source, spec.origin, "exec").get_symbols()
    names = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
    return None if "__getattr__" in names or "import *" in source else names
