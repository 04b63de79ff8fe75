"""vLLM in this process, for machines with a GPU that it supports.

Untested: written from vLLM's documentation, on a machine where it does not run. The way over a url
(`vllm serve` and rung/engine/remote.py) is tested, as far as one can without vLLM itself.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rung.engine.remote import option_values, sample_seed
from rung.engine.sampling import Completion, Sampling
from rung.errors import ArtefactError, ResourceError
from rung.store.adapter import base_id


class VllmEngine:
    """The model of `folder` in vLLM. Ids in, ids out: its tokenizer and template take no part."""

    def __init__(self, folder: Path) -> None:
        require_vllm()
        if base_id(folder) is not None:
            raise ArtefactError(
                "vLLM reads whole models, and this is an adapter: merge it first (rung merge)"
            )
        from vllm import LLM

        self._llm: Any = LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            trust_remote_code=False,
            generation_config="vllm",  # how to sample is said with each request
            enable_prefix_caching=True,
        )

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        *,
        num_samples: int = 1,
        keys: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """`num_samples` completions of every prompt, as `rung.engine.generate.generate`."""
        from vllm import SamplingParams

        names = range(len(prompts)) if keys is None else keys
        asked, params = [], []
        for prompt, name in zip(prompts, names, strict=True):
            for sample in range(num_samples):
                asked.append({"prompt_token_ids": prompt.tolist()})
                params.append(
                    SamplingParams(
                        max_tokens=sampling.max_new_tokens,
                        temperature=sampling.temperature,
                        seed=sample_seed(sampling.seed, name, sample),
                        stop_token_ids=list(sampling.stop_ids),
                        detokenize=False,
                        **option_values(sampling),
                    )
                )
        outputs = self._llm.generate(asked, params, use_tqdm=False)
        made = []
        for output in outputs:
            [one] = output.outputs
            ids = np.array(one.token_ids, dtype=np.int32)
            made.append(Completion(ids, one.finish_reason == "stop"))
        return [made[at : at + num_samples] for at in range(0, len(made), num_samples)]


def require_vllm() -> None:
    """ResourceError unless vLLM is installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ResourceError(
            "engine: {vllm: true} needs vllm, which is not installed: pip install 'rung[vllm]' "
            "(Linux with a GPU); or start a server anywhere and name its url"
        )
