"""Put configs and launchers into the wheel, for `--preset paper` and `--deepspeed zero3`; the rest is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("configs", "launchers")


class BuildWithConfigs(build_py):
    """Copies the folders beside the package to `bigcircuit/shipped`. A checkout has them at its root."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in SHIPPED:
            target = Path(self.build_lib) / "bigcircuit" / "shipped" / name
            shutil.copytree(name, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithConfigs})
