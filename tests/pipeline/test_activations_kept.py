"""What an evaluation tells of fused layers, under the names of its row in `results.json`."""

from lingualift.evaluation.runner import Evaluation
from lingualift.pipeline.results import _activations
from lingualift.pipeline.steps import SCORES_FILE
from lingualift.provenance import write_json

LAYERS = [{"layer": 0, "module": "q_proj", "source": None, "target": 1.5, "fused": 2.0}]
ROW = {
    "method": "flare",
    "variant": "",
    "task": "t",
    "language": "sw",
    "seed": 0,
    "grid": {},
    "score": 50.0,
    "n": 1,
}


def test_they_stand_under_the_names_of_their_row(tmp_path):
    write_json(tmp_path / SCORES_FILE, Evaluation([], {}, 0, 0, LAYERS).summary())
    names = {key: ROW[key] for key in ("method", "variant", "task", "language", "seed", "grid")}
    assert _activations(ROW, tmp_path) == [{**names, "layers": LAYERS}]
    write_json(tmp_path / SCORES_FILE, Evaluation([], {}, 0, 0).summary())
    assert _activations(ROW, tmp_path) == []
