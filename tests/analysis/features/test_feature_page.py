"""Pages about features: the data in them, escaping, size, and SAEDashboard's JSON."""

import base64
import json
import re
import zipfile
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.features import page as pages
from analysis.features.packed import CHUNK, FIFTHS, SIZES
from analysis.features.page import page, shown_of
from analysis.features.stored import all_stored, stored
from sae_sweeps.cli.launch import features_of
from tests.analysis.featured import BINS, HOSTILE, random_activations, write_features
from tests.analysis.outputs import add_run


@pytest.fixture
def run(tmp_path):
    return write_features(tmp_path / "runs" / "aaaa", random_activations(d_sae=CHUNK + 3))


def unpacked(text, *kinds):
    """The arrays in a pack, each given by its type and length."""
    content, found, at = zlib.decompress(base64.b64decode(text)), [], 0
    for kind, n in kinds:
        size = np.dtype(kind).itemsize * n
        planes = np.frombuffer(content[at : at + size], np.uint8).reshape(-1, n) if n else np.zeros((0, 0), np.uint8)
        found.append(np.ascontiguousarray(planes.T).view(kind).ravel() if n else np.zeros(0, kind))
        at += size
    return found, content[at:]


def data_in(text):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def test_the_page_has_the_files_numbers(run):
    one = stored(run, "title")
    (content,) = data_in(page([one], "Title"))["runs"]
    n = one.d_sae
    kinds = [("u4", n)] * 2 + [("f4", n)] * 5 + [("i4", n), ("i4", 3 * n)]
    overview, rest = unpacked(content["overview"], *kinds)
    assert rest == b"" and overview[0].tolist() == one["n_active"].tolist()
    assert overview[2].tolist() == one["top_around"][0, :, 3].tolist()
    assert len(content["chunks"]) == 2
    m = n - CHUNK  # of the second chunk
    fixed = [("f4", m), ("u4", m * BINS)] + [("u4", 3 * m), ("f4", 3 * m)] * 2 + [("i4", 3 * m), ("f4", 3 * m)] * 2
    fixed += [("u4", 2 * m), ("u1", m), ("u1", m)]
    details, _ = unpacked(content["chunks"][1], *fixed)
    assert details[1].tolist() == one["histogram"][CHUNK:].ravel().tolist()
    n_top, n_drawn = details[-2:]
    assert (
        n_top.tolist() == (one["top_place"][:, CHUNK:] >= 0).sum(0).tolist()
        and n_drawn.tolist() == (one["drawn_place"][:, CHUNK:] >= 0).sum(0).tolist()
    )
    n_examples = int(n_top.sum()) + int(n_drawn.sum())
    fixed += [("u4", n_examples), ("u1", n_examples), ("u2", n_examples)]
    details, rest = unpacked(content["chunks"][1], *fixed)
    place, fifth, count = details[-3:]
    (offset, value), rest = (
        unpacked(content["chunks"][1], *fixed, ("u2", count.sum()), ("f4", count.sum()))[0][-2:],
        b"",
    )
    at = example = 0
    for j in range(CHUNK, n):
        for kind, length in (("top", n_top[j - CHUNK]), ("drawn", n_drawn[j - CHUNK])):
            for rank in range(length):
                dense = np.zeros(6, np.float32)
                dense[offset[at : at + count[example]]] = value[at : at + count[example]]
                assert place[example] == one[f"{kind}_place"][rank, j]
                assert dense.tolist() == one[f"{kind}_around"][rank, j].tolist()
                assert fifth[example] == (FIFTHS if kind == "top" else rank * FIFTHS // length)
                at += count[example]
                example += 1


class Elements(HTMLParser):
    """The names of the elements, and of the attributes that run code."""

    def __init__(self, text):
        super().__init__()
        self.names, self.handlers = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_text_is_never_markup(run):
    text = page([stored(run, "</title><img src=x>")], "<script>alert(3)</script>")
    found = Elements(text)
    assert found.names.count("script") == 2 and "img" not in found.names and not found.handlers
    (strings,) = (one["strings"] for one in data_in(text)["texts"].values())
    assert (
        strings["1"] == HOSTILE[0] and strings["2"] == HOSTILE[1] and strings["4"] == "↵" and "\x1b" not in strings["5"]
    )
    assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "document.write" not in text


def test_a_page_shows_fewer_examples_where_all_do_not_fit(run, monkeypatch):
    one = stored(run, "")
    whole, data = page([one], ""), data_in(page([one], ""))
    n_text = len(json.dumps(data["texts"]))
    assert shown_of([one], n_text) == SIZES[0]
    monkeypatch.setattr(pages, "LIMIT", len(whole) * 0.85)
    monkeypatch.setattr(pages, "OWN", len(whole) - len(json.dumps(data)))
    assert (
        shown_of([one], n_text) != SIZES[0] and len(page([one], "")) < 1.02 * pages.LIMIT
    )  # the estimate is of some chunks


def test_saedashboards_json(run, capsys, tmp_path):
    assert main(["features", str(run), "--format", "neuronpedia", "-o", str(tmp_path / "out")]) == 0
    assert "131 features" in capsys.readouterr().out
    batch = json.loads((tmp_path / "out" / "aaaa" / "batch-0.json").read_text())
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("toy", 1, "aaaa") and len(
        batch["features"]
    ) == CHUNK
    one, feature = stored(run, ""), batch["features"][7]
    documented = {
        "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
        "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson",
        "correlated_features_indices", "correlated_features_l1", "correlated_features_pearson", "neg_str", "neg_values",
        "pos_str", "pos_values", "frac_nonzero", "freq_hist_data_bar_values", "freq_hist_data_bar_heights",
        "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "n_prompts_total", "n_tokens_in_prompt",
        "dataset", "activations", "decoder_weights_dist",
    }  # fmt: skip
    assert set(feature) == documented and feature["feature_index"] == 7
    assert sum(feature["freq_hist_data_bar_heights"]) == one["n_active"][7]
    assert feature["pos_str"] == [one.token_texts[i] for i in one["raised"][7]]
    strongest = feature["activations"][0]
    assert set(strongest) == {"bin_min", "bin_max", "bin_contains", "tokens", "values"} and strongest["bin_min"] == -1
    assert max(strongest["values"]) == pytest.approx(float(one.largest[7]), abs=1e-3)
    place = int(one["top_place"][0, 7])
    row = one["tokens"][place // 8][max(place % 8 - 3, 0) : place % 8 + 3]
    assert strongest["tokens"] == [one.token_texts[i] for i in row] and len(strongest["values"]) == len(row)


def test_label_information_is_that_of_the_counts(run):
    from sklearn.metrics import mutual_info_score

    one, f_NLF = stored(run, ""), random_activations(d_sae=CHUNK + 3)
    labels = np.arange(12).repeat(8) % 2
    for j in (0, 50):
        fires = f_NLF[..., j].ravel() > 0
        assert one.label_information[j] == pytest.approx(mutual_info_score(fires, labels) / np.log(2))


def test_runs_of_one_id_have_names_of_their_own(run, tmp_path, capsys):
    again = write_features(tmp_path / "repeats" / "runs" / "aaaa", random_activations())
    assert main(["features", str(run), str(again), "--format", "neuronpedia", "-o", str(tmp_path / "out")]) == 0
    assert "10 features -> " in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted([f"{tmp_path.name}-runs-aaaa", "repeats-runs-aaaa"])
    runs = all_stored(dict.fromkeys((run, again), ""))
    assert sorted(one["run"] for one in data_in(page(runs, ""))["runs"]) == names


def test_mistakes_are_one_sentence(run, tmp_path, capsys, monkeypatch):
    def error(*words):
        assert main(["features", *map(str, words), "-o", str(tmp_path / "page.html")]) == 2
        return capsys.readouterr().err

    assert "does not exist" in error(tmp_path / "nowhere")
    assert "no run is there" in error(tmp_path)
    (run / "evals" / "features.npz").write_bytes(b"no archive")
    assert "is damaged" in error(run)
    for about, sentence in (
        ({"run": "../../x"}, "its run '../../x' is no folder's name"),
        ({"run": str(tmp_path)}, "is no folder's name"),
        ({"format": 99}, "has format 99, and this version reads 1; update sae-sweeps"),
        ({"d_in": None}, "`d_in` of `about` is missing or of another type"),
        ({"d_sae": 7}, "`n_active` has the shape [10]"),
        ({"labels": [1, 2]}, "a token or a label is no text"),
    ):
        write_features(run, random_activations(), **about)
        assert sentence in error(run)
    path = run / "evals" / "features.npz"
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("total.npy").header_offset + 100  # within what is deflated
    path.write_bytes(path.read_bytes()[:at] + b"\xff" * 30 + path.read_bytes()[at + 30 :])
    assert "is damaged" in error(run) and features_of(run) is None
    assert "no page of features: " in (printed := capsys.readouterr().out) and "features.npz is damaged" in printed
    monkeypatch.setattr("subprocess.run", lambda *_, **__: type("Done", (), {"returncode": 2})())
    plain = add_run(tmp_path / "outputs", "bbbb")
    assert "has no evals/features.npz (exit status 2)" in error(plain)
