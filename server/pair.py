"""Whether a target and a draft may be served together; asked before any engine starts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from draftsmith.distill.manifest import (
    MANIFEST_NAME,
    Manifest,
    check_compatible,
    read_draft_vocabulary,
    read_manifest,
    tokenizer_fingerprint,
    verify_files,
)

_log = logging.getLogger("draftsmith.server")


def check_pair(target: Path, draft: Path | None) -> Manifest | None:
    """The manifest of `draft`, None when there is no draft or it carries no manifest.

    A folder that draftsmith exported is held against its manifest: files unchanged, and made
    for this very target. Another model's folder is let in when its vocabulary and tokenizer
    are the target's; its acceptance is then anybody's guess.

    Raises:
        ValueError: a folder is missing or the two do not belong together; says why.
    """
    target_vocabulary = _vocabulary_size("target", target)
    if draft is None:
        return None
    draft_vocabulary = _vocabulary_size("draft", draft)
    if draft_vocabulary != target_vocabulary:
        raise ValueError(
            f"The draft {draft} has a vocabulary of {draft_vocabulary} tokens and the target of "
            f"{target_vocabulary}: they cannot be served together."
        )
    read_draft_vocabulary(draft, draft_vocabulary)
    if not (draft / MANIFEST_NAME).is_file():
        if tokenizer_fingerprint(draft) != tokenizer_fingerprint(target):
            raise ValueError(
                f"The tokenizers of the draft {draft} and the target {target} differ: "
                "their token ids do not mean the same."
            )
        _log.warning("The draft %s has no manifest: only its tokenizer was checked.", draft)
        return None
    manifest = read_manifest(draft)
    verify_files(draft, manifest)
    check_compatible(manifest, target)
    return manifest


def advised_lookahead(draft: Path) -> int | None:
    """K that the draft's recipe was measured with; None where it carries no manifest.

    Raises:
        ValueError: the manifest is there but cannot be read.
    """
    if not (draft / MANIFEST_NAME).is_file():
        return None
    lookahead = read_manifest(draft).recipe.get("evaluate", {}).get("num_speculative_tokens")
    return lookahead if isinstance(lookahead, int) else None


def _vocabulary_size(role: str, folder: Path) -> int:
    if not folder.is_dir():
        raise ValueError(f"There is no {role} model at {folder}: no such folder.")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        return int(config.get("vocab_size") or config["text_config"]["vocab_size"])
    except FileNotFoundError:
        raise ValueError(f"The {role} {folder} is not a model: config.json is missing.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not say how large its vocabulary is.") from error
