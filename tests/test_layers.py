"""The arrows between the layers: kernels <- distill <- cli and server <- cli."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["kernels", "distill", "server", "cli"]
# What a layer may import besides itself.
ALLOWED = {
    "kernels": [],
    "distill": ["draftsmith.kernels"],
    # Six modules without torch: one parser of prompts, one layout of a run's folder.
    "server": [
        "draftsmith.distill.exits",
        "draftsmith.distill.folder",
        "draftsmith.distill.manifest",
        "draftsmith.distill.processor",
        "draftsmith.distill.prompts",
        "draftsmith.distill.recipe",
    ],
    "cli": ["draftsmith.kernels", "draftsmith.distill", "draftsmith.server"],
}
# A web process never loads these; vLLM loads the plug-in inside its own processes.
HEAVY = ["torch", "transformers", "deepspeed", "vllm", "datasets"]
INSIDE_VLLM = {
    "server/engine/draft_reading.py",
    "server/engine/draws.py",
    "server/engine/lenience.py",
    "server/engine/norms.py",
    "server/engine/nucleus.py",
    "server/engine/plugin.py",
    "server/engine/scheduler.py",
    "server/engine/vocabulary.py",
    "server/engine/weights_extension.py",
    "server/engine/weights_route.py",
}


def imports(source: str, package: str) -> Iterator[str]:
    """Full dotted names that a module of `package` imports, at any depth of the source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name: str, roots: list[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def violations(source: str, path: str) -> list[str]:
    """Imports in the file at `path` (relative to the root) that its layer must not have."""
    layer, package = path.split("/")[0], "draftsmith." + ".".join(path.split("/")[:-1])
    found = []
    for name in imports(source, package):
        permitted = [f"draftsmith.{layer}", *ALLOWED.get(layer, ["draftsmith"])]
        if within(name, ["draftsmith"]) and not within(name, permitted):
            found.append(f"{path} imports {name}, which lies outside its layer")
        if within(name, LAYERS):
            found.append(f"{path} imports {name} without `draftsmith.`")
        if layer == "server" and path not in INSIDE_VLLM and within(name, HEAVY):
            found.append(f"{path} imports {name}: a web process must not load it")
    return found


def test_every_module_keeps_to_its_layer() -> None:
    folders = [*LAYERS, "tests", "benchmarks"]
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert files
    found = [
        violation
        for file in files
        for violation in violations(file.read_text(), file.relative_to(ROOT).as_posix())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/rows.py", "from draftsmith.distill import recipe"),
        ("distill/train.py", "import draftsmith.server.app"),
        ("distill/train.py", "from draftsmith import cli"),
        ("distill/train.py", "def late():\n    from ..server import home"),
        ("server/app.py", "from draftsmith.distill.train import train"),
        ("server/app.py", "from draftsmith import distill"),
        ("server/openai/chat.py", "import torch.nn"),
        ("server/engine/launch.py", "from vllm import LLM"),
        ("cli/main.py", "from distill.recipe import load"),
        ("cli/main.py", "import kernels"),
        ("tests/tiny.py", "from server import app"),
    ],
)
def test_a_violation_is_seen(path: str, source: str) -> None:
    assert violations(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/rows.py", "import torch\nfrom draftsmith.kernels import linear"),
        ("distill/train.py", "from draftsmith.kernels.linear import chunked"),
        ("server/app.py", "from draftsmith.distill.manifest import Manifest"),
        ("server/app.py", "from draftsmith.distill import manifest, recipe"),
        ("server/app.py", "from .settings import Settings"),
        ("server/engine/plugin.py", "import torch"),
        ("cli/main.py", "from draftsmith.server.app import create_app"),
    ],
)
def test_an_allowed_import_is_let_through(path: str, source: str) -> None:
    assert not violations(source, path)


def test_the_kernels_folder_cannot_shadow_hugging_face_kernels() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_the_web_process_loads_no_framework() -> None:
    code = (
        "import sys, draftsmith.server.app\n"
        f"print(*sorted(set({HEAVY!r}) & {{m.split('.')[0] for m in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
