"""The table of docs/export.md: how near the exports of published sizes are to their checkpoints.

python -m pytest -n 0 -s -m slow tests/exports/test_agreement.py prints it. The weights are random.
"""

import json
import logging

import exported
import pytest

from exports.result import LIMITS

TARGETS = ("timm", "huggingface", "onnx", "torch")
VIT, SWIN = "vit_small_patch16", "swin_tiny"
SOURCES = {  # by the table's words: what writes the checkpoint, and the targets that refuse it
    "MI-MAE, ViT-S/16": (lambda p: exported.pretrained(p, f"mimae_{VIT}", 224), ()),
    "fine-tuned on the patch mean, ViT-S/16": (lambda p: exported.classifier(p, VIT, 224), ()),
    "fine-tuned on the class token, ViT-S/16": (
        lambda p: exported.classifier(p, VIT, 224, pool=False), ()),
    "linear probe, ViT-S/16": (lambda p: exported.probe(p, VIT, 224), ()),
    "MI-SimMIM, Swin-T": (lambda p: exported.pretrained(p, f"misimmim_{SWIN}", 192), ()),
    "fine-tuned, Swin-T": (lambda p: exported.classifier(p, SWIN, 224), ()),
    "UperNet with relative positions, ViT-S/16": (
        lambda p: exported.segmenter(p, VIT, 224, True, 0.1), ("timm",)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_published_sizes_agree(tmp_path, monkeypatch, name):
    small = exported.randomize
    monkeypatch.setattr(exported, "randomize", lambda model, scale=0.1: small(model, scale / 10))
    logging.getLogger("encoders").setLevel(logging.WARNING)
    write, refusing = SOURCES[name]
    checkpoint, cells = write(tmp_path / "checkpoint.pth"), []
    for to in TARGETS:
        out = tmp_path / to
        outcome = exported.export(checkpoint, out, to)
        if to in refusing:
            assert outcome.status == 2
            cells.append("refused")
            continue
        assert outcome.status == 0, outcome.err
        found = json.loads((out / "export.json").read_text())["differences"]
        assert max(found.values()) <= LIMITS[to]
        worst: dict[str, float] = {}
        for label, value in found.items():
            what = label.split(",")[0]
            worst[what] = max(value, worst.get(what, 0.0))
        cells.append(", ".join(f"{what} {value:.0e}" for what, value in worst.items()))
    print(f"\n| {name} | {' | '.join(cells)} |")
