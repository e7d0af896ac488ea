"""Trainings of a few steps, and what they leave."""

import json

import torch
from safetensors.torch import load_file

from builders.worlds import learn
from lingualift.config import Adapter, Training
from lingualift.training.trainer import initialise

SETTINGS = {"steps": 4, "batch_size": 6, "learning_rate": 5e-3}


def begin(ref, folder, seed=0, **adapter):
    folder.mkdir()
    initialise(ref, Adapter(**{"rank": 2, "alpha": 4, **adapter}), seed, folder)
    return folder


def trained(ref, rows, start, folder, seed=0, **settings):
    folder.mkdir()
    record = Training(**{**SETTINGS, **settings})
    work = folder.parent / "work" / folder.name
    learn(ref, rows, record, start=start, seed=seed, output=folder, work=work, segment_tokens=24)
    assert not work.exists()
    return tensors(folder)


def tensors(folder):
    return load_file(folder / "adapter_model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def facts(folder):
    return json.loads((folder / "provenance.json").read_text())
