"""The test suite on the newest and on the oldest supported versions: `nox`, or `nox --list` and `nox -s NAME`."""

import nox

OLDEST = ("torch==2.4.0", "torchvision==0.19.0")
OURS = ("-r", "requirements.txt", "-e", ".[test]")
PYTEST = ("python", "-m", "pytest", "-n", "4", "--dist", "worksteal")


@nox.session(python=["3.11", "3.13"])
def newest(session: nox.Session) -> None:
    """Linters and the whole suite with the newest PyTorch."""
    session.install(*OURS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run(*PYTEST, *session.posargs)


@nox.session(python=["3.8", "3.11"])
def oldest(session: nox.Session) -> None:
    """The whole suite with the oldest PyTorch."""
    session.install(*OLDEST, *OURS)
    session.run(*PYTEST, *session.posargs)


@nox.session(default=False)
def shuffled(session: nox.Session) -> None:
    """The whole suite in a random order, whose seed pytest prints; `-- --randomly-seed=N` repeats it."""
    session.install(*OURS, "pytest-randomly")
    session.run(*PYTEST, *session.posargs)
