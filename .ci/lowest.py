"""Print the lowest versions that pyproject.toml allows this Python, as pip's constraints; torch is chosen apart."""

import itertools
import re
import sys
import tomllib
from pathlib import Path

REQUIREMENT = re.compile(r"""([\w-]+)(?:\[[\w,-]+\])?>=([\d.]+)(?:; python_version >= '(\d+)\.(\d+)')?""")


def lowest(project: dict, python: tuple[int, int]) -> dict[str, str]:
    """The lowest version of each requirement for a Python: of several that hold, the last, which is the higher."""
    found = {}
    for requirement in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        if match := REQUIREMENT.fullmatch(requirement):
            name, version, *since = match.groups()
            if since == [None, None] or python >= tuple(map(int, since)):
                found[name] = version
    return found


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    for name, version in lowest(project, sys.version_info[:2]).items():
        if name != "torch":
            print(f"{name}=={version}")
