"""YAML with a line number for every key; duplicate keys and aliases are errors."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rung.config import nearest
from rung.errors import ConfigError

_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    """The safe loader, and 1e-3 is a number (YAML 1.1 reads it as text)."""


_Loader.yaml_implicit_resolvers = {
    key: list(resolvers) for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+"),
    list("-+0123456789"),
)


@dataclass
class YamlFile:
    """Plain values and where each key stands. lines: path of keys -> line, counted from 1.

    overrides: path of keys -> the words on the command line that set them.
    """

    path: str
    value: Any
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    overrides: dict[tuple[str, ...], str] = field(default_factory=dict)

    def where(self, *keys: str) -> str:
        """ "recipe.yaml:12" for a path of keys, or for the nearest key above it that has a line;
        "--set base.lr=2" where the command line set it."""
        while keys and keys not in self.lines and keys not in self.overrides:
            keys = keys[:-1]
        if keys in self.overrides:
            return f"--set {self.overrides[keys]}"
        return f"{self.path}:{self.lines[keys]}" if keys else self.path


def read_yaml(path: Path) -> YamlFile:
    """The YAML mapping in `path`; ConfigError with file and line for anything wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no file {path}{_nearest(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from None
    found = parse_yaml(text, path=str(path))
    if not isinstance(found.value, dict):
        raise ConfigError(f"{path} holds {type(found.value).__name__}; a mapping is expected")
    return found


def _nearest(path: Path) -> str:
    """The page that was probably meant, among those beside it and in recipes/."""
    folders = dict.fromkeys((path.parent, Path("recipes")))
    found = [page for folder in folders for page in sorted(folder.glob("*.y*ml"))]
    pages = {page.stem: page for page in reversed(found)}  # those beside it come first
    close = nearest(path.stem, list(pages))
    if close is not None:
        return f"; did you mean {pages[close]}?"
    return f"; there is {', '.join(map(str, found))}" if found else ""


def parse_yaml(text: str, *, path: str) -> YamlFile:
    """`text` as values; `path` is for messages."""
    loader = _Loader(text)
    found = YamlFile(path=path, value=None)
    try:
        node = loader.get_single_node()
        if node is not None:
            found.value = _build(loader, node, found=found, keys=(), seen=set())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    finally:
        loader.dispose()
    return found


def _build(
    loader: _Loader, node: yaml.Node, *, found: YamlFile, keys: tuple[str, ...], seen: set[int]
) -> Any:
    here = f"{found.path}:{node.start_mark.line + 1}"
    if id(node) in seen:
        raise ConfigError(f"{here}: anchors and aliases are not read here; write the value again")
    seen.add(id(node))
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN:
        raise ConfigError(f"{here}: not valid YAML: tag {node.tag} is not read here")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            here = f"{found.path}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{here}: a key must be a plain word")
            key = key_node.value
            if key in mapping:
                first = found.where(*keys, key)
                raise ConfigError(f"{here}: key {key!r} is there twice (first at {first})")
            found.lines[(*keys, key)] = key_node.start_mark.line + 1
            mapping[key] = _build(loader, value_node, found=found, keys=(*keys, key), seen=seen)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, n, found=found, keys=keys, seen=seen) for n in node.value]
    return loader.construct_object(node, deep=True)
