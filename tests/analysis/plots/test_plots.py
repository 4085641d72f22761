import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from analysis.__main__ import main
from analysis.plots.draw import draw, known
from analysis.plots.features import by_moment, pooled, seriated
from analysis.plots.outcomes import front
from analysis.plots.registry import PLOTS
from analysis.plots.study import Missing, Study, evenly, thinned_rows
from analysis.plots.style import COLOURS, GREY, palette_bytes, small_png, style, svg
from analysis.reading.imports import Import, imported_run
from analysis.tables.compare import table
from sae_sweeps.errors import ConfigError, DamagedFile
from sae_sweeps.storage.files import write_json
from sae_sweeps.storage.rows import RowFile
from sae_sweeps.storage.run_folder import RunFolder
from tests.analysis.outputs import add_run
from tests.analysis.trained import add_trained

HOSTILE = "_a $x_1$ <b>&\x1b[31m\u202e\n\\frac"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("plots") / "outputs"
    for weight, tags in ((0.1, ["baseline"]), (0.5, [])):
        for seed in (0, 1):
            config = {"penalty.lambda2_max": weight, "seed": seed, "tags": tags}
            add_trained(outputs, f"w{weight}s{seed}", config, {"l0": 30 + weight})
    add_trained(outputs, "other", {"penalty": {"name": HOSTILE}, "title": HOSTILE}, {"l0": 20.0})
    return outputs


@pytest.fixture(scope="module")
def study(outputs):
    return Study.of([outputs])


def test_seeds_fold_into_arms(study):
    assert sorted(len(variant.rows) for variant in study.variants) == [1, 2, 2]
    assert len({variant.label for variant in study.variants}) == 3
    variant = next(variant for variant in study.variants if len(variant.rows) == 2)
    steps, values = study.curve(variant, "held_out_fvu")
    assert steps.tolist() == [0, 3, 6, 9, 11] and values.shape == (2, 5)
    rows = [study.folder(row).metrics.rows() for row in variant.rows]
    assert values[:, 1].tolist() == [found[3]["held_out_fvu"] for found in rows]


def test_equal_seeds_and_unknown_configs_stay_apart(tmp_path):
    for run_id in "abc":
        add_run(tmp_path, run_id, {"seed": 0})
    (tmp_path / "runs" / "b" / "results.json").unlink()
    (tmp_path / "runs" / "b" / "config.yaml").unlink()
    assert len(Study.of([tmp_path]).variants) == 3


@pytest.mark.parametrize("name", PLOTS)
def test_every_figure_draws_with_everything_there(study, name):
    with style():
        fig = PLOTS[name].draw(study)
    assert fig.axes and any(ax.has_data() for ax in fig.axes)
    inside = [ax.get_position() for ax in fig.axes]
    assert all(0 <= p.x0 < p.x1 <= 1 and 0 <= p.y0 < p.y1 <= 1 for p in inside)


def test_files_are_whole_and_the_same_each_time(outputs, tmp_path):
    told = []
    files = draw([outputs], tmp_path / "a", ["pareto"], told.append)
    draw([outputs], tmp_path / "b", ["pareto"], told.append)
    assert [file.name for file in files] == ["pareto.png", "pareto.svg"] and len(told) == 2
    with Image.open(files[0]) as image:
        assert image.width > 600
    words = (tmp_path / "a" / "pareto.svg").read_text()
    assert words == (tmp_path / "b" / "pareto.svg").read_text()
    tree = ElementTree.fromstring(words)
    assert not [element for element in tree.iter() if element.tag.endswith(("}b", "}script"))]
    assert "dc:date" not in words and "$x_1$" in words and "\u202e" not in words


def texts(fig):
    return [text.get_text() for ax in fig.axes for text in ax.texts]


def drawn(name, study):
    with style():
        return PLOTS[name].draw(study)


NAMED = {
    "selective": ("training_curves", "evaluation_metrics", "sparsity_analysis"),
    "contrastive": ("training_metrics", "unlearning_scores"),
    "bottleneck": ("unlearning_scores", "training_curves", "group_mi", "feature_metrics"),
    "progressive": ("penalty_and_reconstruction", "gradient_norms", "similarity_matrices", "competition"),
}
"""Figures that the studies' records name, and those that the progressive one asks for."""


def test_the_figures_of_the_records_exist_under_their_names():
    assert {name for names in NAMED.values() for name in names} <= set(PLOTS)
    assert known(["unlearning", "budgets", "unlearning_scores"]) == ["unlearning_scores", "training_metrics"]


