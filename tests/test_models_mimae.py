"""The masks, the model around the losses, and which parameters each loss moves."""

import math

import pytest
import torch

import models_mimae
from models_mimae import (
    MODELS,
    MaskedAutoencoderViT,
    OrthogonalMasks,
    ReconstructionGate,
    follow_above,
    info_nce,
    orthogonal_permutations,
)
from util.errors import UsageError
from util.training.checkpoint import BufferState
from util.training.uniformity import uniformity


def images(batch=3, chans=1, height=8, width=8):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, chans, height, width, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------------------ masks


def test_the_visible_sets_partition_the_patches_when_n_k_is_l():
    ids = orthogonal_permutations(torch.rand(5, 16), num_masks=4, num_visible=4)
    assert ids.shape == (5, 4, 16)
    assert (ids.sort(2).values == torch.arange(16)).all()  # each row is a permutation
    visible = ids[:, :, :4].flatten(1)
    assert (visible.sort(1).values == torch.arange(16)).all()


@pytest.mark.parametrize(
    ("num_masks", "num_visible"),
    [(3, 4), (2, 8), (4, 8), (4, 12), (5, 4), (8, 4), (7, 9), (16, 15)],
)
def test_patches_are_seen_as_evenly_as_possible(num_masks, num_visible):
    ids = orthogonal_permutations(torch.rand(4, 16), num_masks, num_visible)
    for image in ids:
        seen = torch.bincount(image[:, :num_visible].flatten(), minlength=16)
        assert seen.sum() == num_masks * num_visible
        assert seen.max() - seen.min() <= 1
        if num_masks * num_visible <= 16:
            assert seen.max() == 1
        for mask in image:
            assert mask[:num_visible].unique().numel() == num_visible
        sets = {tuple(mask[:num_visible].sort().values.tolist()) for mask in image}
        assert len(sets) == num_masks  # no mask is another's copy


def masking(num_patches, num_masks, mask_ratio):
    masks = OrthogonalMasks(num_patches, num_masks, mask_ratio, "orthogonal")
    return masks.num_masks, masks.num_visible


def test_fashion_mnist_grid_of_49_leaves_one_patch_over():
    num_masks, num_visible = masking(49, 4, 0.75)
    ids = orthogonal_permutations(torch.rand(2, 49), num_masks, num_visible)
    assert (num_masks, num_visible) == (4, 12)
    assert all(image[:, :12].unique().numel() == 48 for image in ids)


def test_each_patch_is_seen_equally_often_by_each_mask():
    draws = 8000
    ids = orthogonal_permutations(torch.rand(draws, 16), 4, 4)
    for mask in range(4):
        share = torch.bincount(ids[:, mask, :4].flatten(), minlength=16) / draws
        # Five standard deviations of a share of 1/4.
        assert (share - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / draws)


def test_row_0_is_the_argsort_of_the_noise():
    noise = torch.rand(3, 16)
    assert torch.equal(orthogonal_permutations(noise, 4, 4)[:, 0], noise.argsort(1))


def test_independent_masks_are_permutations_that_overlap_as_chance_has_it(tiny):
    model = tiny(mask_type="independent", num_masks=2)
    ids = model.draw_masks(None, torch.rand(model.masks.noise_shape(4000)))
    assert (ids.sort(2).values == torch.arange(16)).all()
    overlap = (ids[:, 0, :4, None] == ids[:, 1, None, :4]).sum((1, 2)).double()
    assert overlap.mean() == pytest.approx(4 * 4 / 16, abs=0.06)


@pytest.mark.parametrize(
    ("ratio", "count"), [(0.5, 2), (0.6, 2), (0.7, 3), (0.75, 4), (0.8, 5), (0.9, 10), (0.2, 2)]
)
def test_complete_masking_counts(ratio, count):
    assert masking(196, 0, ratio) == (count, int(196 * (1 - ratio)))


