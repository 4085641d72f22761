"""conf/local.yaml: a user's own logger and cluster, in every launch and nowhere else."""

import pytest

from sae_sweeps.cli.command import main
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.cli.resume import cluster_of
from sae_sweeps.config import local as module
from sae_sweeps.config.local import SWITCH, local_file, read_local
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.plugins import set_search_path
from sae_sweeps.config.schema import LocalConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.sweeps.plan import make_plan

SLURM = "cluster: slurm\ncluster.partition: gpu\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the conf/local.yaml of the working folder, which is an empty one."""
    monkeypatch.delenv(SWITCH)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    yield (tmp_path / "conf" / "local.yaml").write_text
    set_search_path([])


def composed(*words):
    words = ["model=synthetic", *words]
    return compose_points(words, single=True, local=read_local(words))


def test_one_line_is_enough(write, capsys):
    words = ["--dry-run", "model=synthetic"]
    assert main(words) == 0
    without = capsys.readouterr().out
    write("logger: wandb\n")
    assert main(words) == 0
    assert capsys.readouterr().out == "conf/local.yaml sets logger=wandb\n" + without  # the run's id is in it
    (point,) = composed()
    assert point.cfg.logger.name == "wandb" and point.overrides == ["model=synthetic"]


def test_command_over_file_over_preset(write, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir()
    preset = "# @package _global_\ndefaults: [override /logger: wandb, override /cluster: local]\n"
    (tmp_path / "conf/experiment/mine.yaml").write_text(preset + "logger: {project: preset, entity: preset}\n")
    write("logger: none\nlogger.project: file\n" + SLURM)
    (point,) = composed("experiment=mine")
    assert (point.cfg.logger.name, point.cfg.cluster.name, point.cfg.cluster.partition) == ("none", "slurm", "gpu")
    (point,) = composed("experiment=mine", "logger=wandb", "cluster=inline")
    assert (point.cfg.logger.project, point.cfg.logger.entity) == ("file", "preset")
    assert point.cfg.cluster.name == "inline" and "partition" not in point.cfg.cluster
    (point,) = composed("experiment=mine", "logger=wandb", "wandb_project=word", "cluster.partition=cpu")
    assert (point.cfg.logger.project, point.cfg.cluster.partition) == ("word", "cpu")
    write("cluster.processes: 3\n")  # which the preset's choice has
    (point,) = composed("experiment=mine")
    assert point.cfg.cluster.processes == 3
    for broken in ("[", "- a", "defaults: 5", "\xff"):
        (tmp_path / "conf/experiment/mine.yaml").write_text(broken, encoding="latin-1")
        local = read_local(["experiment=mine"])  # Hydra names what is wrong with the preset
        assert local is not None and local.left_out == ["cluster.processes=3"]


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        ("logger: {name: wandb, entity: lab}", "", "sets logger=wandb logger.entity=lab"),
        ("wandb_entity: lab", "logger=wandb", "sets logger.entity=lab"),
        (
            "wandb_entity: lab",
            "",
            "sets nothing; left out here: logger.entity=lab; logger=none is in use, which has no entity: "
            "add `logger: wandb`",
        ),
        ("logger: {mode: offline}", "", "; logger=none is in use, which has no mode: add `logger: wandb`"),
        ("logger.mode: offline", "logger=none", "sets nothing; left out here: logger.mode=offline"),
        ("logger: wandb", "logger=wandb", "sets logger=wandb"),
        ("logger: wandb", "-m logger=none,wandb", "sets nothing; left out here: logger=wandb"),
        (SLURM, "cluster=inline", "sets nothing; left out here: cluster=slurm cluster.partition=gpu"),
        (SLURM, "cluster.partition=cpu", "sets cluster=slurm; left out here: cluster.partition=gpu"),
        (SLURM, "cluster=slurm_node", "sets cluster.partition=gpu; left out here: cluster=slurm"),
        (
            "cluster.gpus: 0\ncluster.exclusive: true",
            "",
            "left out here: cluster.gpus=0 cluster.exclusive=true; cluster=inline is in use, which has no "
            "exclusive, gpus: add `cluster: slurm` or `cluster: slurm_node`",
        ),
    ],
)
def test_a_launch_prints_what_it_set(write, text, words, sentence):
    write(text)
    local = read_local(["model=synthetic", *words.split()])
    assert local is not None and local.sentence().endswith(sentence) and local.sentence().startswith("conf/local.yaml ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing; write lines of KEY: VALUE, such as `logger: wandb`"),
        ("# a comment\n", "holds nothing"),
        ("- logger: wandb", "holds a list"),
        ("5", "cannot be read"),
        ("logger: [wandb", r"cannot be read \(while parsing"),
        ("logger: wandb\nlogger: none", "cannot be read .*found duplicate key logger"),
        ("logger: wandb\nlogger.name: none", "logger is there twice"),
        ("logger: ${nope}", "cannot be read .*'nope' not found"),
        ("logger", "logger=null: no such choice; did you mean none"),
        ("logger: wand", "logger=wand: no such choice; did you mean wandb"),
        ("cluster: moon", "cluster=moon: no such choice; one of inline, local, slurm"),
        ("k: 8", "k: only keys of logger and cluster belong here"),
        ("loger: wandb", "loger: only keys .* did you mean logger"),
        ("defaults:\n- override /logger: wandb", "defaults: only keys"),
        ("logger.entitty: me", "logger.entitty: no such key; did you mean logger.entity"),
        ("logger: wandb\nlogger.mode: onlin", "logger.mode=onlin: must be one of offline, online"),
        ("logger: {tags: a}", r"logger.tags=a: must be a list of words"),
        (
            "cluster: inline\ncluster.partition: gpu",
            "cluster.partition: cluster=inline has no such key; slurm and slurm_node have it",
        ),
        ("cluster: slurm\ncluster.time: soon", "cluster.time=soon: give minutes"),
        ("cluster.cpus: many", "cluster.cpus=many: must be a whole number"),
    ],
)
def test_a_mistake_in_it_is_one_sentence(write, text, message):
    write(text)
    with pytest.raises(ConfigError, match=f"^conf/local.yaml: {message}") as raised:
        composed()
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read(write, tmp_path, capsys):
    path = tmp_path / "conf" / "local.yaml"
    path.write_bytes(b"logger: \xff\xfe")
    assert main(["model=synthetic"]) == 2 and "local.yaml: cannot be read ('utf-8'" in capsys.readouterr().err
    path.unlink()
    path.symlink_to("nowhere")
    assert main(["model=synthetic"]) == 2 and "(No such file or directory)" in capsys.readouterr().err
    path.unlink()
    path.mkdir()
    assert main(["model=synthetic"]) == 2 and "(Is a directory)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code in (0, None) and "Groups (group=choice)" in capsys.readouterr().out


