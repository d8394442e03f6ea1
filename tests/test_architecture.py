"""The house rules: layers, names, imports and sizes of every source file."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "modes_fx": "modes_fx",
    "passes": "modes_fx.passes",
    "calibration": "modes_fx.calibration",
    "evaluation": "modes_fx.evaluation",
    "export": "modes_fx.export",
    "bench": "modes_fx.bench",
}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

LAYERS = {
    "modes_fx.errors": 1,
    "modes_fx.fingerprint": 1,
    "modes_fx.kernels": 1,
    "modes_fx.modality": 1,
    "modes_fx.policy": 1,
    "modes_fx.policy_card": 1,
    "modes_fx.policy_fields": 1,
    "modes_fx.policy_file": 1,
    "modes_fx.policy_means": 1,
    "modes_fx.policy_stored": 1,
    "modes_fx.vocabulary": 1,
    "modes_fx.mean_ops": 2,
    "modes_fx.ops": 2,
    "modes_fx.fused_ops": 2,
    "modes_fx.passes": 3,
    "modes_fx.sources": 4,
    "modes_fx.hooks": 4,
    "modes_fx.loops": 4,
    "modes_fx.attach": 4,
    "modes_fx.blocks": 4,
    "modes_fx.compensation": 4,
    "modes_fx.forward": 4,
    "modes_fx.prepack": 4,
    "modes_fx.quantise": 4,
    "modes_fx.backend": 4,
    "modes_fx.graph_inputs": 4,
    "modes_fx.explain": 4,
    "modes_fx.calibration": 5,
    "modes_fx.evaluation": 5,
    "modes_fx.export": 5,
    "modes_fx": 6,
    "modes_fx.__main__": 6,
    "modes_fx.bench": 6,
    "modes_fx.cli": 6,
    "modes_fx.calibration.__main__": 6,
}
MAX_LINES = 400

ARCHITECTURES = re.compile(
    r"(?<![a-zA-Z])(?i:aya_vision|chatglm|dbrx|deepseek|ernie|gemma|glm|gpt[_-]oss|granite|hunyuan|"
    r"internlm|internvl|jamba|kimi|llama|llava|longcat|minimax|mistral|mixtral|moonlight|"
    r"nemotron|olmo|olmoe|phimoe|pixtral|qwen)(?![a-z])"
)


def name_of(path: Path) -> str:
    """The name a source file is imported by: passes/region.py is modes_fx.passes.region."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


def component_of(module: str) -> str:
    """The row of the layer table that a module belongs to."""
    return module if module in LAYERS else ".".join(module.split(".")[:2])


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file; relative ones start with a dot."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in LAYERS else base


def of_each(paths: list[Path]) -> pytest.MarkDecorator:
    ids = [str(path.relative_to(ROOT)) for path in paths]
    return pytest.mark.parametrize("path", paths, ids=ids)


@of_each(SOURCES)
def test_a_module_imports_only_from_its_layer_and_those_before(path):
    component = component_of(name_of(path))
    assert component in LAYERS, f"give {component} a row in the layer table"
    for module in imports_of(path):
        if module.partition(".")[0] == "modes_fx":
            imported = component_of(module)
            assert LAYERS[imported] <= LAYERS[component], f"{component} imports {imported}"


@of_each(SOURCES + TESTS)
def test_imports_are_absolute_and_go_through_the_distribution(path):
    for module in imports_of(path):
        root = module.partition(".")[0]
        assert root, f"relative import of {module}"
        assert root == "modes_fx" or root not in FOLDERS, (
            f"{module}: import it as modes_fx.{module}"
        )


@of_each([path for path in SOURCES if path.relative_to(ROOT).parts[0] != "bench"])
def test_no_architecture_is_named(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    named = [f"{n}: {line}" for n, line in enumerate(lines, 1) if ARCHITECTURES.search(line)]
    assert not named, "match structure, not names:\n" + "\n".join(named)


@pytest.mark.parametrize("text", ["qwen3_vl_moe", "Qwen3VLMoeConfig", "a GLM-4.5V", "LlamaMLP"])
def test_architecture_names_are_recognised(text):
    assert ARCHITECTURES.search(text)


@of_each(SOURCES + TESTS)
def test_a_file_says_what_it_is_and_is_short(path):
    assert ast.get_docstring(tree_of(path)), "it has no module docstring"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@of_each(sorted({path.parent for path in SOURCES}))
def test_a_folder_with_sources_is_a_package(path):
    assert (path / "__init__.py").exists()


@of_each([path for path in TESTS if path.parent != ROOT / "tests"])
def test_a_test_file_mirrors_a_source(path):
    mirrored = ROOT / path.relative_to(ROOT / "tests")
    source = mirrored.with_name(mirrored.name.removeprefix("test_"))
    assert source.exists() or source.with_suffix("").is_dir(), f"there is no {source}"
