"""The public name of what lives in a private module: numpy.lib._x.average is numpy.average."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rung.text.docstrings import Definition, ModuleDocs


def is_private(module: str) -> bool:
    """True where a part of the dotted name starts with an underscore."""
    return any(part.startswith("_") for part in module.split("."))


def public_definitions(modules: Sequence[ModuleDocs]) -> list[Definition]:
    """Definitions of all modules under public names, each name once; the private rest is left out.

    The name is the shortest that the package itself gives: torch.nn.modules.linear.Linear is
    called torch.nn.Linear, its other names become aliases. Only the source is read, so a name
    assigned at run time is not seen.
    """
    names = _Names(modules)
    found: dict[str, Definition] = {}
    for docs in sorted(modules, key=lambda m: (is_private(m.module), m.module)):
        for definition in docs.definitions:
            name = definition.entries[0].name
            known = names.public(*_split(name))
            if known:
                found.setdefault(known[0], _rename(definition, known[0], aliases=known[1:]))
    return list(found.values())


def _split(name: str) -> tuple[str, str]:
    owner, _, short = name.rpartition(".")
    return owner, short


def _rename(definition: Definition, public: str, *, aliases: Sequence[str]) -> Definition:
    old = definition.entries[0].name
    entries = tuple(
        replace(
            entry,
            name=public + entry.name.removeprefix(old),
            module=_split(public)[0]
            if entry.kind != "method" or old != entry.name
            else entry.module,
            signature=public + entry.signature.removeprefix(old) if entry.signature else "",
            aliases=tuple(alias + entry.name.removeprefix(old) for alias in aliases),
        )
        for entry in definition.entries
    )
    return Definition(definition.home, entries)


class _Names:
    """Follows `from A import x as y` lines from where a name is defined to where it is public."""

    def __init__(self, modules: Iterable[ModuleDocs]) -> None:
        self.exports = {docs.module: docs.exports for docs in modules}
        self.edges: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for docs in modules:
            for source, name, here in docs.imports:
                self.edges.setdefault((source, name), []).append((docs.module, here))

    def public(self, module: str, name: str) -> list[str]:
        """Public dotted names of `module.name`, the one to use first; [] when it has none."""
        seen = {(module, name)}
        queue = [(module, name)]
        while queue:
            at, called = queue.pop()
            following = list(self.edges.get((at, called), ()))
            exports = self.exports.get(at)
            if not called.startswith("_") and (exports is None or called in exports):
                following += [(there, called) for there, _ in self.edges.get((at, "*"), ())]
            queue += [step for step in following if step not in seen]
            seen.update(following)
        public = [step for step in seen if not is_private(".".join(step))]

        def rank(step: tuple[str, str]) -> tuple[bool, int, str]:
            is_home = (module + ".").startswith(step[0] + ".")
            return not is_home, step[0].count("."), ".".join(step)

        return [".".join(step) for step in sorted(public, key=rank)]
