"""A small language model and the text it was trained on, both available without a download."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
"""The model in Hugging Face format: loaded by the code that loads any other folder of that format."""
