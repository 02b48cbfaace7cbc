"""YAML as data only: no tags that build objects, no key given twice, no values that grow without bound."""

from __future__ import annotations

from typing import Any

import yaml

MOST_PARTS = 100_000  # values in a configuration; the largest shipped one has fewer than 100


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which however lets the last of equal keys win, and reads what looks like a date as one."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {name} is given twice", key.start_mark)
            seen.update({name} - {None})
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_PARTS:  # merges (<<) of merges
            raise yaml.constructor.ConstructorError(None, None, "too many merged keys", node.start_mark)


def parse(text: str) -> Any:
    """Return what YAML text says, in dictionaries, lists and scalars.

    Raises:
        yaml.YAMLError: it is not YAML, or not plain; or it has more than 100,000 values once its anchors (&) are
            written out, as one that leads back to itself has.
    """
    try:
        content = _Loader(text).get_single_data()
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise yaml.YAMLError(str(error)) from None
    left, parts = [content], 0
    while left:
        node = left.pop()
        parts += 1
        left += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        if parts + len(left) > MOST_PARTS:
            raise yaml.YAMLError(f"more than {MOST_PARTS} values; an anchor (&) may lead back to itself: write it out")
    return content
