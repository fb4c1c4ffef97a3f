r"""Reads inequalities joined by "and" or "or" as a set, because math-verify takes one word for the other."""

import re

_AND = re.compile(r",?\s*\band\b\s*|\\(?:land|wedge)(?![a-z])")
_OR = re.compile(r",?\s*\bor\b\s*|\\(?:lor|vee|cup)(?![a-z])")
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_RELATION = re.compile(r"([<>]=?|\\(?:[lg](?:t|e|eq|eqslant)(?![a-z])))")
_BUILDER = re.compile(
    r"\\\{ ?([a-z])(?: ?\\in ?\\mathbb\{? ?R ?\}?)? ?(?:\\mid(?![a-z])|\||:) ?"
    r"((?=.*(?:[<>]|\\(?:[lgn]e|[lg]t)))(?=.*\1)[^,;:|]+?) ?\\\}"
)
_IN_REALS = re.compile(
    r"([a-z]) ?\\in ?\\mathbb\{? ?R ?\}? ?(?:[,:]|\\mid|\\text ?\{,? ?(?:and|with|where) ?\}) ?(?=\1 ?[<>\\])"
)
_BOUND = re.compile(r"(?:[-+\d./*^(){} ]|\\(?:frac|sqrt|pi)(?![a-z]))+")


def are_joined_alike(one: str, other: str) -> bool:
    """Whether two texts with inequalities both have an "or", or neither has one."""
    return not (_RELATION.search(one) and _RELATION.search(other)) or bool(_OR.search(one)) == bool(_OR.search(other))


def as_set(text: str) -> str:
    r"""Joined inequalities of one variable in intervals: ``x < 1 or x > 3`` is ``x \in (-\infty, 1) \cup (3, \infty)``.

    Other texts are returned as they are.
    """
    if builder := _BUILDER.fullmatch(text):
        text = builder[2]
    elif within := _IN_REALS.match(text):
        text = text[within.end() :]
    if not _RELATION.search(text):
        return text
    plain = _TEXT.sub(r" \1 ", text)
    alternatives = _OR.split(plain)
    if len(alternatives) == 1 and not _AND.search(plain):
        return text
    read = [_interval(part) for part in alternatives]
    intervals = [found for found in read if found]
    names = {name for name, _ in intervals}
    if len(intervals) < len(read) or len(names) > 1:
        return text
    return rf"{names.pop()} \in " + r" \cup ".join(interval for _, interval in intervals)


def _interval(text: str) -> tuple[str, str] | None:
    """Variable and interval of inequalities joined by "and"; None for several variables or two bounds of one side."""
    names: set[str] = set()
    bounds = {False: r"(-\infty", True: r"\infty)"}  # the lower and the upper one
    found: set[bool] = set()
    for relation in _AND.split(text):
        parts = [part.strip() for part in _RELATION.split(relation)]
        if len(parts) not in (3, 5):
            return None
        for left, sign, right in zip(parts[::2], parts[1::2], parts[2::2], strict=False):
            is_named = len(left) == 1 and left.isalpha()
            name, bound = (left, right) if is_named else (right, left)
            is_upper = (sign[0] == "<" or sign[1:2] == "l") == is_named
            if not (len(name) == 1 and name.isalpha() and _BOUND.fullmatch(bound)) or is_upper in found:
                return None
            is_closed = "=" in sign or "e" in sign
            names.add(name)
            found.add(is_upper)
            bounds[is_upper] = bound + "])"[not is_closed] if is_upper else "[("[not is_closed] + bound
    return (names.pop(), f"{bounds[False]}, {bounds[True]}") if len(names) == 1 else None
