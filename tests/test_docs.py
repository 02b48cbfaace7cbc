"""The documentation stays in step with the code: keys, links, commands, quoted messages and examples."""

import ast
import re
import shlex

import pytest
import torch

from mdistiller.distillers import distiller_dict
from mdistiller.distillers._plugins import build_distiller
from mdistiller.engine.cfg import CFG, leaves, load_cfg
from mdistiller.engine.evaluation.cost import deployed_cost
from mdistiller.models import FAMILIES, build_model, cifar_model_dict, imagenet_model_dict
from mdistiller.paths import find_config
from tests.conftest import REPO
from tools.make_config_docs import configuration_page, library_keys, method_sections

PAGES = {
    path.relative_to(REPO).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        *(REPO / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md", "download_ckpts/README.md")),
        *sorted((REPO / "docs").glob("*.md")),
    )
}
MAX_LINE_LENGTH = 120
each_page = pytest.mark.parametrize("page", PAGES)


def code_blocks(text, language=""):
    return re.findall(rf"^```{language}\w*\n(.*?)^```", text, flags=re.M | re.S)


def prose(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_configuration_page_is_up_to_date():
    assert PAGES["docs/configuration.md"] == configuration_page(), "run: python3 tools/make_config_docs.py"


def test_the_configuration_page_has_every_key_with_its_default():
    rows = re.findall(r"^\| `([A-Z][\w.]*)` \| `(.*?)` \|", PAGES["docs/configuration.md"], flags=re.M)
    assert dict(rows) == {key: str(value) if value != "" else '""' for key, value in leaves(CFG)}
    assert len(rows) == len(dict(rows))


def test_every_key_has_a_meaning():
    keys = [*library_keys(), *(key for method in method_sections() for key in method.keys)]
    assert not [key.name for key in keys if not key.meaning], "write a comment beside these defaults"


@pytest.mark.parametrize(("models", "size", "decimals"), [(cifar_model_dict, 32, 1), (imagenet_model_dict, 224, 0)])
def test_the_sizes_of_the_models(models, size, decimals):
    shown = re.findall(r"`(\w+)` \| ([\d.]+) M \| ([\d.]+) M \|", PAGES["docs/models.md"])
    for name, built in models.items():
        constructor, num_classes = (built[0], 100) if size == 32 else (built, 1000)
        cost = deployed_cost(constructor(num_classes=num_classes), None, size)
        assert (name, f"{cost.parameters / 1e6:.2f}", f"{cost.macs / 1e6:.{decimals}f}") in shown


def test_every_method_has_a_paper():
    assert not [method.section for method in method_sections() if not method.papers]


@each_page
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(PAGES[page])):
        path, _, anchor = link.partition("#")
        target = ((REPO / page).parent / path).resolve() if path else REPO / page
        if not re.match("https?:", link) and (
            not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8")))
        ):
            broken.append(link)
    assert not broken


@each_page
def test_paths_that_are_named_exist(page):
    words = re.findall(r"`([^`\n]+)`", prose(PAGES[page]))
    paths = [
        word for word in words if re.match(r"(mdistiller|tools|tests|configs|docs|data/fashion)[\w/.]*[/.]\w*$", word)
    ]
    modules = [word for word in paths if word.startswith("mdistiller.")]
    assert not [path for path in paths if path not in modules and not (REPO / path).exists()]


@each_page
def test_commands_name_scripts_configs_and_keys_that_exist(page):
    text = PAGES[page]
    inline = [" ".join(word.split()) for word in re.findall(r"`((?:python3|torchrun)[^`]+)`", prose(text))]
    blocks = [line for block in code_blocks(text, "(?:bash)?") for line in block.replace("\\\n", " ").splitlines()]
    for command in (*inline, *blocks):
        for path in re.findall(r"(?<![\w./-])(?:tools|tests|configs)/[\w/]+\.\w+", command):
            assert (REPO / path).is_file(), command
        for name in re.findall(r"--cfg ([a-z]\S*)", command):
            assert find_config(REPO / name).is_file() or find_config(name).is_file(), command
        for module in re.findall(r"-m (mdistiller[\w.]*)", command):
            assert (REPO / f"{module.replace('.', '/')}.py").is_file(), command
        for key in re.findall(r"(?<![\w./$-])[A-Z]+(?:\.[A-Z_]+)+(?![a-z])", command):
            assert key in dict(leaves(CFG)), command


@each_page
def test_shell_commands_can_be_parsed(page):
    for block in code_blocks(PAGES[page], "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(python3|torchrun|pip|mdistiller)", line):
                shlex.split(line, comments=True)


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"data/README.md"}))
def test_lines_are_not_too_long(page):
    lines = prose(PAGES[page]).splitlines()
    assert not [line for line in lines if len(line) > MAX_LINE_LENGTH and not line.startswith("|")]


@each_page
def test_tables_are_whole(page):
    for table in re.findall(r"(?:^\|.*\n)+", prose(PAGES[page]), flags=re.M):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table.splitlines()[0]


@each_page
def test_python_examples_are_valid(page):
    for block in code_blocks(PAGES[page], "python"):
        ast.parse(block)


def test_the_models_page_names_every_model():
    named = set(re.findall(r"[\w]+", PAGES["docs/models.md"]))
    assert not {name for family in FAMILIES for name in family} - named


def test_the_quoted_messages_are_those_of_the_code():
    texts = []
    for file in (REPO / "mdistiller").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    table = PAGES["docs/troubleshooting.md"].split("## Messages")[1].split("\n## ")[0]
    quoted = re.findall(r"^\| `([^`]+)` \|", table, flags=re.M) + re.findall(r"`(wandb: [^`]+)`", table)
    assert len(quoted) > 20
    gone = [message for message in quoted if not any(message in text for text in texts)]
    assert not gone, "docs/troubleshooting.md quotes messages that the code no longer has; quote the new ones"


@pytest.mark.usefixtures("registries_as_before")
def test_the_plug_ins_of_the_examples_train(tmp_path):
    for number, block in enumerate(code_blocks(PAGES["docs/plugins.md"], "python")):
        (tmp_path / f"example_{number}.py").write_text(block, encoding="utf-8")
    plugins = [str(path) for path in sorted(tmp_path.glob("example_*.py"))]
    cfg = load_cfg(None, ["PLUGINS", repr(plugins), "DATASET.INPUT_SIZE", "32"])
    image, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for method in ("MINE", "PROJECTED"):
        assert method in distiller_dict
        distiller = build_distiller(method, build_model("mine", 3), build_model("resnet8", 3), cfg, 4).train()
        logits, losses = distiller(image=image, target=target, index=torch.arange(4), epoch=1)
        sum(losses.values()).backward()
        assert logits.shape == (4, 3)
        assert all(parameter.grad is None for parameter in distiller.teacher.parameters())
