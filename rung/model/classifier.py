"""A classifier: a head on what a backbone makes of a text.

C labels, W width, F = 2 W values of evidence, B texts
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rung.errors import ArtefactError
from rung.model.adapters import save_trained, trained_part
from rung.model.attention import TorchForest
from rung.model.depth import put_upper, take_upper
from rung.model.forward import hidden_states
from rung.model.load import load_model
from rung.model.types import PreTrainedModel

HEAD_FILE = "head.safetensors"
CLASSIFIER_FILE = "classifier.json"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Labelling:
    """What the outputs mean.

    labels: in the order of the outputs. multi_label: every label is decided for itself.
    template: the text as the backbone reads it, {text} once. max_tokens: of a text with its
    template; the end of a longer one is not read. layers: how many of the backbone's are run; 0
    all. temperature: logits are divided by it.
    thresholds: of multi-label probabilities, one a label; empty otherwise.

    Example: Labelling(("negative", "positive"), False, "{text}", 512, 20, 1.4, ())
    """

    labels: tuple[str, ...]
    multi_label: bool
    template: str
    max_tokens: int
    layers: int = 0
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities float32 [B, C]; of a single-label classifier they sum to 1."""
        cool = logits.float() / self.temperature
        return torch.sigmoid(cool) if self.multi_label else torch.softmax(cool, -1)


class LabelHead(nn.Module):
    """A logit per label: a linear map of standardised evidence. Starts as the constant 0, so the
    first loss is that of a guess, whatever the backbone."""

    def __init__(self, width: int, num_labels: int):
        super().__init__()
        self.linear = nn.Linear(width, num_labels)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @torch.no_grad()
    def standardise(self, evidence: Tensor) -> None:
        """Take mean and standard deviation from evidence [B, F] of training texts."""
        self.mean.copy_(evidence.mean(0))
        self.std.copy_(evidence.std(0, correction=0).clamp(min=1e-4))

    def forward(self, evidence: Tensor) -> Tensor:
        """Logits float32 [B, C] of evidence [B, F]."""
        # Outside of autocast: rounded to bf16 the logits of a sure answer would be steps of 1/16.
        with torch.autocast(evidence.device.type, enabled=False):
            return self.linear((evidence.float() - self.mean) / self.std)


class Classifier(nn.Module):
    """A backbone, a head, and what its outputs mean.

    Every tree of a forest is one text. Its trained tokens (weight above 0) are those the mean is
    taken over: the text without begin token and template.
    """

    def __init__(self, backbone: PreTrainedModel, labelling: Labelling):
        super().__init__()
        self.backbone = backbone
        self.labelling = labelling
        # a tuple: modules that are not run are neither trained nor moved nor checkpointed
        self._upper = tuple(take_upper(backbone, labelling.layers) if labelling.layers else ())
        width = int(backbone.config.hidden_size)
        self.head = LabelHead(2 * width, len(labelling.labels))

    def trained(self) -> nn.Module:
        """What an optimizer and a checkpoint need to know: the head, and of the backbone its
        adapter where it has one."""
        part = trained_part(self.backbone)
        if part is self.backbone:
            return self
        return nn.ModuleDict({"backbone": part, "head": self.head})

    def evidence(self, forest: TorchForest) -> Tensor:
        """What the head reads of each text, float32 [B, 2 W], differentiable: the hidden state of
        the last token, and the mean over the tokens of the text."""
        states = hidden_states(self.backbone, forest).float()
        own = states.index_select(0, forest.seg_end - 1)
        at = torch.from_numpy(forest.host.target_at).to(states.device)
        total = torch.zeros_like(own).index_add(0, forest.target_seg, states.index_select(0, at))
        count = torch.bincount(forest.target_seg, minlength=forest.num_segments)
        return torch.cat([own, total / count.clamp(min=1)[:, None]], dim=1)

    def logits(self, forest: TorchForest) -> Tensor:
        """Logits before the temperature, float32 [B, C], differentiable."""
        return self.head(self.evidence(forest))

    @contextmanager
    def whole_backbone(self) -> Iterator[PreTrainedModel]:
        """The backbone with the layers above those that are read, as it is saved."""
        put_upper(self.backbone, list(self._upper))
        try:
            yield self.backbone
        finally:
            if self._upper:
                take_upper(self.backbone, self.labelling.layers)

    def calibrate(self, *, temperature: float, thresholds: tuple[float, ...]) -> None:
        """Set what was fitted after training."""
        self.labelling = replace(self.labelling, temperature=temperature, thresholds=thresholds)


def save_classifier(
    model: Classifier, folder: Path, record: Mapping[str, Any], *, base: str, frozen: bool
) -> None:
    """head.safetensors (the tensors of `LabelHead`), classifier.json (the labelling, and `record`:
    figures) and the backbone.

    base: id of the artefact that the backbone was loaded from. Of a frozen backbone only this id
    is kept, of one with an adapter the adapter: the weights lie beside the classifier already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not frozen:
        with model.whole_backbone() as backbone:
            save_trained(backbone, folder, base=base)
    head = model.head.state_dict()
    save_file({k: v.detach().float().contiguous() for k, v in head.items()}, folder / HEAD_FILE)
    whole = {**record, **asdict(model.labelling), "base": base if frozen else None}
    text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / CLASSIFIER_FILE).write_text(text, encoding="utf-8")


def backbone_folder(folder: Path) -> Path:
    """Where the backbone of a classifier folder lies: the folder itself, or its frozen base."""
    base = _record(folder)["base"]
    if base is None:
        return folder
    path = folder.parent / str(base)
    if not _ID.fullmatch(str(base)) or not path.is_dir():
        raise ArtefactError(
            f"{folder.name} is a head on the frozen model {base}, and no such artefact lies beside "
            f"it in {folder.parent}; bring that model back, or train the classifier again"
        )
    return path


def _record(folder: Path) -> dict[str, Any]:
    missing = [name for name in (HEAD_FILE, CLASSIFIER_FILE) if not (folder / name).is_file()]
    if missing:
        raise ArtefactError(
            f"{folder.name} is not a classifier: no {' and no '.join(missing)}; "
            "make one with `rung classify`"
        )
    return dict(json.loads((folder / CLASSIFIER_FILE).read_text(encoding="utf-8")))


def read_labelling(folder: Path) -> Labelling:
    """What the outputs of a classifier folder mean; ArtefactError when it is none."""
    record = _record(folder)
    return Labelling(
        labels=tuple(record["labels"]),
        multi_label=bool(record["multi_label"]),
        template=str(record["template"]),
        max_tokens=int(record["max_tokens"]),
        layers=int(record["layers"]),
        temperature=float(record["temperature"]),
        thresholds=tuple(map(float, record["thresholds"])),
    )


def load_classifier(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Classifier:
    """The classifier of an artefact folder; ArtefactError when the folder is not one."""
    labelling = read_labelling(folder)
    backbone = load_model(backbone_folder(folder), dtype=dtype, device=device)
    model = Classifier(backbone, labelling)
    model.head.load_state_dict(load_file(folder / HEAD_FILE))
    return model.to(device).eval()
