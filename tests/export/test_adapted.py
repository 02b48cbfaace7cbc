"""Students of libraries and of the user's own code are exported, proven, and predict; or are refused in one line."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from mdistiller.export import export as exports
from mdistiller.export.export import export_student
from mdistiller.export.formats.torch_file import open_torch
from mdistiller.export.opening import open_runner
from mdistiller.export.options import Options
from mdistiller.export.predict import predict

VIT = {"patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2}
STUDENTS = {
    "timm CNN": ("timm/test_efficientnet", "SFAKD", {}, ("onnx", "half", "int8", "safetensors")),
    "timm ViT": ("timm/vit_tiny_patch16_224", None, VIT, ("onnx", "half", "int8", "torch", "safetensors")),
    "torchvision": ("torchvision/shufflenet_v2_x0_5", None, {}, ("onnx", "safetensors")),
    "own code": ("tests.export.networks:Decides", "SIMKD", {}, ("onnx", "half", "int8", "safetensors")),
}  # name, head, arguments, formats; `torch` once, because tracing takes seconds
FORMATS = {
    "onnx": {},
    "half": {"half": True},
    "int8": {"int8": True},
    "torch": {"format": "torch"},
    "safetensors": {"format": "safetensors"},
}


@pytest.fixture
def same_process(monkeypatch):
    """Prove `.pt2` files without a fresh process, which imports PyTorch for seconds; test_export.py has one."""

    class SameProcess(SimpleNamespace):
        def __init__(self, path):
            super().__init__(run=open_torch(path).run)

        def __enter__(self):
            return self

        def __exit__(self, *given):
            pass

    monkeypatch.setattr(exports, "FreshProcess", SameProcess)


@pytest.mark.usefixtures("old_exporter", "same_process", "onnx_libraries")
@pytest.mark.parametrize("which", STUDENTS)
def test_each_format(make_student, image_folder, which):
    arch, head, arguments, forms = STUDENTS[which]
    library = arch.partition("/")[0]
    if library == "timm":
        pytest.importorskip("timm", reason="needs the extra 'timm'")
    path, name = make_student(head, arch, arguments), arch if ":" in arch else ""
    needed = f"the module tests.export.networks must be there, and named (-m {arch})" if name else f"{library} must be"
    pictures = sorted((image_folder / "val").rglob("*.png"))[::5]
    expected, _ = predict(open_runner(path, model=name), pictures, 3)
    for form in forms:
        result = export_student(path, Options(model=name, max_drop=100, **FORMATS[form]))
        found, faults = predict(open_runner(result.path, model=name), pictures, 3)
        assert list(found) == pictures and not faults
        if form in ("onnx", "torch", "safetensors"):
            assert (result.proof.changed, result.proof.agreement) == (0, 100)
            for picture in pictures:
                before, after = ({guess.name: guess.probability for guess in g[picture]} for g in (expected, found))
                assert after == pytest.approx(before, abs=1e-3)
        card = result.card.read_text(encoding="utf-8")
        assert ("The code of the network is not needed" in card) == (form != "safetensors")
        assert (needed in card) == (needed in result.report()) == (form == "safetensors")


def test_the_strict_mode_of_torch_export_is_tried_too(make_student, same_process):
    arch = "tests.export.networks:Counts"
    result = export_student(make_student(None, arch), Options("torch", model=arch))
    assert result.made_by.startswith("torch.export.export(strict=True)") and result.proof.changed == 0
    assert re.match(r"torch.export.export\(strict=False\) failed: ", result.notes[0])


@pytest.mark.parametrize(
    ("network", "form", "reason"),
    [
        ("Decides", "torch", r"torch.export.export\(strict=True\) failed: "),
        ("Loops", "torch", "failed: Constraints violated .batch.!"),
        ("Loops", "onnx", "dynamo=False.* failed: the file cannot run .*for 18 images and 3 classes"),
    ],
)
def test_what_cannot_be_exported_is_one_line(command, make_student, old_exporter, network, form, reason, request):
    if form == "onnx":
        request.getfixturevalue("onnx_libraries")
    arch = f"tests.export.networks:{network}"
    path = make_student(None, arch)
    status, out, err = command("export", "-c", path, "-m", arch, "--format", form)
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert re.search(f"cannot be exported by --format {form}, so nothing was written .*{reason}", err), err
    assert err.endswith("; give another --format\n")
    assert [file.name for file in path.parent.iterdir()] == ["student_best.pth"]


def test_files_of_own_code_are_named_without_their_folder(tmp_path, make_student, image_folder):
    path = make_student(None, "tests.export.networks:Plain")
    (tmp_path / "mine.py").write_text("from tests.export.networks import Plain\n", encoding="utf-8")
    arch = f"{tmp_path}/mine.py:Plain"
    torch.save({**torch.load(path, weights_only=True), "arch": arch}, path)
    result = export_student(path, Options("safetensors", model=arch))
    card = result.card.read_text(encoding="utf-8")
    assert "# mine.py:Plain for imagefolder" in card and str(tmp_path) not in card
    assert "the file mine.py must be there, and named (-m mine.py:Plain)" in card
    with safe_open(result.path, "pt") as file:
        assert json.loads(file.metadata()["mdistiller"])["arch"] == "mine.py:Plain"