def test_a_whole_number_of_visible_patches_is_not_rounded_down():
    """In floating point 100 · (1 − 0.9) is below 10."""
    assert masking(100, 0, 0.9) == (10, 10)
    for num_patches in (16, 49, 64, 100, 144, 196, 256, 576, 1024):
        for percent in range(1, 100):
            num_visible = num_patches * (100 - percent) // 100
            if num_visible:
                assert masking(num_patches, 4, percent / 100) == (4, num_visible)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ((16, 4, 0.0), "--mask_ratio"),
        ((16, 4, 1.0), "--mask_ratio"),
        ((16, 4, 1.5), "--mask_ratio"),
        ((16, 4, math.nan), "--mask_ratio"),
        ((16, 4, 0.97), "--mask_ratio"),
        ((16, -1, 0.75), "--num_masks"),
    ],
)
def test_unusable_masks_name_their_flag(arguments, flag):
    with pytest.raises(UsageError, match=flag):
        masking(*arguments)


# ------------------------------------------------------------------------------------------ model


def test_patches_are_row_column_channel(tiny):
    model = tiny(img_size=(4, 8), in_chans=3)
    imgs = torch.arange(3 * 4 * 8, dtype=torch.float64).view(1, 3, 4, 8)
    patches = model.patchify(imgs)
    assert patches.shape == (1, 8, 12)
    for patch in range(8):
        top, left = 2 * (patch // 4), 2 * (patch % 4)
        expected = [imgs[0, c, top + r, left + k] for r in (0, 1) for k in (0, 1) for c in range(3)]
        assert patches[0, patch].tolist() == [float(value) for value in expected]
    assert torch.equal(model.unpatchify(patches), imgs)


def test_images_of_another_size_are_refused(tiny):
    model = tiny()
    height, width = model.patch_embed.img_size
    for shape in ((2 * height, width), (2 * height, width // 2)):  # the second has as many pixels
        with pytest.raises(ValueError, match="pixels for a model of"):
            model(torch.randn(2, 1, *shape, dtype=model.pos_embed.dtype))


def test_encode_is_the_encoder_on_all_patches(tiny):
    model, imgs = tiny(), images()
    tokens = model.encode(imgs)
    assert tokens.shape == (3, 17, 16)
    ids = torch.rand(3, 1, 16).argsort(2)
    model.masks.num_visible = 16
    shuffled, _ = model.forward_encoder(imgs, ids)
    restored = shuffled[:, 1:].gather(1, ids[:, 0].argsort(1)[:, :, None].expand(-1, -1, 16))
    torch.testing.assert_close(shuffled[:, 0], tokens[:, 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(restored, tokens[:, 1:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_reconstruct_keeps_visible_pixels_and_agrees_with_the_loss(tiny, norm_pix_loss):
    model, imgs = tiny(norm_pix_loss=norm_pix_loss), images()
    noise = torch.rand(3, 16)
    is_masked, pictures = model.reconstruct(imgs, noise)
    assert is_masked.shape == (12, 16) and pictures.shape == (12, 1, 8, 8)
    assert (is_masked.sum(1) == 12).all()
    predicted, truth = model.patchify(pictures), model.patchify(imgs).repeat_interleave(4, 0)
    assert torch.equal(predicted[~is_masked], truth[~is_masked])
    error = predicted - truth
    if norm_pix_loss:
        error = error / (truth.var(2, keepdim=True) + 1e-6).sqrt()
    rec = model(imgs, noise)["rec"]
    torch.testing.assert_close((error[is_masked] ** 2).mean(), rec, rtol=1e-9, atol=0)


def test_reconstruct_with_the_visible_patches_statistics(tiny):
    model, imgs, noise = tiny(norm_pix_loss=True), images(1), torch.rand(1, 16)
    with torch.no_grad():  # a decoder that predicts "the mean" everywhere
        model.decoder_pred.weight.zero_()
        model.decoder_pred.bias.zero_()
    is_masked, pictures = model.reconstruct(imgs, noise, patch_statistics="visible")
    patches = model.patchify(imgs)[0]
    for mask in range(4):
        seen = patches[~is_masked[mask]].mean()
        hidden = model.patchify(pictures)[mask][is_masked[mask]]
        torch.testing.assert_close(hidden, seen.expand_as(hidden))


@pytest.mark.parametrize(("pred_ratio", "num_predicted"), [(1.0, 12), (0.5, 6), (0.01, 1)])
def test_a_pred_ratio_predicts_and_decodes_only_so_many_masked_patches(
    tiny, pred_ratio, num_predicted
):
    options = dict(num_masks=1, lambda_max=0.0, lambda_min=0.0, norm_pix_loss=False)
    model, imgs, noise = tiny(pred_ratio=pred_ratio, **options), images(1), torch.rand(1, 16)
    lengths = []
    model.decoder_blocks[0].norm1.register_forward_hook(
        lambda module, inputs, output: lengths.append(output.shape[1])
    )
    rec, ids = model(imgs, noise)["rec"], noise.argsort(1)[0]
    assert lengths == [1 + 4 + num_predicted]
    for position, patch in enumerate(ids[4:]):  # the loss looks at the next K, K + 1, … alone
        changed = model.patchify(imgs.clone())
        changed[:, patch] += 1
        moved = not torch.equal(model(model.unpatchify(changed), noise)["rec"], rec)
        assert moved == (position < num_predicted)


def test_pictures_and_encodings_do_not_depend_on_the_pred_ratio(tiny):
    whole, part = tiny(), tiny(pred_ratio=0.25)
    imgs, noise = images(), torch.rand(3, 16)
    for shown, expected in zip(
        part.reconstruct(imgs, noise), whole.reconstruct(imgs, noise), strict=True
    ):
        assert torch.equal(shown, expected)
    torch.testing.assert_close(part(imgs, noise)["max_mi"], whole(imgs, noise)["max_mi"])


def test_one_batch_can_be_learnt_by_heart(tiny):
    model, imgs, noise = tiny(lambda_min=1.0).float(), images(4).float(), torch.rand(4, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(150):
        losses = model(imgs, noise)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append({name: losses[name].item() for name in ("rec", "max_mi", "apx")})
    assert history[-1]["rec"] < 0.35 * history[0]["rec"]
    assert history[-1]["max_mi"] < 0.7 * history[0]["max_mi"]
    assert history[-1]["apx"] < history[0]["apx"]


def test_grad_checkpointing_changes_no_number(tiny):
    noise, gradients = torch.rand(3, 16), []
    for checkpointed in (False, True):
        model = tiny(grad_checkpointing=checkpointed)
        model(images(), noise)["loss"].backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-9, atol=1e-12)


def test_every_named_model_can_be_built_and_has_maes_names():
    for name, build in MODELS.items():
        with torch.device("meta"):
            patch = int(name.rsplit("patch")[1])
            model = build(img_size=patch * 4, in_chans=3, lambda_min=0.0)
        assert isinstance(model, MaskedAutoencoderViT)
        top = {key.split(".")[0] for key in model.state_dict()}
        assert top == {
            "cls_token", "pos_embed", "patch_embed", "blocks", "norm", "decoder_embed",
            "mask_token", "decoder_pos_embed", "decoder_blocks", "decoder_norm", "decoder_pred",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        (dict(img_size=9), "--input_size"),
        (dict(img_size=(8, 7)), "--input_size"),
        (dict(temperature=0.0), "--temperature"),
        (dict(temperature=math.nan), "--temperature"),
        (dict(pred_ratio=0.0), "--pred_ratio"),
        (dict(pred_ratio=1.5), "--pred_ratio"),
        (dict(mask_type="grid"), "--mask_type"),
        (dict(latent_pool="max"), "--latent_pool"),
        (dict(club_level="batch"), "--club_level"),
        (dict(club_negatives="token"), "--club_negatives"),
        (dict(mi_head="linear"), "--mi_head"),
        (dict(num_masks=1), "--num_masks"),
        (dict(num_masks=1, lambda_max=0.0), "--num_masks"),
    ],
)
def test_unusable_options_name_their_flag(tiny, changes, flag):
    with pytest.raises(UsageError, match=flag):
        tiny(**changes)


# -------------------------------------------------------------------------------- who feels which

DECODER = ("decoder_", "mask_token")
PHI = ("approximation.",)
MOVES = {  # method.md's table: L_rec, L_max, L_min, L_apx
    "rec": lambda name: not name.startswith(PHI),
    "max_mi": lambda name: not name.startswith(DECODER + PHI),
    "min_mi": lambda name: not name.startswith(DECODER + PHI),
    "apx": lambda name: name.startswith(PHI),
}


@pytest.mark.parametrize("mask_type", ["orthogonal", "independent"])
@pytest.mark.parametrize("club_negatives", ["image", "batch"])
@pytest.mark.parametrize("club_level", ["image", "token"])
@pytest.mark.parametrize("latent_pool", ["cls", "mean"])
@pytest.mark.parametrize("term", MOVES)
def test_each_term_moves_the_parameters_of_the_table(
    tiny, term, latent_pool, club_level, club_negatives, mask_type
):
    # An untrained φ gives estimates on both sides of zero; followed, each of them moves.
    model = tiny(
        mask_type=mask_type, club_level=club_level, club_negatives=club_negatives,
        latent_pool=latent_pool, club_floor="none",
    )  # fmt: skip
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    part = model(images(), torch.rand(model.masks.noise_shape(3)))[term]
    grads = torch.autograd.grad(part, named.values(), allow_unused=True)
    moved = {n for n, g in zip(named, grads, strict=True) if g is not None and g.abs().max() > 0}
    assert moved == {name for name in named if MOVES[term](name)}


@pytest.mark.parametrize("club_level", ["image", "token"])
def test_min_mi_reaches_the_encoder_through_z_alone(tiny, club_level):
    model = tiny(club_level=club_level)
    ids = model.draw_masks(images(), torch.rand(3, 16))
    z, x = model.forward_encoder(images(), ids)
    x = x.detach().requires_grad_()
    losses = model.mi.losses(model.mi.rows(x, z[:, 1:], z[:, 0]))
    min_mi, apx = losses["min_mi"], losses["apx"]
    assert torch.autograd.grad(min_mi + apx, x, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(apx, z, allow_unused=True) == (None,)


def test_the_loss_is_the_weighted_sum(tiny):
    model = tiny(lambda_rec=0.5, lambda_max=0.7, lambda_min=3.0)
    out = model(images(), torch.rand(3, 16))
    expected = 0.5 * out["rec"] + 0.7 * out["max_mi"] + 3.0 * out["min_mi"] + out["apx"]
    torch.testing.assert_close(out["loss"], expected, rtol=1e-12, atol=0)


def test_an_untrained_approximation_network(tiny):
    model = tiny(train_approximation=False)
    out = model(images(), torch.rand(3, 16))
    expected = out["rec"] + out["max_mi"] + 10 * out["min_mi"]
    torch.testing.assert_close(out["loss"], expected, rtol=1e-12, atol=0)
    assert not any(p.requires_grad for p in model.approximation.parameters())


@pytest.mark.parametrize("mi_head", ["none", "mlp"])
def test_what_is_compared_is_in_full_precision(tiny, mi_head):
    model = tiny(mi_head=mi_head).float()
    with torch.autocast("cpu", torch.bfloat16):
        rows = model.mi_rows(images().float(), torch.rand(3, 16))
    assert {part.dtype for part in rows} == {torch.float32}


def test_terms_of_weight_zero_cost_no_gradient(tiny):
    out = tiny(lambda_max=0.0, lambda_min=0.0)(images(), torch.rand(3, 16))
    assert torch.equal(out["loss"], out["rec"])
    assert out["max_mi"] > 0 and not out["max_mi"].requires_grad  # for the log
    assert out["min_mi"] == out["apx"] == 0


# ------------------------------------------------------------------------------------------- gate

ONE = torch.tensor(1.0)


@pytest.mark.parametrize(("start", "share"), [("80%", 0.8), ("auto", 0.8), ("35.5%", 0.355)])
def test_a_share_is_of_what_the_mean_patch_costs(start, share):
    """The same rule for any scale of the targets."""
    for scale in (0.01, 1.0, 50.0):
        gate = ReconstructionGate(start)
        mean_patch = torch.tensor(scale)
        for _ in range(5):
            gate.update(1.001 * share * mean_patch, mean_patch)
        assert not gate.is_open
        for _ in range(100):
            gate.update(0.9 * share * mean_patch, mean_patch)
        assert gate.is_open


def test_a_step_that_is_its_own_mean_patch_does_not_count():
    """The first of a run of single images."""
    gate = ReconstructionGate("80%")
    gate.update(ONE, torch.tensor(0.0))
    assert gate.num_updates == gate.rec_mean == 0 and not gate.is_open
    gate.update(torch.tensor(0.7), ONE)
    assert gate.is_open
    gate = ReconstructionGate(0.1)  # is of no mean patch
    gate.update(torch.tensor(0.05), torch.tensor(0.0))
    assert gate.is_open


@pytest.mark.parametrize(("saved", "own"), [(0.1, "auto"), ("80%", 0.1)])
def test_a_running_mean_of_the_other_unit_begins_anew(saved, own):
    """A run whose --mi_start_loss is changed on the way."""
    before, gate = ReconstructionGate(saved), ReconstructionGate(own)
    rec, mean_patch = torch.tensor(0.5), torch.tensor(0.45)
    for _ in range(3):
        before.update(rec, mean_patch)
    state = BufferState(before).state_dict()
    BufferState(gate).load_state_dict(state)
    assert gate.num_updates == gate.rec_mean == 0
    gate.update(rec, mean_patch)
    assert not gate.is_open
    same = ReconstructionGate(saved)
    BufferState(same).load_state_dict({k: v for k, v in state.items() if k != "of_share"})
    assert same.num_updates == 3  # of an older file


def test_the_gate_opens_by_the_running_mean_and_stays_open(tiny):
    model = tiny(mi_start_loss=0.5)
    out = model(images(), torch.rand(3, 16))
    torch.testing.assert_close(out["loss"], out["rec"] + out["apx"], rtol=1e-12, atol=0)
    assert not model.gate.is_open

    gate = model.gate
    gate.rec_mean.zero_()
    gate.num_updates.zero_()
    for count in range(1, 200):
        gate.update(torch.tensor(0.4 if count > 10 else 1.0), ONE)
        weights = [0.95**age for age in range(count)]  # newest first
        values = [0.4 if count - age > 10 else 1.0 for age in range(count)]
        mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        assert bool(gate.is_open) == (mean < 0.5)
        if gate.is_open:
            break
    assert 10 < count < 199
    gate.update(torch.tensor(50.0), ONE)
    assert gate.is_open
    out = model.eval()(images(), torch.rand(3, 16))
    assert out["loss"] > out["rec"] + out["apx"]

    other = tiny(mi_start_loss=0.5)
    BufferState(other.gate).load_state_dict(BufferState(gate).state_dict())
    assert other.gate.is_open and other.gate.num_updates == gate.num_updates
    assert not any(key.startswith("gate") for key in model.state_dict())


def test_a_gate_that_goes_back_to_before_it_opened_opens_again(tiny):
    """As after a rollback, when log steps have passed since it opened."""
    gate = tiny(mi_start_loss=0.5).gate
    before = BufferState(gate).state_dict()
    for _ in range(2):
        gate.update(torch.tensor(0.1), ONE)
        gate.settle()
        assert gate.is_open and not gate.is_watched
        BufferState(gate).load_state_dict(before)
        assert not gate.is_open


def test_the_gate_is_the_engines_to_move_and_inf_is_open_at_once(tiny):
    model = tiny(mi_start_loss=100.0)
    model(images(), torch.rand(3, 16))
    assert model.gate.num_updates == 0 and not model.gate.is_open
    assert tiny().gate.is_open


def test_ranks_exchange_nothing_for_a_gate_that_is_open_or_not_needed(tiny, monkeypatch):
    exchanged = []
    reduce_mean = models_mimae.distributed.reduce_mean
    monkeypatch.setattr(
        models_mimae.distributed, "reduce_mean", lambda x: exchanged.append(1) or reduce_mean(x)
    )
    gate = tiny(mi_start_loss=0.5).gate
    for rec in (1.0, 0.1, 0.1):
        gate.update(torch.tensor(rec), ONE)
        gate.settle()
        if not gate.is_open:
            assert gate.is_watched
    assert gate.is_open and not gate.is_watched
    before = len(exchanged)
    gate.update(torch.tensor(0.1), ONE)
    for needless in (tiny(lambda_max=0.0, lambda_min=0.0, mi_start_loss=0.5), tiny()):
        needless.gate.update(torch.tensor(0.1), ONE)
    assert len(exchanged) == before > 0


# ------------------------------------------------------------------------- the MI losses' networks


@pytest.mark.parametrize(
    "losses", [{}, dict(mi_head="mlp"), dict(lambda_min=0.0), dict(club_level="token")]
)
def test_models_of_one_seed_start_from_maes_weights(tiny, losses):
    """So MAE and MI-MAE of one seed are paired."""
    mae = tiny(num_masks=1, lambda_max=0.0, lambda_min=0.0).state_dict()
    mimae = tiny(**losses).state_dict()
    assert mae.keys() == {key for key in mimae if not key.startswith(("approximation", "mi_head"))}
    for name, weight in mae.items():
        assert torch.equal(weight, mimae[name]), name


def test_phi_is_the_same_with_and_without_a_head(tiny):
    alone, beside = tiny().approximation, tiny(mi_head="mlp").approximation
    for one, other in zip(alone.parameters(), beside.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_head_is_between_the_latents_and_info_nce_alone(tiny):
    model, noise = tiny(mi_head="mlp"), torch.rand(3, 16)
    out = model(images(), noise)
    projected, _, latent = model.mi_rows(images(), noise)
    torch.testing.assert_close(projected, model.mi_head(latent))
    torch.testing.assert_close(out["max_mi"], info_nce(projected, 4, 0.07))
    torch.testing.assert_close(out["min_mi"], tiny()(images(), noise)["min_mi"])
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(out["max_mi"], named.values(), allow_unused=True)
    moved = {n for n, g in zip(named, grads, strict=True) if g is not None and g.abs().max() > 0}
    assert {n for n in named if n.startswith("mi_head.")} <= moved
    assert tiny(mi_head="mlp", lambda_max=0.0).mi_head is None


@pytest.mark.parametrize(("sign", "moves"), [(1, True), (-1, False)])
def test_an_estimate_below_zero_is_told_and_not_followed(sign, moves):
    bound = torch.tensor(sign * 0.1, requires_grad=True)
    followed, is_followed = follow_above(bound, "batch")
    assert bool(is_followed) == moves and bool(follow_above(bound, "none")[1])
    assert float(followed.detach()) == pytest.approx(sign * 0.1)
    assert followed.requires_grad
    (grad,) = torch.autograd.grad(followed, bound)
    assert float(grad) == float(moves)


@pytest.mark.parametrize("floor", ["batch", "none"])
def test_without_a_floor_eq_10_is_followed_as_printed(tiny, floor):
    """φ is drawn anew until its estimates have been on both sides of zero."""
    model = tiny(lambda_rec=0.0, lambda_max=0.0, club_floor=floor)
    signs = set()
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        for weight in model.approximation.parameters():
            torch.nn.init.normal_(weight, std=0.5, generator=draw)
        loss = model(images(), torch.rand(model.masks.noise_shape(3), generator=draw))["min_mi"]
        (grad,) = torch.autograd.grad(loss, model.blocks[0].mlp.fc1.weight)
        signs.add(bool(loss > 0))
        assert bool(grad.any()) == (floor == "none" or bool(loss > 0))
    assert signs == {True, False}


def test_the_uniformity_control_is_added_to_the_loss_from_the_first_step(tiny):
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    plain = tiny(mi_start_loss=0.0)(images(), noise)
    control = tiny(mi_start_loss=0.0, lambda_uniformity=0.1)(images(), noise)
    extra = 0.1 * uniformity(control["rows"].g, 4)
    torch.testing.assert_close(control["loss"], plain["loss"] + extra)
    assert extra > 0
