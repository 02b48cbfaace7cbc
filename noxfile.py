"""Run the tests with the newest and the oldest supported versions: `nox`, or `nox --list` and `nox -s NAME`."""

import nox

OLDEST = ("torch==2.4.0", "torchvision==0.19.0")
PROJECT = ("-r", "requirements.txt", "-e", ".[test]")
PYTEST = ("python", "-m", "pytest", "-n", "3", "--dist", "worksteal")


@nox.session(python=["3.11", "3.13"])
def newest(session: nox.Session) -> None:
    """Run the linters, and all tests with the newest PyTorch."""
    session.install(*PROJECT)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run(*PYTEST, *session.posargs)


@nox.session(python=["3.8", "3.11"])
def oldest(session: nox.Session) -> None:
    """Run all tests with the oldest PyTorch."""
    session.install(*OLDEST, *PROJECT)
    session.run(*PYTEST, *session.posargs)


@nox.session(default=False)
def shuffled(session: nox.Session) -> None:
    """Run all tests in random order. pytest prints the seed; `-- --randomly-seed=N` repeats the order."""
    session.install(*PROJECT, "pytest-randomly")
    session.run(*PYTEST, *session.posargs)
