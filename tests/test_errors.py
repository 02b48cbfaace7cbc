"""Helpers for messages."""

import importlib.util

import pytest

from mdistiller.errors import UserError, check_libraries


def test_missing_libraries_are_named_with_the_command_that_installs_them(monkeypatch):
    libraries = {"json": "json", "jinja2": "Jinja2", "scipy": "scipy"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name != "json" else object())
    with pytest.raises(UserError) as caught:
        check_libraries("a page", "pages", libraries)
    assert str(caught.value) == "a page needs Jinja2 and scipy; install them with: pip install 'mdistiller[pages]'"
    monkeypatch.undo()
    check_libraries("a page", "pages", {"json": "json"})
