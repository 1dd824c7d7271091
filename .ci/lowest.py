"""Print the lowest versions that pyproject.toml allows, as pip's constraints; torch is chosen apart."""

import itertools
import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
lowest = {}
for requirement in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
    if found := re.fullmatch(r"([\w-]+)(?:\[[\w,-]+\])?>=([\d.]+)", requirement):
        lowest[found[1]] = found[2]
lowest.pop("torch")
print("\n".join(f"{name}=={version}" for name, version in lowest.items()))
