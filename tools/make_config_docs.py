"""Write docs/configuration.md from the comments beside the configuration's defaults: tools/make_config_docs.py."""

from pathlib import Path

from mdistiller.cli import OneLineParser
from mdistiller.engine.cfg.reference import configuration_page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"

if __name__ == "__main__":
    OneLineParser(description="Write docs/configuration.md from the comments beside the defaults.").parse_args()
    PAGE.write_text(configuration_page(), encoding="utf-8")
    print(PAGE)
