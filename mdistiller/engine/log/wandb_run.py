"""Starting a Weights & Biases run: online with credentials and a server, otherwise offline. It never prompts.

wandb looks for its credentials itself, because their place changes between versions (0.31 uses another host than 0.24).
"""

from __future__ import annotations

import inspect
import os
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

from ...errors import one_line

TIMEOUT = 10  # seconds without an answer from the server
INIT_TIMEOUT = 30  # seconds until a run is given up
NO_CREDENTIALS = "no credentials"


def start_run(say: Callable[[str], None], **options: Any) -> Any:
    """Start a run with `wandb.init(**options)`; if it cannot be online, start it offline and tell `say` why.

    The user's choice (`WANDB_MODE`, `wandb offline`, `wandb disabled`) is kept.

    Raises:
        Exception: any error of wandb if it cannot log offline either.
    """
    import wandb

    settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT)

    def init(mode: Optional[str]) -> Any:
        return wandb.init(mode=mode, settings=settings, **options)  # type: ignore[arg-type]

    with _without_terminal():
        chosen = wandb.setup(settings=settings).settings
        if chosen.mode not in (None, "online"):
            return init(None)
        reason = _obstacle(wandb, chosen.base_url)
        if reason is None:
            try:
                return init(None)
            except Exception as error:  # the server refused or disappeared
                reason = one_line(error)
        run = init("offline")
    later = f"send the run later with: wandb sync {Path(run.dir).absolute().parent}"
    if reason == NO_CREDENTIALS:
        say(f"wandb: no credentials, logging offline (wandb login, or LOG.WANDB False to switch it off); {later}")
    else:
        say(f"wandb: logging offline ({reason}); {later}")
    return run


def _obstacle(wandb: Any, server: str) -> Optional[str]:
    """Return why a run cannot be online, or `None`."""
    parameters = inspect.signature(wandb.login).parameters
    if "prompt" in parameters:  # since 0.31; checks the credentials with the server
        limit = {"timeout": TIMEOUT} if "timeout" in parameters else {}
        try:
            return None if wandb.login(prompt=False, **limit) else NO_CREDENTIALS
        except Exception as error:  # wandb raises many types
            return one_line(error)
    try:
        known = wandb.api.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    except Exception as error:  # a malformed key
        return one_line(error)
    return _out_of_reach(server) if known else NO_CREDENTIALS


def _out_of_reach(server: str) -> Optional[str]:
    """Return why a server does not answer, or `None`. Early versions of wandb retry for minutes."""
    try:
        urllib.request.urlopen(server, timeout=TIMEOUT).close()
    except urllib.error.HTTPError as answer:  # any answer shows that the server is there
        answer.close()
    except (OSError, ValueError) as error:  # a ValueError: an invalid address
        return f"{server} cannot be reached: {one_line(getattr(error, 'reason', error))}"
    return None


@contextmanager
def _without_terminal() -> Iterator[None]:
    """Replace stdin, so that wandb cannot prompt for a key."""
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = before
