"""Package metadata. Tool settings are in pyproject.toml; requirements are in requirements.txt."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
version = re.search(r'__version__ = "(.+)"', (here / "mdistiller/__init__.py").read_text(encoding="utf-8"))
assert version
# lines such as `torch>=2.4`, without comments and without the project itself (`-e .`)
requirements = re.findall(r"^\w[^\s#]*", (here / "requirements.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)


TIMM = "timm>=1.0.12"  # models by name, optimizers
WEBDATASET = "webdataset>=0.2.100"  # writes shards; 0.2.100 supports Python 3.8
DATASETS = "datasets>=3.1"  # Parquet and Arrow tables; 3.1 is the newest version for Python 3.8


class BuildWithShippedFiles(build_py):
    """Copies the shipped files (see `mdistiller.paths`) into the package, as `mdistiller/shipped/`.

    An editable installation finds these files in the clone.
    """

    def run(self):
        super().run()
        if not self.editable_mode:
            for folder in ("configs", "data/fashion-mnist-part", "download_ckpts/demo"):
                target = Path(self.build_lib, "mdistiller/shipped", folder)
                shutil.rmtree(target, ignore_errors=True)  # from an earlier build
                shutil.copytree(here / folder, target)


# the newest versions for Python 3.8 are onnx 1.17 and onnxruntime 1.19
EXPORT = ["onnx>=1.15", "onnxruntime>=1.17", "onnxscript>=0.1; python_version >= '3.9'"]
STUDY = ["scipy>=1.7", "matplotlib>=3.6"]  # Student's t, and plots
REPORT = ["matplotlib>=3.6", "Jinja2>=3.0"]

setup(
    name="mdistiller",
    version=version.group(1),
    description="Knowledge distillation of image classifiers, with SFAKD",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["mdistiller", "mdistiller.*"]),
    package_data={"mdistiller.report": ["template/*"]},
    cmdclass={"build_py": BuildWithShippedFiles},
    entry_points={
        "console_scripts": [
            "mdistiller-train = mdistiller.commands.train:command",
            "mdistiller-eval = mdistiller.commands.eval:command",
            "mdistiller-fetch-ckpts = mdistiller.commands.fetch_ckpts:command",
            "mdistiller-export = mdistiller.commands.export:command",
            "mdistiller-predict = mdistiller.commands.predict:command",
            "mdistiller-report = mdistiller.commands.report:command",
            "mdistiller-make-shards = mdistiller.commands.make_shards:command",
            "mdistiller-study = mdistiller.commands.study:command",
        ]
    },
    python_requires=">=3.8",
    install_requires=requirements,
    extras_require={
        "export": EXPORT,
        "hub": ["huggingface_hub>=0.20"],
        "report": REPORT,
        "study": STUDY,
        "cluster": ["submitit>=1.5"],  # SLURM jobs
        "timm": [TIMM],  # models and optimizers
        "webdataset": [WEBDATASET],
        "huggingface": [DATASETS],
        "test": [
            *EXPORT,
            *REPORT,
            *STUDY,
            "huggingface_hub>=0.20",
            "submitit>=1.5",
            "timm>=1.0.12",
            "filelock>=3.12",
            "pytest>=7.4",
            "pytest-timeout>=2.2",
            "pytest-xdist>=3.5",
            "ruff>=0.5",
            "mypy>=1.8",
            "types-PyYAML",
            "setuptools>=70.1",  # tests build a wheel
            TIMM,
            WEBDATASET,
            DATASETS,
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
