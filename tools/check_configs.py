"""Compare the shipped configurations with the published hyper-parameters in tools/published_values.yaml."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import yaml

from mdistiller.cli import OneLineParser, run
from mdistiller.engine.cfg import CFG, load_cfg
from mdistiller.engine.cfg.values import leaves
from mdistiller.engine.cfg.yaml_files import parse
from mdistiller.errors import UserError, did_you_mean
from mdistiller.paths import read_text

TOOLS = Path(__file__).resolve().parent
TABLE = TOOLS / "published_values.yaml"
CONFIGS = TOOLS.parent / "configs"

# prefixes of the keys that do not change the trained student: names of the run, its files, and the machine
FREE = ("EXPERIMENT.", "LOG.", "DATASET.NUM_WORKERS", "DATASET.TEST.", "DISTILLER.TEACHER_WEIGHTS")


class Entry(NamedTuple):
    """The table's entry for one configuration.

    Attributes:
        source: where its values were published, or `ours: ` and the reason why they were not.
        values: `{key: published value}`.
        free: prefixes of the keys that may have any value.
    """

    source: str
    values: Dict[str, Any]
    free: Tuple[str, ...]


class Value(NamedTuple):
    """A hyper-parameter of a configuration, and its published value."""

    key: str
    published: Any  # a note if the table does not list the key
    ours: Any
    differs: bool


def read_table(path: Path) -> Dict[str, Entry]:
    """Return the entries of a table, by path of the configuration relative to the folder of configurations.

    Raises:
        UserError: the file cannot be read, refers to something missing, names an unknown key, or has two entries for a
            path.
    """
    try:
        table = parse(read_text(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"table {path} cannot be read: {error}") from None
    if not isinstance(table, dict):
        raise UserError(f"table {path} holds a {type(table).__name__}; expected sections such as groups:")
    known = dict(leaves(CFG))
    entries: Dict[str, Entry] = {}
    try:
        for group in table["groups"]:
            for pair in [*group.get("pairs", {}), *group.get("ours", {})]:
                name = group["path"].format(pair=pair)
                if name in entries:
                    raise UserError(f"table {path} has two entries for {name}; remove one")
                entries[name] = _entry(table, group, pair)
                for key in entries[name].values:
                    if key not in known:
                        raise UserError(f"table {path}: unknown key {key} of {name}{did_you_mean(key, known)}")
    except KeyError as error:
        raise UserError(f"table {path} refers to {error}, which it does not define") from None
    return entries


def _entry(table: Dict[str, Any], group: Dict[str, Any], pair: str) -> Entry:
    reason = group.get("ours", {}).get(pair)
    if "schedule" not in group:
        return Entry(f"ours: {reason}", {}, ("",))
    schedule = dict(table["schedules"][group["schedule"]])
    students = schedule.pop("students", {})
    models = table["pairs"].get(pair, {"STUDENT": pair})
    values = {
        **schedule,
        **students.get(models["STUDENT"], {}),
        **{f"DISTILLER.{role}": model for role, model in models.items()},
        **group["values"],
        **group.get("pairs", {}).get(pair, {}),
    }
    if reason is None:
        return Entry(table["sources"][group["source"]], values, FREE)
    return Entry(f"ours: {reason}", values, (*FREE, f"{values['DISTILLER.TYPE']}."))


def compare(config: Path, entry: Entry) -> List[Value]:
    """Return the published values of a configuration, and its values that are not published, default or free."""
    defaults = dict(leaves(CFG))
    rows = []
    for key, value in leaves(load_cfg(str(config))):
        if key in entry.values:
            rows.append(Value(key, entry.values[key], value, value != entry.values[key]))
        elif value != defaults.get(key) and not key.startswith(entry.free):
            rows.append(Value(key, f"not listed (by default {defaults.get(key)})", value, True))
    return rows


def print_comparison(folder: Path, entries: Dict[str, Entry], every_value: bool) -> bool:
    """Print a line for each configuration and each difference; return whether there are no differences.

    Args:
        folder: of the configurations. Its folder `_base_` has parts of others, `studies` has grids of runs.
        entries: from `read_table`.
        every_value: whether to print values that do not differ, too.
    """
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")}
    names = {name for name in names if not name.startswith(("_base_/", "studies/"))}
    faults = compared = 0
    for name in sorted(names | set(entries)):
        if name not in entries:
            faults += 1
            print(f"{name}: NOT LISTED; add its published values to the table, or a reason why it has none")
            continue
        if name not in names:
            faults += 1
            print(f"{name}: MISSING; the table lists it, but there is no such file in {folder}")
            continue
        entry = entries[name]
        rows = compare(folder / name, entry)
        differing = [row for row in rows if row.differs]
        faults += len(differing)
        compared += len(entry.values)
        print(f"{name}: {'DIFFERS' if differing else 'ok'}, {len(entry.values)} values ({entry.source})")
        for key, published, ours, differs in rows if every_value else differing:
            print(f"  {key}: published {published}, here {ours}, {'DIFFERS' if differs else 'ok'}")
    print(f"{len(names)} configurations, {compared} values compared, {faults} differences")
    return not faults


def main() -> None:
    parser = OneLineParser(prog="tools/check_configs.py", description=__doc__)
    parser.add_argument("--configs", type=Path, default=CONFIGS, metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--values", action="store_true", help="print all values, not only those that differ")
    args = parser.parse_args()
    if not args.configs.is_dir():
        parser.error(f"--configs {args.configs} is not a folder")
    if not print_comparison(args.configs, read_table(args.table), args.values):
        sys.exit(1)


if __name__ == "__main__":
    run(main, interrupted="start again")
