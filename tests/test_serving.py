"""A merged folder behind `transformers serve` answers OpenAI's protocol as the policy answers here."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest
import torch

from vgpo_lite.config.schema import RunConfig
from vgpo_lite.data_types import Sample, Sampling
from vgpo_lite.datasets.shapes import ShapesRows
from vgpo_lite.engine import make_engine
from vgpo_lite.export import merge
from vgpo_lite.models import load_policy
from vgpo_lite.models.lora import save_adapter
from vgpo_lite.prompts import encode_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from PIL import Image

    from vgpo_lite.models import Policy

QUESTION = "How many red circles are there?"
TOKENS = 12
LONGEST_START_SECONDS = 120  # a guard against waiting for ever, on a machine however busy


@contextlib.contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
    """`transformers serve FOLDER` on a free loopback port, for as long as the body runs; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    with log.open("w") as output:
        process = subprocess.Popen([*command, *options], env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def wait_for(address: str, log: Path) -> None:
    """Wait until the server answers."""
    until = time.monotonic() + LONGEST_START_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/health", trust_env=False).is_success:
                return
        time.sleep(0.05)
    pytest.fail(f"transformers serve did not start: {log.read_text()}")


def greedy(policy: Policy, image: Image.Image) -> str:
    """What the policy answers here."""
    config = RunConfig(data={"prompt_template": "{{ question }}"})  # pyright: ignore[reportArgumentType]
    sample = Sample(sample_id="served", question=f"<image>{QUESTION}", images=(image,), answer=None)
    sampling = Sampling(num_generations=1, max_completion_length=TOKENS, temperature=0.0)
    prompt = encode_prompt(sample, policy.processor, config.data)
    [group] = make_engine(policy, config).sample([prompt], sampling, places=[0], on_step=None)
    return group.texts[0]


def asked(address: str, model: Path, image: Image.Image) -> str:
    """What the server answers to an OpenAI-style request with the picture in it."""
    png = io.BytesIO()
    image.save(png, "PNG")
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    body = {"model": str(model), "messages": messages, "temperature": 0, "max_tokens": TOKENS}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60, trust_env=False)
    assert answer.is_success, answer.text
    [choice] = answer.json()["choices"]
    return choice["message"]["content"]


def test_a_merged_folder_behind_transformers_serve_answers_about_images_as_the_policy_does(tmp_path: Path) -> None:
    policy, rows = load_policy(RunConfig(model="tiny")), ShapesRows("eval", length=2)
    images = [rows[row].images[0] for row in range(2)]  # small enough that no processor scales them down
    base = [greedy(policy, image) for image in images]
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in policy.adapters().items():
            if ".lora_B." in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=noise))
    save_adapter(policy, tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged", verify=False)
    with served(tmp_path / "merged", tmp_path / "log") as address:
        expected = [greedy(policy, image) for image in images]
        wait_for(address, tmp_path / "log")
        answers = [asked(address, tmp_path / "merged", image) for image in images]
    assert [answer.strip() for answer in answers] == [text.strip() for text in expected]
    assert all(after != before for after, before in zip(expected, base, strict=True))
    assert expected[0] != expected[1]
