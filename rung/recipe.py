"""A recipe: a YAML page that says which stages to run, on what, and with which config."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rung.aliases import may_be_alias, rename_keys
from rung.config import Config, did_you_mean, parse_config
from rung.errors import ConfigError
from rung.stages import STAGES, Stage
from rung.yamlfile import YamlFile, parse_yaml, read_yaml

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")  # no dot: it separates keys in --set
_TOP = ("name", "seed", "defaults", "measured", "stages")


@dataclass(frozen=True)
class Entry:
    """One stage of a recipe.

    inputs: role -> names of entries or artefacts. values: config keys as written.
    """

    name: str
    stage: Stage
    inputs: Mapping[str, tuple[str, ...]]
    values: Mapping[str, Any]
    source: YamlFile

    def where(self, *keys: str) -> str:
        return self.source.where("stages", self.name, *keys)


@dataclass(frozen=True)
class Recipe:
    """Entries in the order of the file.

    name: prefix of the names its artefacts get ("quickstart/base"); "" for none.
    measured: entry -> {"seconds", "memory_gb", "disk_gb"} of an earlier run by its author; only
        for the plan of a first run, when nothing better is known.
    notes: what was read otherwise than it is written, for the user.
    """

    name: str
    entries: Mapping[str, Entry]
    seed: int = 0
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def artefact_name(self, entry: str) -> str:
        return f"{self.name}/{entry}" if self.name else entry


def load_recipe(
    path: Path, *, overrides: Sequence[str] = (), stages: Mapping[str, Stage] = STAGES
) -> Recipe:
    """The recipe in `path` with `overrides` ("base.lr=1e-3", "seed=3") applied.

    Raises ConfigError with file:line for unknown keys, stages and roles, and for missing roles.
    """
    source = read_yaml(path)
    for override in overrides:
        apply_override(source, override)
    top = source.value
    for key in top:
        if key not in _TOP:
            hint = did_you_mean(key, list(_TOP))
            raise ConfigError(f"{source.where(key)}: unknown key {key!r}{hint}")
    name = str(top.get("name") or path.stem)
    _check_word(name, where=source.where("name"))
    seed = top.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"{source.where('seed')}: seed = {seed!r}: a whole number is expected")
    defaults = _mapping(top.get("defaults"), source=source, keys=("defaults",))
    for command in defaults:
        _stage(command, stages=stages, where=source.where("defaults", command))
        _mapping(defaults[command], source=source, keys=("defaults", command))
    page = _mapping(top.get("stages"), source=source, keys=("stages",))
    if not page:
        raise ConfigError(f"{source.path}: no stages; write `stages:` with at least one entry")
    notes: dict[str, None] = {}  # in order, each once
    entries = {
        entry: _read_entry(
            entry, page[entry], source=source, defaults=defaults, stages=stages, notes=notes
        )
        for entry in page
    }
    measured = _mapping(top.get("measured"), source=source, keys=("measured",))
    return Recipe(name=name, entries=entries, seed=seed, measured=measured, notes=tuple(notes))


def single_stage(
    stage: Stage,
    *,
    name: str,
    config: Path | None,
    overrides: Sequence[str],
    inputs: Mapping[str, tuple[str, ...]],
) -> Recipe:
    """A recipe of one stage, for `rung <stage>`; config keys stand at the top of the file."""
    _check_word(name, where="--name")
    written = read_yaml(config) if config else YamlFile(path="command line", value={})
    lines = {("stages", name, *keys): line for keys, line in written.lines.items()}
    page = {"stages": {name: {"stage": stage.command, **written.value}}}
    source = YamlFile(path=written.path, value=page, lines=lines)
    for role in {"stage", *stage.inputs} & set(written.value):
        raise ConfigError(
            f"{source.where('stages', name, role)}: give {role!r} on the command line"
        )
    for override in overrides:
        apply_override(source, f"{name}.{override}", written=override)
    page["stages"][name].update({role: list(refs) for role, refs in inputs.items() if refs})
    notes: dict[str, None] = {}
    entry = _read_entry(
        name,
        page["stages"][name],
        source=source,
        defaults={},
        stages={stage.command: stage},
        notes=notes,
    )
    seed = entry.values.get("seed", 0)
    return Recipe(
        name="",
        entries={name: entry},
        seed=seed if isinstance(seed, int) else 0,
        notes=tuple(notes),
    )


def apply_override(source: YamlFile, text: str, *, written: str | None = None) -> None:
    """Set one value from the command line: "entry.key=value", "seed=3", "defaults.sft.lr=1e-4".

    written: the same as the user wrote it, for messages.
    """
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {text!r}: write it as entry.key=value, such as base.seed=1")
    parsed = parse_yaml(value, path=f"--set {path}").value
    if keys[0] not in _TOP:
        known = source.value.get("stages") or {}
        if keys[0] not in known:
            hint = did_you_mean(keys[0], [*known, "seed", "name", "defaults"])
            raise ConfigError(f"--set {text!r}: no entry {keys[0]!r} in {source.path}{hint}")
        keys = ["stages", *keys]
    target = source.value
    for key in keys[:-1]:
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            raise ConfigError(f"--set {text!r}: {key!r} holds {target!r}, which has no keys")
    target[keys[-1]] = parsed
    source.overrides[tuple(keys)] = written or text


def parse_entry(entry: Entry, *, seed: int) -> Config:
    """The typed config of an entry; the recipe's seed where the config has one and none is set.

    Loads the stage's module. Raises ConfigError with the line of each wrong key.
    """
    cls: type[Config] = entry.stage.load().Config
    clash = set(cls.model_fields) & {"stage", *entry.stage.inputs}
    assert not clash, f"{entry.stage.command}: {clash} are config keys and roles at once"
    _refuse_unknown(cls, entry.values, entry=entry, keys=())
    values = dict(entry.values)
    if "seed" in cls.model_fields:
        values.setdefault("seed", seed)
    return parse_config(cls, values, where=entry.where)


def _refuse_unknown(
    cls: type[Config], values: Mapping[str, Any], *, entry: Entry, keys: tuple[str, ...]
) -> None:
    for key, value in values.items():
        if key not in cls.model_fields:
            known = [*cls.model_fields, *(() if keys else ("stage", *entry.stage.inputs))]
            hint = did_you_mean(key, known)
            name = ".".join((*keys, key))
            where = entry.where(*keys, key)
            raise ConfigError(
                f"{where}: unknown key {name!r} for stage {entry.stage.command}{hint}"
            )
        inner = cls.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, Config) and isinstance(value, Mapping):
            _refuse_unknown(inner, value, entry=entry, keys=(*keys, key))


def _read_entry(
    name: str,
    page: Any,
    *,
    source: YamlFile,
    defaults: Mapping[str, Mapping[str, Any]],
    stages: Mapping[str, Stage],
    notes: dict[str, None],
) -> Entry:
    where = source.where("stages", name)
    _check_word(name, where=where)
    if name in _TOP:
        raise ConfigError(f"{where}: an entry cannot be called {name!r}; --set uses that word")
    written = _mapping(page, source=source, keys=("stages", name))
    if "stage" not in written:
        raise ConfigError(f"{where}: entry {name!r} has no `stage`; one of: {', '.join(stages)}")
    stage = _stage(written["stage"], stages=stages, where=source.where("stages", name, "stage"))
    below = _our_keys(
        defaults.get(stage.command, {}),
        stage,
        source=source,
        keys=("defaults", stage.command),
        notes=notes,
    )
    rest = {key: value for key, value in written.items() if key != "stage"}
    above = _our_keys(rest, stage, source=source, keys=("stages", name), notes=notes)
    values = _merge(below, above)
    inputs: dict[str, tuple[str, ...]] = {}
    for role in stage.roles():
        at = source.where("stages", name, role.name)
        references = _references(values.pop(role.name, None), role=role.name, where=at)
        if role.required and not references:
            raise ConfigError(f"{at}: {stage.command} needs `{role.name}` (a {role.kind})")
        if len(references) > 1 and not role.many:
            raise ConfigError(f"{at}: `{role.name}` takes one {role.kind}, not {len(references)}")
        if references:
            inputs[role.name] = references
    return Entry(name=name, stage=stage, inputs=inputs, values=values, source=source)


def _our_keys(
    values: Mapping[str, Any],
    stage: Stage,
    *,
    source: YamlFile,
    keys: tuple[str, ...],
    notes: dict[str, None],
) -> Mapping[str, Any]:
    """`values` with our names for the keys of other trainers; `notes` says which."""
    if not any(may_be_alias(key) and key not in stage.inputs for key in values):
        return values  # the stage's module need not be loaded yet
    renamed = rename_keys(
        values,
        stage.load().Config,
        roles=stage.inputs,
        where=lambda key: source.where(*keys, key),
    )
    for alias, path in renamed.paths.items():
        for places in (source.lines, source.overrides):
            if (*keys, alias) in places:
                places.setdefault((*keys, *path), places[(*keys, alias)])  # type: ignore[arg-type]
    notes.update(dict.fromkeys(renamed.notes))
    return renamed.values


def _references(value: Any, *, role: str, where: str) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    for item in items:
        if not isinstance(item, str):
            raise ConfigError(
                f"{where}: {role} = {item!r}: a name of an entry or artefact expected"
            )
    if len(set(items)) < len(items):
        raise ConfigError(f"{where}: {role} names the same thing twice: {', '.join(items)}")
    return tuple(items)


def _stage(command: Any, *, stages: Mapping[str, Stage], where: str) -> Stage:
    if command not in stages:
        hint = did_you_mean(str(command), list(stages))
        raise ConfigError(f"{where}: unknown stage {command!r}{hint}")
    return stages[command]


def _mapping(value: Any, *, source: YamlFile, keys: tuple[str, ...]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{source.where(*keys)}: `{keys[-1]}` holds {value!r}; keys are expected")
    return value


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = (
            _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def _check_word(name: str, *, where: str) -> None:
    if not isinstance(name, str) or not _WORD.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} is not a name: letters, digits, '_' and '-' only")
