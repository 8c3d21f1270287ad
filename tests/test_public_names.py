"""The public names of the package: loaded on first use, and known to editors."""

import ast
import subprocess
import sys
from pathlib import Path

import bigcircuit


def typed() -> dict[str, str]:
    """Public name -> module, from the imports under TYPE_CHECKING."""
    tree = ast.parse(Path(bigcircuit.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


def test_editors_see_the_names_that_are_loaded():
    assert typed() == bigcircuit._MODULES
    assert sorted(bigcircuit.__all__) == sorted(typed())
    assert set(bigcircuit.__all__) <= set(dir(bigcircuit))


def test_the_package_loads_nothing_heavy_before_a_name_is_used():
    code = (
        "import sys, bigcircuit; dir(bigcircuit); heavy = {'torch', 'transformers', 'numpy', 'pydantic'} & sys.modules.keys(); "
        "assert not heavy, heavy; bigcircuit.UserError; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_script_of_a_new_user_has_twelve_statements_at_most_and_no_private_import():
    """`docs/python.md` begins with it; `tests/docs/test_blocks.py` runs it."""
    page = (Path(__file__).parents[1] / "docs/python.md").read_text()
    script = page.partition("<!-- run -->\n```python\n")[2].partition("```")[0]
    nodes = list(ast.walk(ast.parse(script)))
    assert sum(isinstance(node, ast.stmt) for node in nodes) <= 12
    assert [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names] == ["bigcircuit"]
    assert [n.module for n in nodes if isinstance(n, ast.ImportFrom)] == ["transformers"]
    used = {n.attr for n in nodes if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "bigcircuit"}
    assert used <= set(bigcircuit.__all__)
