"""The wheel in an environment of its own, and a fresh clone: configs, command and modules, as on a machine that is not
ours: paths with blanks and other letters, an empty home, files of the code that cannot be written, another umask."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ("model=synthetic", "d_sae=32", "num_tokens=2048", "batch_size=128", "train.held_out_tokens=0", "report=false")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]  # its fixture is made once


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the tree, as a read-only or shared checkout would not take what building leaves."""
    source, made = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("dist")
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", "outputs", "build", "__pycache__", ".*_cache")
    )
    (source / "conf" / "local.yaml").write_text("logger: wandb\n")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", made], cwd=source, check=True)
    (file,) = made.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the commands of a new environment with the wheel, which takes its dependencies from this one."""
    home = tmp_path_factory.mktemp("environment") / "größe mit leer" / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # not its .pth files: no checkout
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--no-config"]
    subprocess.run([*install, "--python", home / "bin" / "python", wheel], check=True)
    read_only(home)
    yield home / "bin"
    read_only(home, "u+w")


def read_only(folder, change="a-w"):
    subprocess.run(["chmod", "-R", change, folder], check=True)


def as_a_stranger(command, folder, environment):
    """A command with an empty home, files that only their owner reads, and no more rights than their modes give."""
    (folder / "home").mkdir(exist_ok=True)
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    gone = ("PYTHONPATH", "HYDRA_FULL_ERROR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    environment = {key: value for key, value in environment.items() if key not in gone}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(folder / "home")}
    return subprocess.run(
        [*bound, *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        umask=0o077,
    )


def run(installed, folder, *words, expect=0, environment=os.environ):
    done = as_a_stranger([installed / words[0], *words[1:]], folder, environment)
    assert done.returncode == expect, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_the_wheel_holds_the_configs_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")} - {"conf/local.yaml"}
    assert {name for name in names if name.startswith("sae_sweeps/conf/")} == {f"sae_sweeps/{name}" for name in ours}
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "sae_sweeps", "analysis", "hydra_plugins",
    }  # fmt: skip
    assert {"sae_sweeps/builtin/model/model.safetensors", "analysis/report/report.html.jinja"} <= names


def test_a_sweep_and_its_table_in_an_empty_folder(installed, tmp_path):
    out = run(installed, tmp_path, "sae-sweeps", "launch", "-m", *SMALL, "penalty=none,ortho", "k=4")
    assert out.count("completed:") == 2
    table = json.loads(run(installed, tmp_path, "sae-sweeps", "table", "outputs", "--format", "json"))
    assert {run["config"]["penalty"] for run in table["runs"]} == {"none", "ortho"}
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert "2 completed" in run(installed, tmp_path, "sae-sweeps", "status", sweep)
    again = run(installed, tmp_path, "python", "-m", "sae_sweeps", "launch", "-m", *SMALL, "penalty=none,ortho", "k=4")
    assert again.count("complete, skipped") == 2
    where = "from sae_sweeps.config.paths import config_dir; print(config_dir())"
    assert Path(run(installed, tmp_path, "python", "-c", where).strip()).is_relative_to(installed.parent)


def test_processes_of_its_own_and_a_penalty_of_the_working_folder(installed, tmp_path):
    shutil.copytree(ROOT / "examples" / "own_components", tmp_path / "conf")
    words = ("sae-sweeps", "launch", *SMALL, "penalty=alignment", "k=4", "cluster=local", "cluster.processes=1")
    assert "completed:" in run(installed, tmp_path, *words)
    assert "penalty=alignment" in run(installed, tmp_path, "sae-sweeps", "schedule", *SMALL, "penalty=alignment")


def test_local_yaml_of_the_working_folder(installed, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "local.yaml").write_text("logger: wandb\n")
    words = ("sae-sweeps", "launch", "--dry-run", *SMALL, "k=4")
    environment = {key: value for key, value in os.environ.items() if key != "SAE_SWEEPS_LOCAL"}
    assert run(installed, tmp_path, *words, environment=environment).startswith("conf/local.yaml sets logger=wandb\n")
    assert "local.yaml" not in run(installed, tmp_path, *words)  # which the suite's environment forbids


def test_mistakes_are_one_sentence(installed, tmp_path):
    out = run(installed, tmp_path, "sae-sweeps", "launch", "penalty=orto", expect=2)
    assert out == "error: penalty=orto: no such choice; did you mean ortho?\n"
    assert run(installed, tmp_path, "sae-sweeps", "table", "nothing", expect=2).startswith("error: ")
    assert "invalid choice" in run(installed, tmp_path, "sae-sweeps", "lunch", expect=2)


def test_a_fresh_clone_that_cannot_be_written(tmp_path):
    clone, folder = tmp_path / "klon größe", tmp_path / "arbeit mit leer"
    folder.mkdir()
    ignored = shutil.ignore_patterns(".git", ".venv*", "outputs", "build", "__pycache__", ".*_cache", "tests")
    shutil.copytree(ROOT, clone, ignore=ignored)
    read_only(clone)
    before = sorted(clone.rglob("*"))
    launch = [sys.executable, clone / "launch.py"]
    try:
        done = as_a_stranger([*launch, *SMALL, "k=4", "outputs=aus gabe"], folder, os.environ)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        (run_folder,) = (folder / "aus gabe" / "runs").iterdir()
        again = as_a_stranger(
            [sys.executable, clone / "launch.py", "--from", run_folder, "report=false"], folder, os.environ
        )
        assert again.returncode == 0 and "bit for bit the numbers" in again.stdout, f"{again.stdout}\n{again.stderr}"
        assert sorted(clone.rglob("*")) == before
        assert {path.stat().st_mode & 0o077 for path in run_folder.rglob("*")} == {0}
    finally:
        read_only(clone, "u+w")
