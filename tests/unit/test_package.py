from __future__ import annotations

import importlib
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata

import pytest

import polyalign

STARTER_WEIGHTS_LIMIT_BYTES = 10_000_000


@pytest.fixture(scope="session")
def project(repo):
    return tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="session")
def built(repo, tmp_path_factory):
    """Build the sdist and the wheel as an installer would, and give the members of each with their sizes."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {member.filename: member.file_size for member in archive.infolist()}
    with tarfile.open(sdist) as archive:
        in_sdist = {member.name.split("/", 1)[1]: member.size for member in archive if member.isfile()}
    return {"wheel": in_wheel, "sdist": in_sdist}


def in_checkout(repo, pattern):
    paths = sorted(str(path.relative_to(repo)) for path in repo.glob(pattern) if path.is_file())
    assert paths, f"nothing in the checkout matches {pattern}"
    return paths


@pytest.mark.parametrize("archive", ["wheel", "sdist"])
def test_all_code_and_the_starter_weights_are_packed(archive, built, repo):
    wanted = in_checkout(repo, "polyalign/**/*.py") + in_checkout(repo, "polyalign/data/starter/weights/**/*")
    wanted += in_checkout(repo, "polyalign/data/sources/*.sha256") + in_checkout(repo, "polyalign/data/*.toml")
    assert {*wanted, "polyalign/py.typed"} <= set(built[archive])


@pytest.mark.parametrize("kind", ["recipes", "langs", "suites"])
def test_every_recipe_language_and_suite_is_packed_where_an_installed_package_looks(kind, built, repo):
    files = in_checkout(repo, f"{kind}/*.toml")
    assert set(files) <= set(built["sdist"])
    assert {f"polyalign/{file}" for file in files} <= set(built["wheel"])


def test_the_wheel_holds_only_the_package_and_its_metadata(built):
    tops = {name.split("/")[0] for name in built["wheel"]}
    assert tops == {"polyalign", f"polyalign-{polyalign.__version__}.dist-info"}
    assert not [name for name in built["wheel"] if "__pycache__" in name]


def test_the_sdist_holds_what_a_rebuild_needs(built):
    assert {"pyproject.toml", "README.md", "LICENSE"} <= set(built["sdist"])


def test_each_starter_weight_file_is_small(built):
    sizes = {name: size for name, size in built["wheel"].items() if name.endswith(".safetensors")}
    assert len(sizes) == 2
    assert max(sizes.values()) <= STARTER_WEIGHTS_LIMIT_BYTES


def test_versions_agree(project):
    assert project["version"] == polyalign.__version__ == metadata.version("polyalign")


def test_the_changelog_knows_the_version(repo, project):
    assert f"## {project['version']}" in (repo / "CHANGELOG.md").read_text(encoding="utf-8")


def test_help_starts_without_the_heavy_libraries():
    heavy = {"torch", "transformers", "timm", "datasets", "pandas", "matplotlib", "scipy", "sacrebleu", "peft"}
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from polyalign.cli import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0 and 'train' in result.output, result.output\n"
        f"print(sorted({heavy} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_module_imports(repo):
    for file in in_checkout(repo, "polyalign/**/*.py"):
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if not name.endswith("__main__"):  # that one is the program
            assert importlib.import_module(name).__name__ == name