def test_their_panels(study):
    titles = {
        name: [ax.get_title(loc="left") for ax in drawn(name, study).axes]
        for name in ("training_metrics", "feature_metrics")
    }
    assert titles["training_metrics"][:2] == ["training steps", "final total loss"]
    assert titles["feature_metrics"] == ["final sparsity loss", "final L2 loss", "final MI loss"]
    assert [ax.get_title(loc="left")[:2] for ax in drawn("sparsity_analysis", study).axes] == ["L0", "L1"]
    assert drawn("training_curves", study).axes[0].get_yscale() == "log"
    for variant in study.variants:
        last = [study.folder(row).metrics.rows()[-1] for row in variant.rows]
        assert study.final_values(variant, "recon_loss") == [row["recon_loss"] for row in last]
        steps, weighted = study.curve(variant, "weighted_penalty")
        assert weighted[:, -1].tolist() == [row["penalty_loss"] * row["penalty_weight"] for row in last]
        assert study.curve(variant, "penalty_share")[1][:, -1].tolist() == [
            row["penalty_loss"] * row["penalty_weight"] / row["loss"] for row in last
        ]


def test_a_run_without_a_number_has_a_word_in_its_row(tmp_path):
    """Never a bar of 0, and never no row at all."""
    runs = [
        imported_run("n/0", "Run 0", {}, {"final_loss": 200.0, "l0": 0.0, "unlearning_score": 0.0}, 10),
        imported_run("n/1", "Run 1", {}, {"final_loss": float("nan"), "unlearning_score": 0.0}, 10, "diverged"),
        imported_run("n/2", "Run 2", {}, {"final_loss": None, "l0": 85.0}, 0, "untrained"),
        imported_run("n/3", "Run 3", {}, {"l0": 85.0}),
    ]
    file = tmp_path / "notes.json"
    write_json(file, Import("notes", "notes.txt", "notes", runs).to_json())
    add_run(tmp_path / "outputs", "gone", {"seed": 1}, state="diverged", step=7)
    add_run(tmp_path / "outputs", "open", {"num_tokens": 2}, state="running", step=7)
    study = Study.of([file, tmp_path / "outputs"])
    assert texts(drawn("unlearning_scores", study)) == ["0", "0", "not recorded", "not recorded", "diverged"]
    assert texts(drawn("training_metrics", study))[:10] == [
        *("10", "10", "0", "7", "not recorded"),
        *("200", "NaN", "None", "not recorded", "diverged"),
    ]
    assert texts(drawn("sparsity_analysis", study)) == ["0", "85", "85", "not recorded", "diverged"]
    labels = [label.get_text() for label in drawn("sparsity_analysis", study).axes[0].get_yticklabels()]
    assert labels == ["Run 0", "Run 1, diverged", "Run 2, untrained", "Run 3", "num_tokens=100,000, diverged"]
    with pytest.raises(Missing, match="no run has logged a step"):
        drawn("training_curves", study)


def test_seeds_that_diverged_are_counted(tmp_path):
    for seed, state in enumerate(("completed", "diverged", "completed")):
        add_run(tmp_path, f"run{seed}", {"seed": seed}, state=state)
    (variant,) = Study.of([tmp_path]).variants
    assert variant.ended == "1 of 3 diverged"


def test_labels_stay_distinct_when_they_are_long(tmp_path):
    long = {"architecture.aux_weight": 0.03125, "penalty.base_threshold": 0.123456789, "train.checkpoint_every": 12345}
    for number, penalty in enumerate(("selective_ortho", "adaptive_sharing", "none")):
        add_run(tmp_path, f"run{number}", {"penalty.name": penalty} | {k: v + number for k, v in long.items()})
    assert [v.label for v in Study.of([tmp_path]).variants] == [
        *("penalty=selective_ortho", "penalty=adaptive_sharing", "penalty=none"),
    ]
    titled = tmp_path / "titled"
    for run_id in "ab":
        add_run(titled, run_id, {"num_tokens": run_id}, title=f"{'the same words, ' * 5}{run_id}")
    labels = [variant.label for variant in Study.of([titled]).variants]
    assert len(set(labels)) == 2 and all(len(label) <= 48 for label in labels)


