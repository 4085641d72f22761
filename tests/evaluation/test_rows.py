import pytest
import torch
from bounds import Rounding, assert_within, gamma
from toy_lm import BOS, D_IN, PAD, ToyLM, toy_sae

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.evaluation.ablation import logits_after, logits_of, mean_difference, strongest
from sae_sweeps.evaluation.probes import Probes
from sae_sweeps.evaluation.rows import at_special_tokens, harvest_rows, mean_activations, mean_features
from sae_sweeps.evaluation.sums import count_firing, sum_by_text, sum_features
from sae_sweeps.kernels.features import DenseFeatures, TopKFeatures

CONTEXT = 8


class RowLM(ToyLM):
    """A toy model whose texts are digits."""

    bos_id = BOS

    def tokenize_rows(self, texts, context):
        rows = [([BOS] + [2 + int(char) for char in text])[:context] for text in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


TEXTS = {"a": ["123", "1234567890", "5"], "b": ["88", "123", "4"]}


@pytest.fixture
def harvested():
    return harvest_rows(TEXTS, RowLM(), LayerConfig(), CONTEXT, 2)


def slow_tokens(text):
    """Activations [CONTEXT, d_in] of one text alone, zero at special tokens, and which tokens are plain."""
    lm = RowLM()
    tokens = torch.full((1, CONTEXT), PAD)
    row = ([BOS] + [2 + int(char) for char in text])[:CONTEXT]
    tokens[0, : len(row)] = torch.tensor(row)
    plain = (tokens[0] != BOS) & (tokens[0] != PAD)
    return torch.where(plain[:, None], lm.activations(tokens, LayerConfig())[0], 0), plain


def test_means_are_those_of_each_text_alone(harvested):
    sae = toy_sae(architecture="standard")
    texts = [text for group in TEXTS.values() for text in group]
    assert harvested.n_by_class == {"a": 3, "b": 3} and len(harvested.length_T) == 5  # 123 stands twice, is kept once
    for row, text in enumerate(texts):
        x, plain = slow_tokens(text)
        rounding = Rounding(torch.float32)
        with rounding:
            f = sae.encode(x * 1.0)  # rows are stored in float32
            expected = (x[plain] * 1.0).mean(0), f[plain].mean(0), f[~plain].sum(0) / plain.sum()
        means = mean_activations(harvested, "cpu"), mean_features(harvested, sae, 5), at_special_tokens(harvested, sae)
        for one, other in zip(means, expected, strict=True):
            rounding.assert_close(one[row], other)


def test_texts_are_read_by_their_length_and_kept_in_their_order():
    """A batch is no wider than its longest text; each text's activations are those of the text alone, to the bit."""
    lm, texts = RowLM(), ["12345", "1", "88", "", "1234567890"]
    read = []

    def activations(tokens, layer):
        read.append(tuple(tokens.shape))
        return ToyLM.activations(lm, tokens, layer)

    lm.activations = activations
    found = harvest_rows({"a": texts}, lm, LayerConfig(), CONTEXT, 2)
    assert read == [(2, 2), (2, 6), (1, 8)]  # of 40 tokens in five rows of 8, 24 are read
    assert found.length_T.tolist() == [5, 1, 2, 0, 7] and found.special_T.tolist() == [3, 7, 6, 8, 1]
    for text, x_ND in zip(texts, found.x_ND.split(found.length_T.tolist()), strict=True):
        x, plain = slow_tokens(text)
        assert torch.equal(x_ND, x[plain])


def test_both_ways_to_sum_give_the_same_bits():
    """The one for CUDA runs on the CPU too."""
    g = torch.Generator().manual_seed(0)
    length = torch.tensor([3, 0, 70, 1, 26])
    values = torch.randn(100, 7, generator=g)
    found = sum_by_text(values, length)
    slow = torch.stack([part.double().sum(0) for part in values.split(length.tolist())])
    terms = torch.stack([part.double().abs().sum(0) for part in values.split(length.tolist())])
    assert_within(found, slow, gamma(70, torch.float32) * terms)
    assert torch.equal(found, torch.segment_reduce(values, "sum", lengths=length, axis=0, unsafe=True))


def test_ablation_is_what_running_the_sae_again_gives(harvested):
    """SAEBench: decode with the features at 0, add the error, sum all positions, divide by the plain ones."""
    sae = toy_sae(architecture="standard")
    features = mean_features(harvested, sae, 5) + at_special_tokens(harvested, sae)
    g = torch.Generator().manual_seed(1)
    probes = Probes(torch.randn(2, D_IN, generator=g), torch.randn(2, generator=g), torch.zeros(2))
    base = logits_of(probes, mean_activations(harvested, "cpu"))
    dot = sae.weights["W_dec"].float() @ probes.weight_CD.T
    effects = torch.tensor([2.0, 0, 0, 0, 3.0, 0, 0, 1.0, 0])
    chosen = torch.tensor([4, 0, 7])
    after = logits_after(base, features, effects, dot, [1, 3, 9])
    for n in (1, 3, 9):
        for row, text in enumerate(text for group in TEXTS.values() for text in group):
            x, plain = slow_tokens(text)
            rounding = Rounding(torch.float32)
            with rounding:
                f = sae.encode(x * 1.0)
                ablated = f.clone()
                ablated[:, chosen[:n]] = 0
                changed = sae.decode(ablated) + (x - sae.decode(f))
                pooled = changed.sum(0) / plain.sum()
                expected = pooled @ probes.weight_CD.T.double() + probes.bias_C.double()
            rounding.assert_close(after[n][row], expected)


def test_strongest_features_and_mean_difference():
    effects = torch.tensor([0.0, -2.0, 3.0, 0.0, 1.0])
    assert strongest(effects, 2).tolist() == [2, 4] and sorted(strongest(effects, 9).tolist()[:2]) == [2, 4]
    assert len(strongest(effects, 9)) == 3 and 1 not in strongest(effects, 9)  # a zero comes before what is negative
    assert strongest(torch.zeros(4), 3).numel() == 0
    f = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
    difference = mean_difference(f, torch.tensor([0, 2, 1]), torch.tensor([True, False, True]))
    assert difference.tolist() == [-3.0, -4.0]


def test_sums_over_active_features_are_the_dense_ones_to_the_last_bit():
    torch.manual_seed(0)
    weights = {
        "W_enc": torch.randn(6, 40),
        "b_enc": torch.randn(40),
        "W_dec": torch.randn(40, 6),
        "b_dec": torch.ones(6),
    }
    sae, x, length = ExportedSAE("topk", weights, 5), torch.randn(30, 6), torch.tensor([7, 0, 20, 3])
    f = sae.features(x)
    written_out = DenseFeatures(f.dense())
    assert isinstance(f, TopKFeatures) and torch.equal(written_out.values, sae.encode(x))
    assert torch.equal(sum_features(f, length), sum_features(written_out, length))
    assert torch.equal(count_firing(f, length), count_firing(written_out, length))
    with Rounding() as rounding:
        expected = sae.decode(written_out.values)
    rounding.assert_close(sae.decode(f), expected, factor=2)
