"""The lines of docs/deploy.md run where neither PyTorch nor this library can be imported."""

import re
import sys

import pytest

from mdistiller.export.opening import open_runner
from mdistiller.export.predict import predict
from tests.processes import REPO

FORBIDDEN = """import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "mdistiller"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.usefixtures("onnx_libraries")
def test_the_five_lines_classify_a_picture(exported, session_folder, started):
    text = (REPO / "docs" / "deploy.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert sum(map(bool, lines.splitlines())) == 5
    export = exported().path
    picture = session_folder / "images" / "val" / "class_2" / "0.png"
    process = started(sys.executable, "-c", FORBIDDEN + lines, export, picture)
    status, out, err = process.finish()
    assert status == 0, err
    predictions, _ = predict(open_runner(session_folder / "SFAKD" / "student_best.pth"), [picture], 1)
    assert out.split() == [predictions[picture][0].name]