def test_pairs_of_runs_with_and_without_a_penalty(tmp_path):
    """Files of before, with the monitor `competition` alone, are drawn beside those of today."""
    add_trained(tmp_path, "today", {"penalty.name": "ortho"})
    plain = RunFolder(add_trained(tmp_path, "plain", {"penalty.name": "none"}))
    older = RunFolder(add_trained(tmp_path, "older", {"penalty.lambda2_max": 9}))
    for run, keep in ((plain, lambda r: r["monitor"] == "pairs"), (older, lambda r: r["monitor"] == "competition")):
        records = [record for record in run.monitors.rows() if keep(record)]
        if run is plain:
            records = [{key: value for key, value in record.items() if key != "c"} for record in records]
        run.monitors.path.write_text("".join(json.dumps(record) + "\n" for record in records))
    study = Study.of([tmp_path])
    older_variant, plain_variant, _ = study.variants
    assert list(by_moment(study, older_variant.rows[0])) == [25]
    assert list(by_moment(study, plain_variant.rows[0])) == [2, 25]
    assert len(drawn("pair_similarity", study).axes) == 9 and len(drawn("competition", study).axes) == 6
    means = drawn("pair_means", study)
    assert [len(ax.lines) for ax in means.axes] == 9 * [3] + 3 * [2]
    first = by_moment(study, plain_variant.rows[0])[2]
    line = means.axes[3].lines[1]
    assert line.get_xdata().tolist() == [record["step"] for record in first]
    assert np.allclose(line.get_ydata(), [np.mean(record["abs_cosine"][:2]) for record in first])


def test_a_choice_of_many_runs_keeps_one_without_a_penalty(tmp_path):
    for number in range(8):
        penalty = "none" if number == 5 else "ortho"
        add_run(tmp_path, f"r{number}", {"penalty.name": penalty, "lr": number}, {"fvu": 0.1 * number})
    study = Study.of([tmp_path])
    chosen, note = study.sample(study.variants, 3)
    assert [v.rows[0] for v in chosen] == [5, 0, 7] and "beside one without a penalty" in note
    assert study.sample(study.variants, 8) == (study.variants, "")


def test_what_is_missing_is_told_in_a_line(tmp_path, capsys):
    add_run(tmp_path, "a", state="queued")
    assert main(["plots", str(tmp_path), "-o", str(tmp_path / "figures")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PLOTS) + 1 and all(": left out, " in line for line in lines[:-1])
    assert lines[-1] == "nothing to draw" and not (tmp_path / "figures").exists()


def test_words_that_mean_nothing(outputs, capsys):
    with pytest.raises(ConfigError, match="did you mean pareto"):
        draw([outputs], "nowhere", ["paretto"])
    assert main(["plots", "-o", "x"]) == 2 and "no PATH" in capsys.readouterr().err
    assert main(["plots", str(outputs)]) == 2 and "-o DIR" in capsys.readouterr().err
    assert main(["plots", "--list"]) == 0 and len(capsys.readouterr().out.splitlines()) == len(PLOTS)


def test_a_damaged_snapshot_is_named(tmp_path):
    file = add_trained(tmp_path, "a" * 12, {"seed": 0}) / "monitors" / "similarity_50.npz"
    whole = file.read_bytes()
    middle = len(whole) // 2
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    for damaged in (b"", b"nonsense", whole[:middle], whole[:100] + b"?" * 400 + whole[500:], array.getvalue()):
        file.write_bytes(damaged)
        with pytest.raises(DamagedFile, match="similarity_50.npz is damaged; restore it, or remove it"):
            Study.of([tmp_path]).snapshot(0, 50, "block", "histogram", "edges")
    file.write_bytes(whole)
    assert len(Study.of([tmp_path]).snapshot(0, 50, "block", "histogram")) == 2


def test_damaged_files_of_one_run_keep_none_of_the_others_from_a_figure(tmp_path):
    whole, damaged = (add_trained(tmp_path, letter * 12, {"architecture.k": ord(letter)}, n=3) for letter in "ab")
    (damaged / "monitors" / "similarity_50.npz").write_bytes(b"nonsense")
    for name in ("metrics.jsonl", "monitors.jsonl"):
        (damaged / name).write_bytes(b"nonsense\n" + (damaged / name).read_bytes())
    lines = []
    names = ["similarity_matrices", "similarity_histograms", "training_curves", "competition"]
    assert len(draw([tmp_path], tmp_path / "figures", names, lines.append)) == 2 * len(names)
    left_out = [line for line in lines if line.startswith("warning: left out")]
    assert sorted({line.split(" is damaged")[0].rpartition("/")[2] for line in left_out}) == [
        "metrics.jsonl", "monitors.jsonl", "similarity_50.npz",
    ]  # fmt: skip
    assert len(left_out) == 3 and all(str(damaged) in line for line in left_out)
    # a row of another type is a row all the same, and no figure draws it
    write_json(whole / "trained.json", {"warnings": [], "provenance": {}, "digests": RunFolder(whole).log_digests()})
    monitors = whole / "monitors.jsonl"
    monitors.write_text(monitors.read_text().replace("[[", "[3,["))
    lines.clear()
    draw([whole], tmp_path / "figures", names, lines.append)
    assert any(f"left out: {monitors} is not what training wrote" in line for line in lines), lines
    comparison = table([tmp_path])
    assert len(comparison.frame) == 2 and any(
        f"{damaged / 'metrics.jsonl'} is damaged" in w for w in comparison.warnings
    )


def test_many_runs_stay_legible(tmp_path):
    for number in range(50):
        add_trained(tmp_path, f"r{number:02}", {"architecture.lr": number / 1000}, {"fvu": 1 / (1 + number)}, n=3)
    study = Study.of([tmp_path])
    with style():
        curves, bars = PLOTS["training_curves"].draw(study), PLOTS["evaluation_metrics"].draw(study)
    (legend,) = curves.legends
    assert [text.get_text() for text in legend.get_texts()][0] == "lr=0.049" and len(legend.get_texts()) == 5
    assert len(curves.axes[0].lines) == 50
    assert [line.get_color() for line in curves.axes[0].lines].count(GREY) == 45
    assert len(bars.axes[0].get_yticks()) == 20
    assert "20 of 50" in " ".join(text.get_text() for text in bars.texts)


def test_the_front_is_what_nothing_beats():
    draw = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in draw.integers(0, 12, (60, 2))]
    for better, sign in (("higher", 1), ("lower", -1)):
        slow = {
            (x, y)
            for x, y in points
            if not any(a <= x and sign * b >= sign * y and (a, b) != (x, y) for a, b in points)
        }
        assert front(points, better) == sorted(slow)
    assert front([]) == []


