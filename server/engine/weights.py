"""Other weights for a running engine: which folders fit, and the private call that loads one.

Weights can be exchanged live where nothing but numbers changes: the same configuration, the same
tensors of the same shapes. Everything else (dtype, ids of special tokens, the vocabulary that a
draft may propose) may differ. Read by the gateway and inside vLLM; imports no framework.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

Part = Literal["target", "draft"]
"""Which model of an engine."""

WEIGHTS_ROUTE = "/draftsmith/weights"
"""Of the engine, on its private socket only; see `weights_route.py`."""

# What may differ without any change to what is computed from given weights.
_IGNORED_CONFIG_KEYS = frozenset(
    {
        *("_name_or_path", "_model_name_or_path", "transformers_version", "dtype", "torch_dtype"),
        *("use_cache", "bos_token_id", "eos_token_id", "pad_token_id"),
    }
)
_MAX_HEADER_BYTES = 100 << 20  # the bound of the safetensors format


class WeightsRefused(ValueError):
    """The engine did not take the weights and runs on with those it had; says why."""


@dataclass(frozen=True)
class ModelShape:
    """What must be equal for two folders to be exchanged in a running engine."""

    config: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]
    """Name of each tensor -> its shape."""

    def difference(self, other: ModelShape) -> str | None:
        """The first thing in which `other` is not like this, as words; None: they are alike."""
        for key in sorted(self.config.keys() | other.config.keys()):
            ours, theirs = self.config.get(key), other.config.get(key)
            if ours != theirs:
                return f"its config.json has {key} = {json.dumps(theirs)}, not {json.dumps(ours)}"
        for name in sorted(self.tensors.keys() | other.tensors.keys()):
            if name not in other.tensors:
                return f"it lacks the tensor {name}"
            if name not in self.tensors:
                return f"it has a tensor {name} too many"
            if self.tensors[name] != other.tensors[name]:
                shapes = f"{list(other.tensors[name])}, not {list(self.tensors[name])}"
                return f"its tensor {name} has the shape {shapes}"
        return None


def model_shape(folder: Path) -> ModelShape:
    """Read configuration and tensor shapes of a Hugging Face folder, without its weights.

    Raises:
        ValueError: there is no readable config.json or no readable safetensors file.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kept = {key: config[key] for key in config if key not in _IGNORED_CONFIG_KEYS}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} holds no model: config.json cannot be read.") from error
    tensors: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        header = _read_header(path)
        tensors |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    return ModelShape(kept, tensors)


def weight_files(folder: Path) -> list[Path]:
    """Raises ValueError where there is none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no weights: no .safetensors file is in it.")
    return files


def _read_header(path: Path) -> dict[str, Any]:
    """Tensor name -> dtype, shape and place, from the start of a safetensors file."""
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > _MAX_HEADER_BYTES:
                raise ValueError("its header is too large")
            header: dict[str, Any] = json.loads(stream.read(size))
            end = 8 + size + max((one["data_offsets"][1] for one in _entries(header)), default=0)
        if path.stat().st_size != end:
            raise ValueError("it was cut short")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file.") from error
    header.pop("__metadata__", None)
    return header


def _entries(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for name, entry in header.items() if name != "__metadata__"]


async def load_weights(
    client: httpx.AsyncClient, part: Part, folder: Path, version: str
) -> dict[str, Any]:
    """Load the weights in `folder` into the engine of `client`, between two of its steps.

    Returns:
        What the engine says: `version`, and `seconds` that it took.

    Raises:
        WeightsRefused: the folder does not fit; nothing was changed.
        httpx.HTTPError: the engine went away or failed half-way; it has to be restarted.
    """
    body = {"part": part, "folder": str(folder), "version": version}
    answer = await client.post(WEIGHTS_ROUTE, json=body)
    if answer.status_code == 409:
        raise WeightsRefused(answer.json()["error"]["message"])
    said: dict[str, Any] = answer.raise_for_status().json()
    return said
