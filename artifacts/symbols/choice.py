"""Which of several debug files of one debug id serves a purpose best, by what they have."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from artifacts.symbols.debug_files import StoredObject
from artifacts.symbols.symcaches import has_symbols


@dataclass(frozen=True)
class WalkChoice:
    """What the symbols of a module are made of for the stack walker.

    Attributes:
        named: has the functions and lines.
        unwound: has what tells the frames; often it is the same.
    """

    named: StoredObject
    unwound: StoredObject

    @property
    def is_one(self) -> bool:
        return self.named == self.unwound


def for_lines(stored: Sequence[StoredObject]) -> list[StoredObject]:
    """Return those that can tell functions and lines, the best first.

    Debug information tells lines, and a symbol table only functions. What Breakpad makes of debug
    information has less than that: what is inlined, above all. Among equals the first counts.
    """
    usable = [one for one in stored if has_symbols(one.features)]
    return sorted(usable, key=lambda one: ("debug" not in one.features, one.format == "breakpad"))


def for_walking(stored: Sequence[StoredObject], formats: Collection[str]) -> WalkChoice | None:
    """Return what a stack is walked with; None if there is nothing.

    One file that has everything is better than two, and Breakpad's own than what has to be
    converted. Among equals the first counts.

    Args:
        formats: which can be made use of.
    """
    usable = [one for one in stored if one.format in formats]
    if not usable:
        return None
    # Python's sort keeps the order of equals.
    usable.sort(key=lambda one: one.format != "breakpad")
    named = min(usable, key=lambda one: ("debug" not in one.features, "symtab" not in one.features))
    unwound = min(usable, key=lambda one: "unwind" not in one.features)
    both = [one for one in usable if one.features >= named.features & {"debug", "symtab"}]
    whole = [one for one in both if "unwind" in one.features]
    if whole:
        return WalkChoice(whole[0], whole[0])
    if "unwind" not in unwound.features:
        return WalkChoice(named, named)
    return WalkChoice(named, unwound)
