"""Python dict literals found in text, read without running anything."""

import ast
import math
from collections.abc import Iterator
from typing import Any

DEEPEST = 50
"""Levels of nesting that are read."""

NAMES = {
    "None": None, "null": None, "True": True, "true": True, "False": False, "false": False,
    "nan": math.nan, "NaN": math.nan, "NAN": math.nan, "inf": math.inf, "Infinity": math.inf, "Inf": math.inf,
}  # fmt: skip
"""Names of values in Python and JSON, also after a dot (`np.nan`, `math.inf`) -> the value."""

NUMBERS = {
    "float", "int", "tensor", "array", "float16", "float32", "float64", "bfloat16", "int32", "int64", "bool_", "str_",
}  # fmt: skip
"""What a number is wrapped in where an array's or a tensor's repr was written down; after a dot too (`np.float64`)."""


class Literal(dict):
    """A dict literal; `doubled` names keys that were given twice with different values (the first is kept)."""

    doubled: tuple[str, ...] = ()


def read_literal(text: str) -> Any:
    """The value of a literal: dicts, lists, tuples, strings, numbers, NAMES, and numbers wrapped in NUMBERS.

    Raises ValueError for anything else, which is never evaluated.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a literal ({error})") from None
    return _value(tree.body, 0)


def _value(node: ast.expr, depth: int) -> Any:
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, str | int | float):
            return value
        case ast.Dict(keys=keys, values=values) if all(keys):
            return _dict([(_value(key, depth + 1), _value(v, depth + 1)) for key, v in zip(keys, values, strict=True)])  # type: ignore[arg-type]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element, depth + 1) for element in elements]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _value(operand, depth + 1)
            if isinstance(value, int | float):
                return -value if isinstance(sign, ast.USub) else value
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(), attr=name) if name in NAMES:
            return NAMES[name]
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[content]) if name in NUMBERS:
            value = _value(content, depth + 1)
            if isinstance(value, str) and name == "float":
                return float(value)
            return value
    raise ValueError(f"`{ast.unparse(node)[:40]}` is not a literal")


def _dict(items: list[tuple[Any, Any]]) -> Literal:
    found, doubled = Literal(), []
    for key, value in items:
        if isinstance(key, list | dict):
            raise ValueError("a dict's key must be a word or a number")
        if key in found and not same(found[key], value):
            doubled.append(str(key))
        found.setdefault(key, value)
    found.doubled = tuple(doubled)
    return found


def same(a: Any, b: Any) -> bool:
    """Equality in which nan equals nan."""
    return a == b or (a != a and b != b)


def braces(text: str, start: int) -> int:
    """The end of the literal whose `{` is at `start`; brackets in strings do not count. Raises ValueError if open."""
    depth, quote, place = 0, "", start
    while place < len(text):
        c = text[place]
        if quote:
            if c == "\\":
                place += 1
            elif text.startswith(quote, place):
                place += len(quote) - 1
                quote = ""
        elif c in "'\"":
            quote = c * 3 if text.startswith(c * 3, place) else c
            place += len(quote) - 1
        elif c in "{[(":
            depth += 1
        elif c in "}])":
            depth -= 1
            if depth == 0:
                return place + 1
        place += 1
    raise ValueError("the brackets do not close")


def leaves(tree: dict[Any, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is not a dict, with the keys that lead to it."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value
