"""In which form a target writes tool calls, read from its chat template.

vLLM has a parser for each form and must be told which. A template shows the form to the model
by an example or writes earlier calls in it, so its marks give the form away.
"""

from __future__ import annotations

import json
from pathlib import Path

# Mark in the template -> vLLM's name of the parser. The first that is found counts.
_MARKS = (
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3_json"),
    ("<|tool_call|>", "granite"),
)


def tool_call_parser_for(target: Path) -> str | None:
    """vLLM's name of the parser for the model in folder `target`; None where no mark is known."""
    template = _chat_template(target)
    return next((parser for mark, parser in _MARKS if mark in template), None)


def _chat_template(target: Path) -> str:
    file = target / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        config = json.loads((target / "tokenizer_config.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return ""  # `check_pair` has refused, or vLLM will refuse, such a target
    return str(config.get("chat_template") or "") if isinstance(config, dict) else ""
