"""Makes the README's links absolute for a package index, which has none of the pages.

All else of the build: setup.cfg.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PAGES = f"{PROJECT['urls']['Source']}/blob/v{PROJECT['version']}/"  # as the release's tag has them

setup(
    long_description=re.sub(r"\]\((?![a-z]+:|#)", f"]({PAGES}", (ROOT / "README.md").read_text("utf-8")),
    long_description_content_type="text/markdown",
)