def test_hydras_own_flags_show_it(write, capsys):
    write("logger: wandb\nlogger.entity: lab")
    main(["model=synthetic", "--cfg", "job", "--package", "logger"])
    assert "name: wandb" in (out := capsys.readouterr().out) and "entity: lab" in out and "sets" not in out
    main(["--info", "defaults", "model=synthetic"])
    assert "local/yaml" in capsys.readouterr().out
    assert main(["local=null"]) == 2 and "local=null: no such key" in capsys.readouterr().err


def test_only_launches_read_it(write):
    write(SLURM + "cluster.qos: high\nlogger: wandb")
    (point,) = compose_points(["model=synthetic"])
    assert (point.cfg.logger.name, point.cfg.cluster.name) == ("none", "inline")
    assert make_plan([point]).runs[0].run_id == make_plan(composed()).runs[0].run_id
    manifest = {"cluster": vars(LocalConfig())}
    assert cluster_of(manifest, []) == LocalConfig()
    assert cluster_of(manifest, ["cluster=slurm"]).qos is None


def test_whose_it_is(write, tmp_path, monkeypatch):
    """The working folder's, else the checkout's; a wheel's own folder holds none."""
    assert local_file() is None or local_file().parent == config_dir()
    other = tmp_path / "checkout"
    (other / "conf").mkdir(parents=True)
    (other / "conf" / "local.yaml").write_text("logger: wandb\n")
    monkeypatch.setattr(module, "config_dir", lambda: other / "conf")
    assert local_file() is None
    (other / "launch.py").touch()
    assert local_file() == other / "conf" / "local.yaml"
    write("logger: none\n")
    assert local_file() is not None and local_file().resolve() == tmp_path / "conf" / "local.yaml"
    monkeypatch.setenv(SWITCH, "none")
    assert local_file() is None and read_local([]) is None
