"""Every file in examples runs, as its first line says, with the shipped model and drawn pictures."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgsafety import ModelError
from imgsafety.session import shipped_model

FOLDER = Path(__file__).parents[1] / "examples"
VERDICT = re.compile(r"\b(allow|review|block|undecided)\b")
PATIENCE = 300


@pytest.fixture(autouse=True)
def _model():
    try:
        shipped_model()
    except ModelError as problem:
        pytest.skip(f"no shipped model: {problem}")


@pytest.fixture
def pictures(tmp_path, draw):
    """Two drawn pictures on disk."""
    for kind in ("clothed", "nobody"):
        draw(kind).save(tmp_path / f"{kind}.png")
    return [str(tmp_path / "clothed.png"), str(tmp_path / "nobody.png")]


def need(*modules):
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def run(name, *arguments):
    """Run an example and return what it printed; fails when it does."""
    done = subprocess.run(
        [sys.executable, FOLDER / name, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here():
    text = Path(__file__).read_text(encoding="utf-8")
    names = [path.name for path in FOLDER.glob("*.py")]
    assert names and [name for name in names if f'"{name}"' not in text] == []


def test_in_process(pictures):
    assert len(VERDICT.findall(run("in_process.py", *pictures))) >= 2


def test_edit(pictures):
    assert VERDICT.search(run("edit.py", *pictures))


def test_tensors():
    need("torch")
    assert len(run("tensors.py").splitlines()) == 2


def test_concurrent_callers(pictures):
    assert re.findall("^(?:task|thread)", run("concurrent_callers.py", *pictures), re.MULTILINE) == ["task"] * 2 + ["thread"] * 2


def test_comfyui_node(pictures):
    need("torch")
    first, rest = run("comfyui_node.py", pictures[0]).split("\n", 1)
    assert VERDICT.search(first)[0] == json.loads(rest)[0]["verdict"]


def test_service_client(pictures, tmp_path):
    need("fastapi", "uvicorn", "prometheus_client", "multipart")
    log = tmp_path / "log"
    environment = {**os.environ, "IMGSAFETY_TOKEN": "opensesame"}
    with (
        log.open("w") as stderr,
        subprocess.Popen([sys.executable, "-m", "imgsafety", "serve", "--port", "0"], stderr=stderr, env=environment) as service,
    ):
        try:
            while not (url := re.search(r"running on (http://\S+)", log.read_text())):
                assert service.poll() is None, log.read_text()
                time.sleep(0.1)
            client = [sys.executable, FOLDER / "service_client.py", url[1]]
            done, none = (
                subprocess.run([*client, path], capture_output=True, text=True, timeout=PATIENCE, check=True, env=environment)
                for path in (pictures[0], log)
            )
            assert VERDICT.search(done.stdout)
            assert "undecided" in none.stdout and "not an image" in none.stdout
        finally:
            service.kill()


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    """A whole Stable Diffusion pipeline with a text encoder, random and a few kilobytes small, saved to a folder."""
    need("diffusers", "transformers", "torch")
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from tests.test_diffusers import unet, vae

    folder = tmp_path_factory.mktemp("pipeline")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words = {word: index for index, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae(paint=False), unet=unet(), scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77),
        safety_checker=None, feature_extractor=CLIPImageProcessor(size=8, crop_size=8), requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def test_diffusers_slot(pipeline_folder, tmp_path):
    assert VERDICT.search(run("diffusers_slot.py", pipeline_folder, "a house", str(tmp_path / "out.png")))
    assert (tmp_path / "out.png").is_file()


def test_diffusers_guard(pipeline_folder, tmp_path):
    said = run("diffusers_guard.py", pipeline_folder, "a house", str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").is_file() == (VERDICT.search(said)[0] == "allow")
