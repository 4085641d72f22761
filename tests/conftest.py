"""Small language models with random weights, saved as folders in Hugging Face format."""

import atexit
import json.decoder
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

os.environ["SAE_SWEEPS_LOCAL"] = "none"  # tests do not depend on a user's conf/local.yaml
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # no hub but a local stand-in, and no cache but the tests' own
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="hub-")
atexit.register(shutil.rmtree, os.environ["HF_HUB_CACHE"], ignore_errors=True)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported
torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))  # `make test-processors` tries two

COSTLY = ("test_evaluate.py", "test_swept.py", "test_side_by_side.py", "test_clean_sweep.py", "test_presets.py")
VOCABULARY = 384
SPECIAL = ["<bos>", "<eos>", "<pad>"]


def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadgroup` the tests of a file whose fixture takes a minute go to one worker, which makes it once.

    xdist's own groups need a part of pytest that 9.2 has no more.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if file.endswith(COSTLY) else nodeid

    return Together(config, log) if config.getvalue("dist") == "loadgroup" else None


def save_language_model(model, folder: Path, add_bos: bool = False) -> Path:
    """Saves the model with a byte-level BPE tokenizer trained on a module of the standard library."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    tokenizer = ByteLevelBPETokenizer()
    lines = Path(str(json.decoder.__file__)).read_text().splitlines()
    tokenizer.train_from_iterator(lines, VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    fast = tokenizer._tokenizer
    if add_bos:  # as Llama's and Gemma's tokenizers do when asked for special tokens
        fast.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    bos, eos, pad = SPECIAL
    logging.disable_progress_bar()
    PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=bos, eos_token=eos, pad_token=pad).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _sizes(**more):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    return sizes | {"intermediate_size": 64, "max_position_embeddings": 64} | more


@pytest.fixture(autouse=True)
def logging_as_before():
    """Hydra's main sets up logging to the stderr of its test, which is closed in those that follow."""
    root = logging.getLogger()
    level, before = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler not in before]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def tiny_gpt_neox_folder(tmp_path_factory) -> Path:
    """GPTNeoX, d_in 32, 3 layers, context of at most 64."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**_sizes(bos_token_id=0, eos_token_id=1, initializer_range=0.3)))
    return save_language_model(model, tmp_path_factory.mktemp("gpt_neox"))


@pytest.fixture(scope="session")
def tiny_gemma2_folder(tmp_path_factory) -> Path:
    """Gemma-2, d_in 32, 3 layers, with the norms after attention and MLP and both soft caps."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = _sizes(num_key_value_heads=2, head_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, attn_logit_softcapping=2.0, initializer_range=0.3))
    return save_language_model(model, tmp_path_factory.mktemp("gemma2"), add_bos=True)


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory) -> Path:
    """Llama, d_in 32, 3 layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = _sizes(num_key_value_heads=2, bos_token_id=0, eos_token_id=1, initializer_range=0.3)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    return save_language_model(model, tmp_path_factory.mktemp("llama"), add_bos=True)