def test_a_matrix_in_another_order_and_in_fewer_squares():
    draw = np.random.default_rng(1)
    group = draw.permutation([0] * 10 + [1] * 10)
    cosine = np.where(group[:, None] == group, 0.8, 0.05) + 0.01 * draw.random((20, 20))
    cosine = (cosine + cosine.T) / 2
    found = seriated({25: cosine, 100: cosine})
    for block in found.values():
        assert np.allclose(np.sort(block, None), np.sort(np.where(np.eye(20) == 1, 0, cosine), None))
        assert block[:10, :10].mean() > 5 * block[:10, 10:].mean()  # alike ones side by side
    wide = draw.random((30, 30))
    small = pooled(wide, 8)
    assert small.shape == (8, 8) and small.max() == wide.max() and small[1, 2] == wide[4:8, 8:12].max()


def test_few_rows_of_many_are_read(tmp_path):
    file = RowFile(tmp_path / "metrics.jsonl")
    for step in range(1000):
        file.append({"step": step, "loss": 1.0, **({"held_out_fvu": 0.5} if step % 50 == 0 else {})})
    file.close()
    rows = thinned_rows(file, 60)
    assert len(rows) <= 60 and rows[-1]["step"] == 999
    assert sum("held_out_fvu" in row for row in rows) == 20
    with open(file.path, "ab") as end:
        end.write(b'{"step": 1000, "lo')
    assert thinned_rows(file, 60)[-1]["step"] == 999
    file.path.write_bytes(b"{}}\n" + file.path.read_bytes())
    with pytest.raises(DamagedFile, match="line 1"):
        thinned_rows(file, 60)
    assert thinned_rows(RowFile(tmp_path / "none"), 60) == []
    assert evenly([1, 2, 3], 5) == [1, 2, 3] and evenly(range(100), 3) == [0, 50, 99]


def test_the_palette_keeps_every_colour(study):
    colours = palette_bytes()
    held = {tuple(colours[n : n + 3]) for n in range(0, len(colours), 3)}
    assert len(held) <= 256 and (255, 255, 255) in held
    for colour in COLOURS:
        assert tuple(bytes.fromhex(colour[1:])) in held
    with style():
        fig = PLOTS["sparsity"].draw(study)
        data, words = small_png(fig, 100), svg(fig)
    import io

    with Image.open(io.BytesIO(data)) as image:
        shown = image.convert("RGB").getcolors(1 << 20)
    assert max(shown)[1] == (255, 255, 255)
    assert {rgb for _, rgb in shown} >= {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS[:3]}
    assert "<text" in words  # text stays text
