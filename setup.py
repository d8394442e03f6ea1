"""Maps the top-level folders to one package; everything else is declared in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = {
    "modes_fx": "modes_fx",
    "modes_fx.passes": "passes",
    "modes_fx.calibration": "calibration",
    "modes_fx.evaluation": "evaluation",
    "modes_fx.export": "export",
    "modes_fx.bench": "bench",
}

setup(
    package_dir=FOLDERS,
    packages=[
        package
        for name, folder in FOLDERS.items()
        for package in [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
    ],
)
