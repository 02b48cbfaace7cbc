"""Package metadata; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
version = re.search(r'__version__ = "(.+)"', (here / "mdistiller/__init__.py").read_text(encoding="utf-8"))
assert version

setup(
    name="mdistiller",
    version=version.group(1),
    description="Knowledge distillation of image classifiers, with SFAKD",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["mdistiller", "mdistiller.*"]),
    python_requires=">=3.8",
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.22",
        "Pillow>=9.1",
        "yacs>=0.1.8",
        "PyYAML>=5.4",
        "tqdm>=4.60",
        "tensorboardX>=2.6",
        "wandb>=0.16",
        "safetensors>=0.4",
    ],
    extras_require={
        "test": [
            "pytest>=7.4",
            "pytest-timeout>=2.2",
            "pytest-xdist>=3.5",
            "psutil>=5.9",
            "ruff>=0.5",
            "mypy>=1.8",
            "types-PyYAML",
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
