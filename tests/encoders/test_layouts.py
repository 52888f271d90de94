"""Anybody's encoder gives the features of the model that it came from, to 1e-5.

Models are built by their own library where it installs (timm, transformers, torchvision), else by
the formula and the key list of their published source, read here with the published keys.
"""

import argparse
import json
import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torchvision.models import VisionTransformer as TorchvisionViT

from encoders.layouts import HALF, IMAGENET, LAYOUTS, open_encoder
from encoders.load import architecture, build_encoder, load_pretrained, model_name
from encoders.pos_embed import sincos_pos_embed
from encoders.swin import build_swin
from encoders.vit import NORM, Features, Pretrained
from util.errors import UsageError

SIZE, PATCH, WIDTH, DEPTH, HEADS, HIDDEN = 32, 8, 48, 2, 3, 192
GRID = SIZE // PATCH
TOKENS = GRID**2
TOLERANCE = dict(rtol=0, atol=1e-5)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def imgs():
    return torch.randn(2, 3, SIZE, SIZE)


@pytest.fixture
def save(tmp_path):
    """(content of a file) -> its path, whose name says nothing."""

    def write(content) -> str:
        torch.save(content, tmp_path / "file.pth")
        return str(tmp_path / "file.pth")

    return write


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """All parameters away from their initial zeros and ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def timm_vit(**changes) -> VisionTransformer:
    options = dict(img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
                   num_classes=5, norm_layer=NORM)  # fmt: skip
    return randomize(VisionTransformer(**options | changes))


def load(path, num_heads=HEADS, size=SIZE, global_pool=False) -> torch.nn.Module:
    """The encoder as the mains build it from --finetune, without --model."""
    pretrained = Pretrained(str(path), num_heads)
    name = model_name(pretrained)
    model = build_encoder(
        name, 0, size, 3, global_pool, architecture=architecture(pretrained, name)
    )
    load_pretrained(pretrained, model)
    return model.eval()


@torch.no_grad()
def agrees(path, imgs, tokens, layout, normalization=IMAGENET, num_heads=HEADS) -> None:
    """The class token and the patch mean of a file's encoder are those of `tokens` [B, 1 + L, D]
    (registers between them), normed as the original does."""
    foreign = open_encoder(str(path))
    assert (foreign.layout, foreign.normalization) == (layout, normalization)
    model = load(path, num_heads)
    found = model.forward_features(imgs)
    torch.testing.assert_close(found[:, 0], tokens[:, 0], **TOLERANCE)
    means = [t[:, -TOKENS:].mean(1) for t in (found, tokens)]
    torch.testing.assert_close(*means, **TOLERANCE)
    assert tokens.abs().mean() > 0.1 and (tokens[0] - tokens[1]).abs().mean() > 0.01
    torch.testing.assert_close(Features(model)(imgs), tokens[:, 0], **TOLERANCE)


# ---------------------------------------------------------------------------- published formulas


def blocks_of(prefix: str, names: dict[str, str], extra: dict[str, tuple] | None = None) -> dict:
    """Random weights under a published list of keys: `names` of the parts, by what they do."""
    shapes = {
        "norm1": (WIDTH,), "qkv": (3 * WIDTH, WIDTH), "proj": (WIDTH, WIDTH), "norm2": (WIDTH,),
        "fc1": (HIDDEN, WIDTH), "fc2": (WIDTH, HIDDEN), "patch": (WIDTH, 3, PATCH, PATCH),
        "norm": (WIDTH,),
    }  # fmt: skip
    weights = {}
    for part, name in names.items():
        for i in range(DEPTH if "{}" in name else 1):
            shape = shapes[part]
            noise = 0.2 * torch.randn(shape)
            weights[prefix + name.format(i) + ".weight"] = noise + ("norm" in part)
            weights[prefix + name.format(i) + ".bias"] = 0.2 * torch.randn(shape[0])
    for name, shape in (extra or {}).items():
        for i in range(DEPTH if "{}" in name else 1):
            weights[prefix + name.format(i)] = 0.2 * torch.randn(shape)
    return weights


@torch.no_grad()
def reference(w: dict, names: dict, imgs, *, prefix="", positions="pos_embed", registers=None,
              scales=None, bias=None, qv=None, eps=1e-6):  # fmt: skip
    """A ViT by its formula: tokens [B, 1 + R + L, D] after the last norm, where it is named.

    scales: keys of the two layer scales. bias: block -> position biases [heads, T, T]. qv: keys of
    the biases of q and v, k having none.
    """

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    full = {part: prefix + name for part, name in names.items() if name}
    x = F.conv2d(imgs, w[full["patch"] + ".weight"], w[full["patch"] + ".bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w[prefix + "cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + w[prefix + positions] if positions else x
    if registers:
        x = torch.cat([x[:, :1], w[prefix + registers].expand(len(x), -1, -1), x[:, 1:]], 1)
    for i in range(DEPTH):
        key = {part: name.format(i) for part, name in full.items()}
        y = linear(norm(x, key["norm1"]), key["qkv"])
        if qv:
            q_bias, v_bias = (w[prefix + name.format(i)] for name in qv)
            y = y + torch.cat([q_bias, torch.zeros(WIDTH), v_bias])
        q, k, v = y.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)
        y = (scores + (bias(i) if bias else 0)).softmax(-1) @ v
        y = linear(y.transpose(1, 2).flatten(2), key["proj"])
        x = x + y * (w[prefix + scales[0].format(i)] if scales else 1)
        y = linear(F.gelu(linear(norm(x, key["norm2"]), key["fc1"])), key["fc2"])
        x = x + y * (w[prefix + scales[1].format(i)] if scales else 1)
    return norm(x, full["norm"]) if "norm" in full else x


def relative_bias(table):
    """A table [49 + 3, heads] of the 4 x 4 grid as biases [heads, 1 + L, 1 + L], cell by cell."""
    bias = torch.zeros(HEADS, 1 + TOKENS, 1 + TOKENS)
    bias[:, 0, :], bias[:, :, 0], bias[:, 0, 0] = (
        table[-3][:, None], table[-2][:, None], table[-1],
    )  # fmt: skip
    for i in range(TOKENS):
        for j in range(TOKENS):
            down, right = i // GRID - j // GRID, i % GRID - j % GRID
            row = (down + GRID - 1) * (2 * GRID - 1) + right + GRID - 1
            bias[:, 1 + i, 1 + j] = table[row]
    return bias


TIMM = dict(
    patch="patch_embed.proj", norm1="blocks.{}.norm1", qkv="blocks.{}.attn.qkv",
    proj="blocks.{}.attn.proj", norm2="blocks.{}.norm2", fc1="blocks.{}.mlp.fc1",
    fc2="blocks.{}.mlp.fc2", norm="norm",
)  # fmt: skip
TOKEN = {"cls_token": (1, 1, WIDTH)}
POSITION = {"pos_embed": (1, 1 + TOKENS, WIDTH)}
SCALES = ("blocks.{}.gamma_1", "blocks.{}.gamma_2")
QV = ("blocks.{}.attn.q_bias", "blocks.{}.attn.v_bias")
TABLE = (2 * GRID - 1) ** 2 + 3, HEADS


def beit_weights(prefix="", shared=False) -> dict:
    extra = TOKEN | dict.fromkeys((*SCALES, *QV), (WIDTH,)) | {"mask_token": (1, 1, WIDTH)}
    where = "rel_pos_bias" if shared else "blocks.{}.attn"
    extra |= {f"{where}.relative_position_bias_table": TABLE}
    extra |= {f"{where}.relative_position_index": (1 + TOKENS, 1 + TOKENS)}
    weights = blocks_of(prefix, TIMM, extra)
    return {k: v for k, v in weights.items() if not k.endswith("attn.qkv.bias")}


def beit_reference(w, imgs, prefix="", shared=False, norm="norm"):
    def bias(i):
        where = "rel_pos_bias" if shared else f"blocks.{i}.attn"
        return relative_bias(w[f"{prefix}{where}.relative_position_bias_table"])

    return reference(w, TIMM | {"norm": norm}, imgs, prefix=prefix, positions=None, scales=SCALES,
                     bias=bias, qv=QV)  # fmt: skip


# ------------------------------------------------------------------------------- MAE and its kin


def with_decoder(weights: dict) -> dict:
    decoder = {
        "mask_token": (1, 1, 16), "decoder_pos_embed": (1, 1 + TOKENS, 16),
        "decoder_embed.weight": (16, WIDTH), "decoder_blocks.0.norm1.weight": (16,),
        "decoder_norm.weight": (16,), "decoder_pred.weight": (192, 16),
    }  # fmt: skip
    return weights | {key: torch.randn(shape) for key, shape in decoder.items()}


def test_mae_pretraining_and_semmae(save, imgs):
    model = timm_vit(num_classes=0)
    path = save({"model": with_decoder(model.state_dict()), "args": argparse.Namespace(lr=1)})
    agrees(path, imgs, model.forward_features(imgs), "MAE")


def test_mae_fine_tuned_with_global_pool(save, imgs):
    model = timm_vit(global_pool="avg", fc_norm=True)
    path = save({"model": model.state_dict()})
    assert open_encoder(path).layout == "MAE, fine-tuned"
    found = Features(load(path, global_pool=True))(imgs)
    expected = model.forward_head(model.forward_features(imgs), pre_logits=True)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    with pytest.raises(UsageError, match="fine-tuned with --global_pool"):
        load(path, global_pool=False)


def test_mae_linear_probe(save, imgs):
    model = timm_vit()
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("head")}
    weights |= {"head.0.running_mean": torch.zeros(WIDTH), "head.0.running_var": torch.ones(WIDTH)}
    weights |= {"head.0.num_batches_tracked": torch.tensor(3)}
    weights |= {"head.1.weight": torch.zeros(5, WIDTH), "head.1.bias": torch.zeros(5)}
    agrees(save({"model": weights}), imgs, model.forward_features(imgs), "MAE's linear probe")


@pytest.mark.parametrize("wrap", [
    lambda w: w,
    lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
    lambda w: {"model_ema": {f"model.{k}": v for k, v in w.items()}},
    lambda w: {"model": {"module": {f"module.model.{k}": v for k, v in w.items()}}},
], ids=["bare", "state_dict-module", "model_ema-model", "nested"])  # fmt: skip
def test_timm_vit_in_wrappers(save, imgs, wrap):
    model = timm_vit()
    path = save(wrap(model.state_dict()))
    agrees(path, imgs, model.forward_features(imgs), "timm's ViT", None)


def test_timm_vit_with_layer_scale_registers_and_without_class_position(save, imgs):
    model = timm_vit(init_values=0.5, reg_tokens=4, no_embed_class=True, qkv_bias=False)
    path = save(model.state_dict())
    agrees(path, imgs, model.forward_features(imgs), "timm's ViT", None)


def test_timm_folder_tells_augreg_normalization(tmp_path, imgs):
    safetensors = pytest.importorskip("safetensors.torch")
    model = timm_vit()
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    cfg = dict(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    (tmp_path / "config.json").write_text(json.dumps(dict(pretrained_cfg=cfg)))
    agrees(tmp_path, imgs, model.forward_features(imgs), "timm's ViT", HALF)
    agrees(tmp_path / "model.safetensors", imgs, model.forward_features(imgs), "timm's ViT", HALF)


def test_fixed_positions_mean_imagenet_normalization(save):
    model = timm_vit()
    model.pos_embed.data = sincos_pos_embed(WIDTH, (GRID, GRID))
    assert open_encoder(save(model.state_dict())).normalization == IMAGENET


# ---------------------------------------------------------------------------- DINO, DINOv2, MoCo


def test_dino_training_checkpoint_takes_the_teacher(save, imgs):
    teacher, student = timm_vit(num_classes=0), timm_vit(num_classes=0)
    head = {"head.mlp.0.weight": torch.zeros(4, WIDTH), "head.last_layer.weight_g": torch.ones(4)}
    state = {
        "student": {f"module.backbone.{k}": v for k, v in student.state_dict().items()},
        "teacher": {f"backbone.{k}": v for k, v in teacher.state_dict().items()} | head,
        "epoch": 3,
    }
    path = save(state)
    agrees(path, imgs, teacher.forward_features(imgs), "DINO")
    assert {"student", "head.last_layer.weight_g"} <= set(open_encoder(path).left_over)
    del state["teacher"]
    agrees(save(state), imgs, student.forward_features(imgs), "DINO")


@pytest.mark.parametrize("chunk", ["", "0."], ids=["published", "chunked"])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2(save, imgs, registers, chunk):
    names = {part: name.replace("{}.", chunk + "{}.") for part, name in TIMM.items()}
    scales = tuple(f"blocks.{chunk}{{}}.ls{i}.gamma" for i in (1, 2))
    extra = TOKEN | POSITION | dict.fromkeys(scales, (WIDTH,)) | {"mask_token": (1, WIDTH)}
    extra |= {"register_tokens": (1, registers, WIDTH)} if registers else {}
    weights = blocks_of("", names, extra)
    key = "register_tokens" if registers else None
    tokens = reference(weights, names, imgs, registers=key, scales=scales)
    agrees(save(weights), imgs, tokens, "DINOv2 with registers" if registers else "DINOv2")


def test_dinov2_giant_is_refused(save):
    weights = blocks_of("", TIMM, TOKEN | POSITION | {"blocks.{}.ls1.gamma": (WIDTH,)})
    weights = {k.replace("mlp.fc1", "mlp.w12"): v for k, v in weights.items()}
    with pytest.raises(UsageError, match=r"file.pth.* without blocks.0.mlp.fc1.weight"):
        load(save(weights | {"mask_token": torch.zeros(1, WIDTH)}))


def test_moco_v3(save, imgs):
    base, momentum = timm_vit(num_classes=0), timm_vit(num_classes=0)
    base.pos_embed.data = sincos_pos_embed(WIDTH, (GRID, GRID))  # fixed there, too
    state = {}
    for name, model in (("momentum_encoder", momentum), ("base_encoder", base)):
        state |= {f"module.{name}.{k}": v for k, v in model.state_dict().items()}
        state |= {f"module.{name}.head.0.weight": torch.zeros(8, WIDTH)}
        state |= {f"module.{name}.head.1.running_mean": torch.zeros(8)}
    state |= {"module.predictor.0.weight": torch.zeros(8, 8)}
    path = save({"epoch": 1, "arch": "vit_small", "state_dict": state})
    agrees(path, imgs, base.forward_features(imgs), "MoCo v3")
    assert any(k.startswith("momentum_encoder.") for k in open_encoder(path).left_over)


def test_moco_v3_small_has_12_heads(save):
    model = timm_vit(embed_dim=384, num_heads=12, num_classes=0)
    state = {f"module.base_encoder.{k}": v for k, v in model.state_dict().items()}
    assert open_encoder(save({"state_dict": state})).architecture()["num_heads"] == 12


# ------------------------------------------------------------------------------- BEiT and SimMIM


@pytest.mark.parametrize("shared", [True, False], ids=["pre-trained", "per block"])
def test_beit(save, imgs, shared):
    weights = beit_weights(shared=shared)
    tokens = beit_reference(weights, imgs, shared=shared)
    head = {"lm_head.weight": torch.zeros(7, WIDTH), "lm_head.bias": torch.zeros(7)}
    path = save({"model": weights | head})
    agrees(path, imgs, tokens, "BEiT", HALF, num_heads=None)  # heads: from the tables
    args = argparse.Namespace(imagenet_default_mean_and_std=True)
    assert open_encoder(save({"model": weights, "args": args})).normalization == IMAGENET
    pretraining_v2 = weights | {"cls_pt_layers.0.norm1.weight": torch.ones(WIDTH)} | head
    agrees(save({"model": pretraining_v2}), imgs, tokens, "BEiT v2")


@torch.no_grad()
def test_beit_fine_tuned(save, imgs):
    """Its norm follows the mean of the patch tokens."""
    weights = beit_weights()
    tokens = beit_reference(weights, imgs, norm=None)
    norm = weights["norm.weight"], weights["norm.bias"]
    weights = {k: v for k, v in weights.items() if not k.startswith("norm.")}
    weights |= {"fc_norm.weight": norm[0], "fc_norm.bias": norm[1]}
    weights |= {"head.weight": torch.zeros(5, WIDTH), "head.bias": torch.zeros(5)}
    model = load(save({"model": weights}), None, global_pool=True)
    pooled = F.layer_norm(tokens[:, 1:].mean(1), (WIDTH,), *norm, 1e-6)
    torch.testing.assert_close(Features(model)(imgs), pooled, **TOLERANCE)


def test_timm_beit(save, imgs):
    model = Beit(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
        num_classes=5, global_pool="token", norm_layer=NORM, init_values=0.1,
        use_abs_pos_emb=True, use_shared_rel_pos_bias=True,
    )  # fmt: skip
    randomize(model)
    path = save(model.state_dict())
    # With a head it may be v2's, which has seen ImageNet's mean and std.
    agrees(path, imgs, model.forward_features(imgs), "BEiT", None, num_heads=None)


def test_beit_at_another_image_size(save):
    weights = beit_weights()
    model = load(save({"model": weights}), size=(48, 40))
    table = weights["blocks.1.attn.relative_position_bias_table"]
    found = model.blocks[1].attn.relative_position_bias_table.detach()
    assert torch.equal(found[-3:], table[-3:])  # of the class token
    old, new = table[:-3].view(7, 7, HEADS), found[:-3].view(11, 9, HEADS)
    torch.testing.assert_close(new[4:7, 3:6], old[2:5, 2:5], **TOLERANCE)  # offsets -1, 0, 1
    assert model(torch.randn(1, 3, 48, 40)).shape == (1, WIDTH)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per block"])
def test_simmim_vit(save, imgs, shared):
    weights = beit_weights("encoder.", shared)
    tokens = beit_reference(weights, imgs, "encoder.", shared)
    decoder = {"decoder.0.weight": torch.zeros(192, WIDTH, 1, 1), "decoder.0.bias": torch.zeros(3)}
    path = save({"model": weights | decoder, "config": {"MODEL": {"TYPE": "vit"}}})
    agrees(path, imgs, tokens, "SimMIM's ViT", num_heads=None)
    fine_tuned = {k.removeprefix("encoder."): v for k, v in weights.items()}
    path = save({"model": fine_tuned, "config": {"MODEL": {"TYPE": "vit"}}})
    agrees(path, imgs, tokens, "SimMIM's ViT, fine-tuned", num_heads=None)


SWIN = dict(img_size=64, patch_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=8,
            num_classes=5)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("published", [False, True], ids=["timm", "SimMIM"])
def test_swin(save, published):
    model = randomize(SwinTransformer(**SWIN))
    weights = model.state_dict()
    if published:
        weights = {k.replace("layers.1.down", "layers.0.down"): v for k, v in weights.items()}
        weights = {f"encoder.{k}": v for k, v in weights.items() if "head" not in k}
        weights |= {"decoder.0.weight": torch.zeros(3 * 64, 48, 1, 1)}
    path = save({"model": weights})
    assert open_encoder(path).layout == ("Swin's, SimMIM's" if published else "timm's Swin")
    imgs = torch.randn(2, 3, 64, 64)
    expected = model.forward_features(imgs)
    torch.testing.assert_close(load(path, None, 64).forward_features(imgs), expected, **TOLERANCE)


def test_swin_sizes_are_recognised(save):
    path = save(build_swin("swin_mini_patch2", 0, 16).state_dict())
    assert model_name(Pretrained(path)) == "swin_mini_patch2"


# --------------------------------------------------------------------------------------- libraries

MMPRETRAIN = dict(
    patch="patch_embed.projection", norm1="layers.{}.ln1", qkv="layers.{}.attn.qkv",
    proj="layers.{}.attn.proj", norm2="layers.{}.ln2", fc1="layers.{}.ffn.layers.0.0",
    fc2="layers.{}.ffn.layers.1", norm="ln1",
)  # fmt: skip


@pytest.mark.parametrize("method", ["MFF", "PixMIM", "layer scale"])
def test_mmpretrain(save, imgs, method):
    scales = ("layers.{}.attn.gamma1.weight", "layers.{}.ffn.gamma2.weight")
    scales = scales if method == "layer scale" else None
    extra = TOKEN | POSITION | dict.fromkeys(scales or (), (WIDTH,))
    if method == "MFF":
        extra |= {"proj_weights": (2, 1, 1, 1), "proj_layers.0.weight": (WIDTH, WIDTH)}
    weights = blocks_of("backbone.", MMPRETRAIN, extra)
    tokens = reference(weights, MMPRETRAIN, imgs, prefix="backbone.", scales=scales)
    neck = {"neck.decoder_blocks.0.ln1.weight": torch.ones(8), "neck.mask_token": torch.ones(1)}
    path = save({"meta": {"epoch": 1}, "state_dict": weights | neck})
    agrees(path, imgs, tokens, "mmpretrain's ViT")
    left_over = open_encoder(path).left_over
    assert "neck.mask_token" in left_over
    assert ("backbone.proj_weights" in left_over) == (method == "MFF")


def mmpretrain_beit(shared, final="ln1") -> tuple[dict, str]:
    """Weights of its BEiT, and where the tables of position biases stand."""
    where = "rel_pos_bias" if shared else "layers.{}.attn"
    scales, qv = (
        tuple(name.replace("blocks", "layers") for name in names) for names in (SCALES, QV)
    )
    extra = TOKEN | dict.fromkeys((*scales, *qv), (WIDTH,)) | {"mask_token": (1, 1, WIDTH)}
    extra |= {f"{where}.relative_position_bias_table": TABLE}
    extra |= {f"{where}.relative_position_index": (1 + TOKENS, 1 + TOKENS)}
    weights = blocks_of("backbone.", MMPRETRAIN | {"norm": final}, extra)
    return {k: v for k, v in weights.items() if not k.endswith("attn.qkv.bias")}, where


def mmpretrain_beit_reference(weights, where, imgs, norm):
    def bias(i):
        return relative_bias(weights[f"backbone.{where.format(i)}.relative_position_bias_table"])

    scales, qv = (
        tuple(name.replace("blocks", "layers") for name in names) for names in (SCALES, QV)
    )
    return reference(weights, MMPRETRAIN | {"norm": norm}, imgs, prefix="backbone.",
                     positions=None, scales=scales, bias=bias, qv=qv)  # fmt: skip


@pytest.mark.parametrize("shared", [True, False], ids=["pre-trained", "per block"])
def test_mmpretrain_beit(save, imgs, shared):
    weights, where = mmpretrain_beit(shared)
    tokens = mmpretrain_beit_reference(weights, where, imgs, "ln1")
    # BEiT v2's tokenizer is a ViT of its own.
    target = {"target_generator.encoder.patch_embed.projection.weight": torch.zeros(1, 3, 2, 2)}
    path = save({"state_dict": target | weights})
    agrees(path, imgs, tokens, "mmpretrain's BEiT", num_heads=None)
    left_over = open_encoder(path).left_over
    assert set(left_over) == {*target, "backbone.mask_token"}


@torch.no_grad()
def test_mmpretrain_beit_fine_tuned(save, imgs, caplog):
    """Version 1 saw images of mean 0.5, version 2 ImageNet's; the file does not say which it is."""
    weights, where = mmpretrain_beit(False, "ln2")
    tokens = mmpretrain_beit_reference(weights, where, imgs, None)
    path = save({"state_dict": weights | {"head.fc.weight": torch.zeros(5, WIDTH)}})
    assert open_encoder(path).layout == "mmpretrain's BEiT, fine-tuned"
    norm = weights["backbone.ln2.weight"], weights["backbone.ln2.bias"]
    pooled = F.layer_norm(tokens[:, 1:].mean(1), (WIDTH,), *norm, 1e-6)
    model = load(path, None, global_pool=True)
    torch.testing.assert_close(Features(model)(imgs), pooled, **TOLERANCE)
    Pretrained(path).encoder_config()
    assert "does not tell its images' mean and std" in caplog.text


