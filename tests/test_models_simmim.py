"""SimMIM and MI-SimMIM: against a reference of the test's own, masks, gradients, ranks, digits."""

import json

import pytest
import torch
import torch.nn.functional as F
from ranks import in_ranks
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import main_finetune
import main_linprobe
import main_pretrain
import models_simmim
from encoders.swin import SIZES, convert_simmim
from models_simmim import SimMIMViT
from util.errors import UsageError
from util.weights.fit import load_weights

MINI = "swin_mini_patch2"


def build(name=f"misimmim_{MINI}", img_size=16, in_chans=1, **options):
    torch.manual_seed(0)
    return models_simmim.MODELS[name](img_size=img_size, in_chans=in_chans, **options)


def small_vit(**options):
    torch.manual_seed(0)
    defaults = dict(
        img_size=16, patch_size=2, in_chans=1, embed_dim=32, depth=2, num_heads=2, mask_unit=4,
        mask_ratio=0.6, num_masks=2, latent_pool="mean",
    )  # fmt: skip
    return SimMIMViT(**defaults | options)


class Reference(nn.Module):
    """SimMIM as its paper says it: mask tokens, Swin, 1×1 convolution, PixelShuffle, L1."""

    def __init__(self, img_size, window, in_chans):
        super().__init__()
        self.encoder = SwinTransformer(
            img_size=img_size, in_chans=in_chans, num_classes=0, window_size=window,
            drop_path_rate=0.0, **SIZES[MINI],
        )  # fmt: skip
        self.encoder.mask_token = nn.Parameter(torch.randn(1, 1, 64))
        self.decoder = nn.Sequential(nn.Conv2d(128, 16 * in_chans, 1), nn.PixelShuffle(4))

    def forward(self, imgs, is_masked):
        """is_masked: [B, units down, units across]."""
        x = self.encoder.patch_embed(imgs)
        for image, row, column in is_masked.nonzero().tolist():
            patches = x[image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            patches[:] = self.encoder.mask_token[0]
        z = self.encoder.norm(self.encoder.layers(x)).permute(0, 3, 1, 2)
        hidden = F.interpolate(is_masked[:, None].float(), scale_factor=4)
        error = (imgs - self.decoder(z)).abs() * hidden
        return error.sum() / hidden.sum() / imgs.shape[1]

    def published_weights(self):
        """Under SimMIM's names, with the buffers that its files carry."""
        weights = {}
        for key, value in self.state_dict().items():
            if ".downsample." in key:
                key = key.replace("layers.1.", "layers.0.")
            weights[key] = value
        name = "encoder.layers.0.blocks.1"
        weights[f"{name}.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
        return weights | {f"{name}.attn_mask": torch.zeros(4, 16, 16)}


@pytest.mark.parametrize("img_size, in_chans", [((16, 16), 3), ((16, 24), 1)])
def test_one_mask_is_simmim(img_size, in_chans):
    torch.manual_seed(1)
    grid = (img_size[0] // 4, img_size[1] // 4)
    reference = Reference(img_size, grid, in_chans)
    model = build(f"simmim_{MINI}", img_size, in_chans)
    load_weights(model, convert_simmim(reference.published_weights()), "published")
    imgs, noise = torch.randn(3, in_chans, *img_size), torch.rand(3, grid[0] * grid[1])
    is_masked, pictures = model.reconstruct(imgs, noise)
    assert is_masked.sum(1).eq(-(-is_masked.shape[1] * 6 // 10)).all()  # ceil(0.6 U), as SimMIM
    expected = reference(imgs, is_masked.view(3, *grid))
    losses = model(imgs, noise)
    torch.testing.assert_close(losses["loss"], expected, rtol=1e-6, atol=0)
    expected.backward()
    losses["loss"].backward()
    gradients = convert_simmim(
        {k.replace("layers.1.down", "layers.0.down"): p.grad
         for k, p in reference.named_parameters()}
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-7)
    hidden = is_masked.view(3, 1, *grid).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(
        (pictures - imgs).abs().masked_fill(~hidden, 0).sum() / hidden.sum() / in_chans,
        losses["rec"], rtol=1e-5, atol=0,
    )  # fmt: skip
    assert torch.equal(pictures.masked_fill(hidden, 0), imgs.masked_fill(hidden, 0))


def test_same_parameters_but_for_the_approximation():
    names = {k for k in build().state_dict() if not k.startswith("approximation.")}
    assert names == set(build(f"simmim_{MINI}").state_dict())
    assert build().masks.num_masks == 2 and build(f"simmim_{MINI}").masks.num_masks == 1


@pytest.mark.parametrize("model", [build(), small_vit()], ids=["swin", "vit"])
def test_masks_hide_whole_units(model):
    imgs = torch.randn(3, 1, 16, 16)
    noise = torch.rand(model.masks.noise_shape(3))
    assert noise.shape == (3, 16) and model.masks.num_visible == 6
    is_masked, _ = model.reconstruct(imgs, noise)
    across = 4 // model.patch_size
    units = is_masked.view(3, 2, 4, across, 4, across).transpose(3, 4).flatten(4)  # by unit
    assert (units.all(-1) == units.any(-1)).all()
    is_visible = ~units.any(-1).flatten(2)  # [B, N, U]
    assert is_visible.sum(2).eq(6).all() and not is_visible.all(1).any()  # disjoint
    order = noise.argsort(1)
    assert all(is_visible[i, 0, order[i, :6]].all() for i in range(3))


@pytest.mark.parametrize("model", [build(), small_vit()], ids=["swin", "vit"])
def test_masked_pixels_are_not_seen(model):
    imgs, noise = torch.randn(2, 1, 16, 16), torch.rand(2, 16)
    ids = model.draw_masks(imgs, noise)
    is_masked, _ = model.reconstruct(imgs, noise)
    hidden = is_masked.view(2, 2, *model.grid)[:, 0]  # of each image's first mask
    hidden = hidden.repeat_interleave(model.patch_size, 1).repeat_interleave(model.patch_size, 2)
    before, _ = model.forward_encoder(imgs, ids)
    changed, _ = model.forward_encoder(torch.where(hidden[:, None], 5.0, imgs), ids)
    torch.testing.assert_close(changed[::2], before[::2])
    assert not torch.allclose(changed[1::2], before[1::2])  # the other mask sees some of it


def test_input_of_q_is_the_mean_patch_of_each_cell():
    model, imgs = build(), torch.randn(2, 1, 16, 24)
    model = build(img_size=(16, 24))
    _, x = model.forward_encoder(imgs, model.draw_masks(imgs, None))
    tokens = model.patch_embed(imgs)  # [B, 8, 12, d]
    expected = F.avg_pool2d(tokens.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize(
    "model", [build(mi_start_loss=float("inf"), club_floor="none"), small_vit(club_floor="none")]
)
@pytest.mark.parametrize("term", ["rec", "max_mi", "min_mi", "apx"])
def test_which_parameters_a_term_moves(model, term):
    model.zero_grad(set_to_none=True)
    model(torch.randn(4, 1, 16, 16))[term].backward()
    moved = {"encoder": 0.0, "decoder": 0.0, "approximation": 0.0}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        part = {"decoder_pred": "decoder", "approximation": part}.get(part, "encoder")
        moved[part] += 0.0 if parameter.grad is None else parameter.grad.abs().sum().item()
    expected = {
        "rec": {"encoder", "decoder"}, "max_mi": {"encoder"}, "min_mi": {"encoder"},
        "apx": {"approximation"},
    }  # fmt: skip
    assert {part for part, size in moved.items() if size > 0} == expected[term]


def test_min_mi_moves_the_encoder_through_the_latents_only():
    model = build(club_floor="none")
    x, z = torch.randn(8, 6, 64, requires_grad=True), torch.randn(8, 6, 128, requires_grad=True)
    model.mi.losses(model.mi.rows(x, z, z[:, 0]))["min_mi"].backward()
    assert x.grad is None and z.grad.abs().sum() > 0


@pytest.mark.parametrize("level", ["image", "token"])
def test_latent_is_the_mean_of_the_visible_cells(level):
    model = build(club_level=level).eval()
    imgs, noise = torch.randn(2, 1, 16, 16), torch.rand(2, 16)
    z, _ = model.forward_encoder(imgs, model.draw_masks(imgs, noise))
    is_masked, _ = model.reconstruct(imgs, noise)
    expected = torch.stack([row[~hidden].mean(0) for row, hidden in zip(z, is_masked, strict=True)])
    torch.testing.assert_close(model(imgs, noise)["rows"].g, expected)


def test_features_and_half_precision():
    model, imgs, noise = build().eval(), torch.randn(2, 1, 16, 16), torch.rand(2, 16)
    encoded = model.encode(imgs)
    assert encoded.shape == (2, 17, 128)
    torch.testing.assert_close(encoded[:, 0], encoded[:, 1:].mean(1))
    assert small_vit(latent_pool="cls").encode(imgs).shape == (2, 65, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(imgs, noise)
    assert half["loss"].dtype == torch.float32
    torch.testing.assert_close(half["rec"], model(imgs, noise)["rec"], rtol=0.02, atol=0)


def test_sizes_and_pools_that_cannot_be():
    with pytest.raises(UsageError, match=r"--input_size 200 200 is not divisible by 32 .* unit"):
        models_simmim.MODELS["simmim_swin_base"](img_size=200)
    with pytest.raises(UsageError, match="mask unit"):
        small_vit(img_size=18)
    with pytest.raises(UsageError, match="--latent_pool cls"):
        build(latent_pool="cls")


def _on_rank(rank, folder):
    imgs, noise = torch.load(f"{folder}/batch.pt")
    torch.save(_losses_and_gradients(imgs[rank::2], noise[rank::2]), f"{folder}/{rank}.pt")


def _losses_and_gradients(imgs, noise):
    model = build()
    model.gate.is_open.fill_(1.0)
    losses = model(imgs, noise)
    losses["loss"].backward()
    values = {k: v.detach() for k, v in losses.items() if k != "rows"}
    return values, {k: p.grad for k, p in model.named_parameters()}


def test_two_processes_are_one(tmp_path):
    imgs, noise = torch.randn(4, 1, 16, 16), torch.rand(4, 16)
    torch.save((imgs, noise), tmp_path / "batch.pt")
    assert in_ranks(_on_rank, 2, tmp_path, str(tmp_path)) == [None, None]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    values, gradients = _losses_and_gradients(imgs, noise)
    for key, value in values.items():
        torch.testing.assert_close((first[0][key] + second[0][key]) / 2, value)
    for key, gradient in gradients.items():
        mean = (first[1][key] + second[1][key]) / 2
        torch.testing.assert_close(mean, gradient, rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------------------- through the mains


def run(main, folder, *argv):
    flags = ["--output_dir", folder, "--device", "cpu", "--input_size", 16, *argv]
    main.main(main.parse_args([str(flag) for flag in flags]))
    lines = (folder / "log.txt").read_text().splitlines() if (folder / "log.txt").exists() else []
    return json.loads((folder / "results.json").read_text()), [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simmim")
    _, log = run(
        main_pretrain, folder, "--model", f"simmim_{MINI}", "--epochs", 5, "--warmup_epochs", 1,
        "--train_fraction", 0.5, "--batch_size", 32, "--blr", 0.016, "--visualize", 2,
        "--knn_every", 5,
    )  # fmt: skip
    return folder, log


def test_loss_falls_on_digits(pretrained):
    folder, log = pretrained
    assert log[-1]["train_rec"] < 0.9 * log[0]["train_rec"]
    assert log[-1]["knn_acc1"] > 25
    assert (folder / "reconstructions.png").exists()


@pytest.mark.slow
def test_probe_beats_the_untrained_encoder(tmp_path):
    flags = ("--batch_size", 128, "--epochs", 30, "--warmup_epochs", 2, "--blr", 2e-3)
    run(main_pretrain, tmp_path, "--model", f"simmim_{MINI}", *flags)
    probe = ("--epochs", 30, "--warmup_epochs", 3)
    weights = tmp_path / "checkpoint-last.pth"
    trained, _ = run(main_linprobe, tmp_path / "a", *probe, "--finetune", weights)
    random, _ = run(main_linprobe, tmp_path / "b", *probe, "--model", MINI)
    assert trained["test_acc1"] > random["test_acc1"] + 2


def test_downstream_mains_take_the_checkpoint(pretrained, tmp_path):
    weights = ("--finetune", pretrained[0] / "checkpoint-last.pth")
    small = ("--train_fraction", 0.2, "--warmup_epochs", 1, "--epochs")
    probed, _ = run(main_linprobe, tmp_path / "probe", *weights, *small, 20)
    assert probed["test_acc1"] > 15
    tuned, _ = run(
        main_finetune, tmp_path / "tune", *weights, *small, 4, "--input_size", 20, 24,
        "--blr", 0.016, "--batch_size", 16, "--layer_decay", 0.9, "--mixup", 0, "--cutmix", 0,
        "--aa", "none", "--reprob", 0, "--min_crop", 1,
    )  # fmt: skip
    assert tuned["test_loss"] < 2.3 and tuned["test_acc1"] > 15


def test_resume_is_exact(tmp_path):
    flags = ("--model", f"misimmim_{MINI}", "--mi_start_loss", "inf", "--epochs", 1)
    flags += ("--train_fraction", 0.1, "--batch_size", 32, "--save_every_steps", 1)
    run(main_pretrain, tmp_path / "whole", *flags, "--keep_checkpoints", 9)
    part = tmp_path / "whole" / "checkpoint-last-3.pth"
    assert torch.load(part)["progress"]["step"] == 2
    run(main_pretrain, tmp_path / "rest", *flags, "--resume", part)
    whole, rest = (
        torch.load(tmp_path / name / "checkpoint-last.pth")["model"] for name in ("whole", "rest")
    )
    assert all(torch.equal(whole[key], rest[key]) for key in whole)


def test_flags_that_a_model_brings():
    args = main_pretrain.parse_args(["--model", "misimmim_swin_base", "--data_path", "x"])
    assert args.input_size == [192] and args.betas == [0.9, 0.999] and args.clip_grad == 5
    assert (args.num_masks, args.mask_ratio, args.min_crop) == (0, 0.6, 0.67)
    assert (args.blr, args.blr_samples, args.norm_pix_loss) == (1e-4, 512, False)
    args = main_pretrain.parse_args(["--model", "simmim_swin_base", "--mask_ratio", "0.5"])
    assert args.mask_ratio == 0.5 and args.lambda_max == 0  # a flag wins
    assert main_pretrain.parse_args([]).betas == [0.9, 0.95]
