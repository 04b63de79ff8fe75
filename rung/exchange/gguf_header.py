"""The head of a GGUF file: its metadata and where its tensors lie, without the tensors."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rung.errors import ArtefactError

_SCALARS = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"},
    **{10: "Q", 11: "q", 12: "d"},
}
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 26  # bytes of a text or entries of a list: a damaged length must not fill memory


@dataclass(frozen=True)
class Tensor:
    """shape: as the file has it, the fastest axis first. kind: ggml's number of its type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GGUFHeader:
    """metadata by key; tensors by name; start: the byte from which offsets count."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    start: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def of_model(self, key: str) -> Any:
        """A value that is kept under the architecture's name; None when it is not there."""
        return self.metadata.get(f"{self.architecture}.{key}")


def read_gguf_header(path: Path) -> GGUFHeader:
    """ArtefactError for another file, an unknown version, or one that is cut short in its head."""
    try:
        with path.open("rb") as file:
            return _Reader(file).header()
    except (struct.error, UnicodeDecodeError, KeyError, MemoryError, ValueError) as error:
        raise ArtefactError(
            f"{path} is no GGUF file, or it is cut short or damaged in its header"
            f" ({type(error).__name__}); download it again"
        ) from None


def check_whole(path: Path, header: GGUFHeader) -> None:
    """ArtefactError when the file is shorter than its tensors; needs the gguf package."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    end = header.start
    for tensor in header.tensors.values():
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        except (ValueError, KeyError):
            raise ArtefactError(
                f"{path}: tensor {tensor.name} is of a type ({tensor.kind}) that the installed "
                "gguf package does not know; pip install -U gguf"
            ) from None
        end = max(end, header.start + tensor.offset + math.prod(tensor.shape) // block * size)
    if (size := path.stat().st_size) < end:
        raise ArtefactError(
            f"{path} has {size:,} bytes where its tensors need {end:,}: it is cut short; download "
            "it again"
        )


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def header(self) -> GGUFHeader:
        if self._file.read(4) != b"GGUF":
            raise ValueError("no GGUF magic")
        if self._one("I") not in (2, 3):
            raise ValueError("unknown version")
        num_tensors, num_values = self._one("Q"), self._one("Q")
        metadata = {self._text(): self._value(self._one("I")) for _ in range(num_values)}
        tensors = {}
        for _ in range(num_tensors):
            name = self._text()
            shape = tuple(self._one("Q") for _ in range(self._one("I")))
            tensors[name] = Tensor(name, shape, self._one("I"), self._one("Q"))
        alignment = int(metadata.get("general.alignment", 32))
        at = self._file.tell()
        return GGUFHeader(metadata, tensors, at + -at % alignment)

    def _one(self, form: str) -> Any:
        size = struct.calcsize(form)
        return struct.unpack("<" + form, self._file.read(size))[0]

    def _length(self) -> int:
        length = int(self._one("Q"))
        if length > _LONGEST:
            raise ValueError("a length beyond belief")
        return length

    def _text(self) -> str:
        length = self._length()
        content = self._file.read(length)
        if len(content) != length:
            raise ValueError("cut short")
        return content.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._one(_SCALARS[kind])
        inner, length = self._one("I"), self._length()
        if inner in _SCALARS:
            form = f"<{length}{_SCALARS[inner]}"
            return list(struct.unpack(form, self._file.read(struct.calcsize(form))))
        return [self._value(inner) for _ in range(length)]
