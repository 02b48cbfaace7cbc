"""Nothing is executed from data: the package has no call that could, and hostile files of every kind are refused."""

from __future__ import annotations

import ast
import json
import os
import pickle
import sys

import numpy as np
import pytest
import torch
import yaml

from mdistiller.dataset.images import stats
from mdistiller.engine import checkpoint as ck
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.checkpoint import numpy_scalars
from mdistiller.engine.run.records import read_references
from mdistiller.errors import UserError
from mdistiller.models.imagenet import _pretrained
from tests.conftest import REPO
from tests.processes import run

PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")  # read as texts

BUILTINS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "np.load", "numpy.load"),
    *("os.system", "os.popen", "subprocess.run", "subprocess.call", "subprocess.Popen", "subprocess.check_output"),
    *("torch.jit.load", "hub.load", "shutil.unpack_archive"),
}
METHODS = {  # of whatever
    *("extractall", "extract", "extract_archive", "download_and_extract_archive", "load_url"),
    *("load_state_dict_from_url", "exec_module", "import_module"),
}
KEYWORDS = {"allow_pickle", "shell"}
# the plug-ins and models that a configuration names are code, and meant to be
CODE = ("exec_module", "import_module")
ALLOWED = {
    *((file, call) for file in ("distillers/_plugins.py", "adapters/user_models.py") for call in CODE),
    # these start this package's own modules, and exchange arrays without pickles with them
    *((f"formats/{name}.py", "subprocess.Popen") for name in ("torch_file",)),
    *((f"formats/{name}.py", call) for name in ("torch_file", "torch_worker") for call in ("np.load", "allow_pickle")),
    ("study/job.py", "subprocess.Popen"),
    ("run/environment.py", "subprocess.run"),  # asks Git for the commit
    ("export/export.py", "import_module"),  # of the libraries of an extra, by names in the source
    ("formats/onnx_file.py", "import_module"),
}
SOURCES = sorted([*(REPO / "mdistiller").rglob("*.py"), *(REPO / "tools").rglob("*.py")])


def dotted(node):
    """Return what a call calls, as `module.name`, as far as it is made of names."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe_calls(source, path=""):
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            last = name.rpartition(".")[2]
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            data_only = getattr(keywords.get("weights_only"), "value", None) is True
            if name in BUILTINS | ATTRIBUTES or last in METHODS or (name == "torch.load" and not data_only):
                found.append(last if last in METHODS else name)
            found += sorted(KEYWORDS & set(keywords))
    return [call for call in found if (path, call) not in ALLOWED]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPO)))
def test_no_call_can_execute_data(path):
    assert unsafe_calls(path.read_text(encoding="utf-8"), "/".join(path.parts[-2:])) == []


@pytest.mark.parametrize(
    "line",
    [
        *("torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=x)", "pickle.load(f)"),
        *("yaml.load(f, Loader=yaml.SafeLoader)", "eval(x)", "exec(x)", "np.load(f)", "tar.extractall(p)"),
        *("os.system(x)", "subprocess.run(x)", "np.load(f, allow_pickle=True)", "model_zoo.load_url(u)"),
        *("shutil.unpack_archive(f)", "hub.load('a', 'b')", "run(x, shell=True)"),
    ],
)
def test_the_search_finds(line):
    assert unsafe_calls(line)


def test_the_search_passes_what_is_safe():
    assert unsafe_calls("torch.load(f, weights_only=True); yaml.safe_load(f); model.eval(); re.compile(x)") == []


class Hostile:
    def __reduce__(self):
        return os.system, ("touch owned",)


def hostile(path, kind):
    if kind == "zip":
        torch.save({"model": {"a": Hostile()}}, path)
    elif kind == "legacy":
        torch.save({"model": Hostile()}, path, _use_new_zipfile_serialization=False)
    elif kind == "whole module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "numpy object":
        torch.save({"model": np.array([Hostile()], dtype=object)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Hostile()}, protocol=int(kind)))


@pytest.mark.parametrize("kind", ["zip", "legacy", "whole module", "numpy object", "0", "2", "4", "5"])
def test_checkpoints(tmp_path, kind, monkeypatch):
    hostile(tmp_path / "h.pth", kind)
    with pytest.raises(UserError, match=r"h\.pth (refused|is truncated or not a PyTorch file)") as caught:
        ck.read_checkpoint(tmp_path / "h.pth")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(_pretrained, "released_file", lambda name: tmp_path / "h.pth")
    with pytest.raises(UserError, match=r"h\.pth is damaged"):
        _pretrained.with_released_weights(torch.nn.Linear(2, 2), "ResNet18")
    assert not (tmp_path / "owned").exists()


# what the reader allows before the package is imported, and after; other parts of PyTorch add their own classes
ALLOWED_BY_US = """
import torch

def allowed():
    return {f"{e.__module__}.{e.__qualname__}" for e in torch.serialization.get_safe_globals()}

before = allowed()
import mdistiller.engine.checkpoint
print(*sorted(name for name in allowed() - before if not name.startswith("torch.")), sep="\\n")
"""


def test_the_allow_list_is_numbers_of_numpy_and_what_torch_itself_allows():
    kinds = [type(np.dtype(kind)) for kind in numpy_scalars.KINDS]
    status, out, err = run(sys.executable, "-c", ALLOWED_BY_US)
    assert (status, err) == (0, "")
    assert set(out.splitlines()) == {
        *(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds),
        *(f"{module}.scalar" for module in numpy_scalars.MODULES),
        "_codecs.encode",
        "numpy.dtype",
        "argparse.Namespace",
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),
    }


@pytest.mark.parametrize(
    "text",
    [
        "SOLVER: !!python/object/apply:os.system ['touch owned']\n",
        "!!python/object/new:os.system ['touch owned']\n",
        "DISTILLER: {TYPE: !!python/name:os.system }\n",
        "EXPERIMENT: {NAME: !!python/module:os }\n",
    ],
)
def test_yaml(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml is not valid YAML"):
        load_cfg(str(tmp_path / "c.yaml"))
    with pytest.raises(UserError):
        load_cfg(None, ["SOLVER.LR", text.strip()])
    assert not (tmp_path / "owned").exists()
    assert yaml.safe_load("a: 1") == {"a": 1}


def test_words_are_not_python():
    cfg = load_cfg(None, ["EXPERIMENT.NAME", "__import__('os').system('touch owned')"])
    assert cfg.EXPERIMENT.NAME.startswith("__import__")
    with pytest.raises(UserError, match="expected a number"):
        load_cfg(None, ["SOLVER.LR", "__import__('os').getpid()"])


def test_json(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"last": {"deployed_top1": "1e999"}, "best": [], "student": 3}))
    with pytest.raises(UserError, match="is not the summary.json of a run"):
        read_references([str(tmp_path / "s.json")])
    (tmp_path / "img").mkdir()
    cache = stats.FolderCache(tmp_path / "img", "x", [])
    cache.save(mean=[{"__class__": "os.system"}] * 3, std=[1, 1, 1])
    assert cache.load_statistics() is None
