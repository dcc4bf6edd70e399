# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Teach a vision-language model to keep looking
#
# Reinforcement learning with verifiable rewards, in 4 bits, with LoRA adapters: a model answers questions about pictures
# several times, right answers become more likely, and tokens that looked at the picture get more of the credit (VGPO,
# arXiv 2604.09349).
#
# On a free Colab T4 (*Runtime, Change runtime type, T4 GPU*) this trains Qwen2-VL 2B on school geometry. On any CPU set
# `MODEL = "tiny"`: a built-in model learns to count coloured shapes, in minutes.

# %%
MODEL = "qwen2-vl-2b"

# %% [markdown]
# Install the released package, or a wheel of your own (`python -m build --wheel` in a checkout) that lies beside this
# notebook.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("vgpo_lite") is None:
    wheels = sorted(Path().glob("vgpo_lite-*.whl"), key=lambda wheel: wheel.stat().st_mtime)
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *(wheels[-1:] or ["vgpo-lite"])])

# %% [markdown]
# Everything below follows from the model: the data it is trained on, how long, and where the run writes. On Colab the run
# goes to your Drive, so that a disconnect costs nothing.

# %%
DATASET, STEPS, ROWS = ("shapes", 8, 40) if MODEL == "tiny" else ("geo3k", 60, 60)
HOME = Path("runs")
if "google.colab" in sys.modules:
    from google.colab import drive

    drive.mount("/content/drive")
    HOME = Path("/content/drive/MyDrive/vgpo-lite")
RUN = HOME / f"{MODEL}-{DATASET}-walkthrough"
RUN

# %% [markdown]
# ## Can this machine do it?

# %%
# !{sys.executable} -m vgpo_lite doctor

# %%
# !{sys.executable} -m vgpo_lite plan --model {MODEL} --dataset {DATASET}

# %% [markdown]
# ## Look at the data
#
# Which rows can train, how long prompts get, and what the model will read.

# %%
# !{sys.executable} -m vgpo_lite data check {DATASET} --model {MODEL}

# %%
from vgpo_lite import load_config
from vgpo_lite.datasets import open_rows

settings = load_config(model=MODEL, dataset=DATASET)
rows = open_rows(settings).held_out
print(rows[0].question, "→", rows[0].answer)
rows[0].images[0]

# %% [markdown]
# ## Ask the model before

# %%
import shlex

rows[0].images[0].save("picture.png")
QUESTION = shlex.quote(rows[0].question)

# %%
# !{sys.executable} -m vgpo_lite chat {MODEL} --dataset {DATASET} --image picture.png --question {QUESTION}

# %% [markdown]
# ## Train
#
# Accuracy is measured on held-out pictures before and after. In each line: the mean reward, the share of groups that had
# something to teach, the focus on the image early and late in the answers, and the time left.
#
# **After a disconnect, run the notebook again from the top.** `--resume auto` goes on from the last checkpoint as if nothing
# had happened.

# %%
# !{sys.executable} -m vgpo_lite train --model {MODEL} --dataset {DATASET} --max-steps {STEPS} --set eval.limit={ROWS} --set checkpoint.every=10 --output {RUN} --resume auto

# %% [markdown]
# ## Did it learn?

# %%
from IPython.display import Image, display

for picture in sorted((RUN / "plots").glob("*.png")):
    if picture.stem in ("reward", "accuracy", "focus"):
        display(Image(filename=str(picture)))

# %%
import json

status = json.loads((RUN / "status.json").read_text())
for name in ("before", "after"):
    seen = status[name]
    print(f"{name}: {seen['right']} of {seen['total']} right, 95 % interval {seen['low']:.1%} to {seen['high']:.1%}")

# %% [markdown]
# A change smaller than its intervals is no change yet: train longer (`STEPS`), or measure on more rows (`ROWS`).
#
# ## Ask the model after
#
# The same picture and question. One answer proves nothing, as it can be right or wrong by luck; the numbers above do not.

# %%
# !{sys.executable} -m vgpo_lite chat {RUN} --image picture.png --question {QUESTION}

# %% [markdown]
# ## What does it look at?
#
# Each answer token by token, without and with the adapter. Hover over a token: the picture shows where the query that wrote
# it looked.

# %%
# !{sys.executable} -m vgpo_lite inspect {RUN} --limit 2 --output {RUN}/inspection.html

# %%
from html import escape

from IPython.display import HTML

page = escape((RUN / "inspection.html").read_text())
HTML(f'<div><iframe sandbox="allow-scripts" srcdoc="{page}" width="100%" height="720" style="border: 0"></iframe></div>')

# %% [markdown]
# ## Merge, and use it without this project
#
# One folder that plain transformers loads. `--verify` compares it with the adapter and fails where they differ.

# %%
# !rm -rf {RUN}/merged
# !{sys.executable} -m vgpo_lite merge {RUN} --output {RUN}/merged --verify

# %%
from transformers import pipeline

from vgpo_lite.prompts.wording import user_text

sample, content = rows[0], []
for place, text in enumerate(user_text(rows[0].question, settings.data).split("<image>")):  # as it was asked in training
    content += [{"type": "image", "image": sample.images[place - 1]}] if place else []
    content += [{"type": "text", "text": text}] if text else []
ask = pipeline("image-text-to-text", model=str(RUN / "merged"))
answer = ask(
    text=[{"role": "user", "content": content}],
    return_full_text=False,
    generate_kwargs={"do_sample": False, "max_new_tokens": 40 if MODEL == "tiny" else 400},
)
print(answer[0]["generated_text"], "| right answer:", sample.answer)

# %% [markdown]
# ## Where to go from here
#
# - Your own pictures and questions: `docs/data.md`. Your own idea of a good answer: `docs/rewards.md`.
# - The baseline without looking: add `--set advantage=grpo`, with another `--output`.
# - Any step of the run, computed again: `vgpo-lite replay`.
