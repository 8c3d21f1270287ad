"""Settings of Sphinx. The source folder is the repository, so that links between pages work here as on a code host.

sphinx-build -W -c docs . build/docs
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "bigcircuit"
author = "The bigcircuit developers"
root_doc = "docs/index"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "examples/*.ipynb",
    "benchmarks/*.md",
    "launchers/README.md",
    "docker/README.md",
    "configs/ray/README.md",
]
nb_execution_mode = "off"  # the outputs in the notebooks are shown; tests run the notebooks
myst_heading_anchors = 3
html_theme = "furo"
html_title = "bigcircuit"
html_show_sphinx = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