def test_a_beit_without_positions_is_refused(save):
    for weights in (beit_weights(), beit_weights(shared=True), mmpretrain_beit(True)[0]):
        lost = {k: v for k, v in weights.items() if not k.endswith("_bias_table")}
        with pytest.raises(UsageError, match=r"without blocks\.0\.attn\.relative_position_bias"):
            open_encoder(save({"model": lost})).architecture(HEADS)


def test_torchvision(save, imgs):
    model = TorchvisionViT(SIZE, PATCH, DEPTH, HEADS, WIDTH, HIDDEN, num_classes=5)
    randomize(model)
    patches = model._process_input(imgs)
    tokens = model.encoder(torch.cat([model.class_token.expand(2, -1, -1), patches], 1))
    agrees(save(model.state_dict()), imgs, tokens, "torchvision's ViT")


def transformers_model(kind: str, **changes):
    """A model of transformers by its class's name, `Model` or `For…` after its configuration's."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, kind.removesuffix("Model").split("For")[0] + "Config")
    options = dict(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, image_size=SIZE, patch_size=PATCH,
    )  # fmt: skip
    return randomize(getattr(transformers, kind)(config(**options | changes)))


@torch.no_grad()
def hidden(model, imgs):
    """The tokens that a transformers model ends with, normed."""
    if hasattr(model, "beit"):
        return model.layernorm(model.beit(imgs).last_hidden_state)
    base = model.vit if hasattr(model, "vit") else model
    return base(imgs).last_hidden_state


TRANSFORMERS = {
    "ViTModel": ("transformers' ViT", HALF, {}),
    "ViTForImageClassification": ("transformers' ViT", HALF, {}),
    "Dinov2Model": ("transformers' DINOv2", IMAGENET, dict(image_size=SIZE)),
    "Dinov2WithRegistersModel": ("transformers' DINOv2", IMAGENET, dict(num_register_tokens=4)),
    "BeitForMaskedImageModeling": (
        "transformers' BEiT",
        HALF,
        dict(use_shared_relative_position_bias=True, use_mask_token=True, vocab_size=11),
    ),
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers(save, tmp_path, imgs, kind):
    layout, normalization, options = TRANSFORMERS[kind]
    model = transformers_model(kind, **options)
    model.save_pretrained(tmp_path / "folder")
    tokens = hidden(model, imgs)
    agrees(tmp_path / "folder", imgs, tokens, layout, normalization, num_heads=None)
    agrees(save(model.state_dict()), imgs, tokens, layout, normalization)  # as in memory


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ViTMAEForPreTraining", "ViTMAEModel"])
def test_transformers_vit_mae(tmp_path, imgs, kind):
    options = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1,
                   decoder_num_attention_heads=2, decoder_intermediate_size=32)  # fmt: skip
    model = transformers_model(kind, **options, mask_ratio=0.0)
    base = model.vit if hasattr(model, "vit") else model
    base.embeddings.position_embeddings.data = sincos_pos_embed(WIDTH, (GRID, GRID))
    model.save_pretrained(tmp_path)
    out = base(imgs, noise=torch.arange(TOKENS).float().expand(2, -1))
    layout = "transformers' ViT-MAE" if kind == "ViTMAEForPreTraining" else "transformers' ViT"
    agrees(tmp_path, imgs, out.last_hidden_state, layout, num_heads=None)


def test_transformers_beit_per_block(tmp_path, imgs):
    model = transformers_model("BeitModel", use_relative_position_bias=True)
    model.save_pretrained(tmp_path)
    found = load(tmp_path, None, global_pool=True)
    with torch.no_grad():
        expected = model(imgs)
        last = found.forward_features(imgs)
        torch.testing.assert_close(last, expected.last_hidden_state, **TOLERANCE)
        torch.testing.assert_close(Features(found)(imgs), expected.pooler_output, **TOLERANCE)


def test_transformers_folder_in_parts_with_a_processor(tmp_path, imgs):
    model = transformers_model("ViTModel")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    processor = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    said = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    agrees(tmp_path, imgs, hidden(model, imgs), "transformers' ViT", said, num_heads=None)


# -------------------------------------------------------------------------------------- refusals


def test_keys_that_fit_nothing_are_named_with_what_is_known(save):
    resnet = {"conv1.weight": torch.ones(2), "bn1.weight": torch.ones(2)}
    with pytest.raises(UsageError) as caught:
        open_encoder(save({"state_dict": resnet}))
    line = str(caught.value)
    assert "file.pth" in line and "conv1.weight" in line and "\n" not in line
    assert all(name in line for name in LAYOUTS)


def test_other_architectures_are_refused_in_a_line(save):
    with pytest.raises(UsageError, match="give --num_heads"):
        load(save(timm_vit().state_dict()), num_heads=None)
    clip = timm_vit(pre_norm=True).state_dict()
    with pytest.raises(UsageError, match=r"patch_embed\.proj\.bias is missing"):
        load(save(clip))
    distilled = timm_vit().state_dict() | {"dist_token": torch.zeros(1, 1, WIDTH)}
    with pytest.raises(UsageError, match="dist_token is unknown"):
        load(save(distilled))
    with pytest.raises(UsageError, match="--num_heads 5 does not divide"):
        load(save(timm_vit().state_dict()), num_heads=5)
    rotary = {k: v for k, v in timm_vit().state_dict().items() if k != "pos_embed"}
    with pytest.raises(UsageError, match="without pos_embed"):
        load(save(rotary))
    linear = timm_vit().state_dict()
    linear["patch_embed.proj.weight"] = linear["patch_embed.proj.weight"].flatten(1)
    with pytest.raises(UsageError, match="no square patches"):
        load(save(linear))
    with pytest.raises(UsageError, match="without cls_token"):
        load(save(timm_vit(class_token=False, global_pool="avg").state_dict()))


def test_known_sizes_get_their_names(save):
    model = VisionTransformer(img_size=32, patch_size=16, depth=12, norm_layer=NORM, num_classes=0)
    assert model_name(Pretrained(save(model.state_dict()))) == ("vit_base_patch16")
    narrow = timm_vit().state_dict()
    assert model_name(Pretrained(save(narrow), 3)) == "vit_48_patch8"


# ------------------------------------------------------------------------------------- the mains


def test_linprobe_and_finetune_take_a_beit_and_evaluate_what_they_saved(
    save, run_main_here, refuses, image_tree
):
    path = save({"model": beit_weights() | {"lm_head.bias": torch.zeros(7)}})
    data = ("--data_path", image_tree, "--input_size", 16, "--batch_size", 4, "--num_workers", 0)
    short = ("--finetune", path, "--epochs", 1, "--warmup_epochs", 0)
    for main in ("main_linprobe", "main_finetune"):
        outcome = run_main_here(main, *data, *short)
        assert outcome.status == 0, outcome.err
        for words in ("layout: BEiT", "taken: ", "new: ", "left over: lm_head"):
            assert words in outcome.out, outcome.out
        assert outcome.results()["flags"]["mean"] == [0.5] * 3
        saved = outcome.folder / "checkpoint-last.pth"
        again = run_main_here(main, *data, "--eval", "--resume", saved)
        assert again.status == 0, again.err
        assert again.results()["acc1"] == outcome.log()[-1]["test_acc1"]
        assert again.results()["flags"]["mean"] == [0.5] * 3
    assert run_main_here("main_linprobe", *data, "--knn", "--finetune", saved,
                         "--global_pool").status == 0  # fmt: skip
    refuses("main_finetune", *data, *short, "--model", "vit_base_patch16",
            names=("--finetune", "another architecture", "--model"))  # fmt: skip
    given = run_main_here("main_linprobe", *data, *short, "--mean", 0.4, "--std", 0.3, "--knn")
    assert given.status == 0 and given.results()["flags"]["mean"] == [0.4] * 3


def test_a_head_on_other_features_is_no_classifier_of_ours(save, refuses, image_tree):
    """As DINOv2's, on the class token beside the mean of the patches."""
    head = {"head.weight": torch.zeros(2, 2 * WIDTH), "head.bias": torch.zeros(2)}
    path = save(timm_vit().state_dict() | head)
    words = (path, "--data_path", image_tree, "--input_size", 16, "--num_heads", HEADS)
    refuses("main_robustness", *words, names=(f"classifies {2 * WIDTH} features", str(path)))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"id2label": {"10": "c", "2": "b", "0": "a"}}, ["a", "b", "c"]),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
        ({"label_names": ["x", "y"]}, ["x", "y"]),
        ({"classes": ["own"], "label_names": ["x"]}, ["own"]),
        ({}, None),
    ],
)
def test_the_names_of_a_classifiers_logits(save, config, names):
    pretrained = Pretrained(save(timm_vit().state_dict()), HEADS)
    pretrained.config |= config
    assert pretrained.classes() == names


def test_given_heads_that_contradict_a_model_are_refused(save, refuses, image_tree):
    """A name of ours has its own number, which a file of another one's may not have."""
    model = VisionTransformer(img_size=32, patch_size=16, depth=12, norm_layer=NORM, num_classes=0)
    path = save(model.state_dict())
    words = ("--finetune", path, "--data_path", image_tree, "--model", "vit_base_patch16")
    for main in ("main_linprobe", "main_finetune"):
        refuses(main, *words, "--num_heads", 6, names=("--num_heads 6", "has 12", "--model"))
        refuses(main, "--num_heads", 6, names=("--num_heads does nothing without a checkpoint",))


def test_unknown_layouts_end_the_mains_with_a_line(save, refuses):
    path = save({"state_dict": {"conv1.weight": torch.ones(2)}})
    for main in ("main_linprobe", "main_finetune"):
        refuses(main, "--finetune", path, names=("file.pth", "conv1.weight", "DINOv2"))
