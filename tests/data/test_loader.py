"""Which image is in which batch, on which rank; workers; unreadable images."""

import itertools
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data._utils import signal_handling

from util.cluster import distributed
from util.data import loader
from util.data.datasets import DATASETS, FileImages
from util.data.file_index import find_images
from util.data.loader import Batches, num_cores
from util.data.transformed import TransformedImages
from util.data.transforms import AutoAugment, CropAndFlip, Normalize
from util.errors import RunError, UsageError
from util.randomness import derive_seed, epoch_order, mask_noise


class Numbers(torch.utils.data.Dataset):
    """Image i is the number i."""

    def __init__(self, size, bad=()):
        self.size, self.bad, self.images = size, bad, self

    def __len__(self):
        return self.size

    def problem(self, index):
        return f"image-{index}"

    def __getitem__(self, item):
        return torch.tensor([item[1]]), item[0], item[1] if item[1] in self.bad else -1


def ids(batches, *position):
    return [imgs[:, 0].tolist() for imgs, _ in batches.epoch(*position)]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


@pytest.fixture
def as_rank(monkeypatch):
    def set_rank(rank, world):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world)

    return set_rank


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_partition_each_global_batch_which_does_not_depend_on_their_number(as_rank, world):
    whole = ids(Batches(Numbers(50), 12, True, seed=3), 4)
    parts = []
    for rank in range(world):
        as_rank(rank, world)
        batches = Batches(Numbers(50), 12 // world, True, seed=3)
        parts.append(ids(batches, 4))
        assert [batches.global_ids(4, n) for n in range(len(batches))] == whole
    assert len(whole) == 4
    for n, batch in enumerate(whole):
        assert [batch[rank::world] for rank in range(world)] == [part[n] for part in parts]


def test_an_epoch_is_a_permutation_without_the_rest():
    batches = Batches(Numbers(50), 8, True, seed=1)
    first, second = (flat(ids(batches, epoch)) for epoch in (0, 1))
    assert len(first) == 48 and len(set(first)) == 48 and first != second
    assert first == epoch_order(50, 1, 0)[:48].tolist()
    assert flat(ids(Batches(Numbers(50), 8, True, seed=2))) != first


@pytest.mark.parametrize("workers", [0, 2])
def test_a_start_in_the_middle_gives_the_same_rest(workers):
    batches = Batches(Numbers(50), 8, True, num_workers=workers)
    whole = ids(batches, 2)
    assert ids(batches, 2, 4) == whole[4:]
    assert ids(batches, 2, 6) == []
    assert ids(batches, 2, 1, frozenset({3, 5})) == [whole[1], whole[2], whole[4]]
    stopped = batches.epoch(2)
    assert next(stopped)[0][:, 0].tolist() == whole[0]
    del stopped
    assert ids(batches, 2) == whole  # an epoch that was left does not disturb the next


@pytest.mark.parametrize("world", [1, 2])
def test_epochs_of_another_length_go_on_where_the_pass_before_ended(as_rank, world):
    """Rounds of 4 and of 10 micro-batches are cut from the same stream of passes, 6 each."""
    passes = Batches(Numbers(50), 8, True, seed=1)
    stream = [batch for number in range(4) for batch in ids(passes, number)]
    for rank in range(world):
        as_rank(rank, world)
        for length in (4, 10):
            rounds = Batches(Numbers(50), 8 // world, True, seed=1, length=length, num_workers=1)
            assert len(rounds) == length
            for number in (0, 1):
                first = number * length
                expected = [batch[rank::world] for batch in stream[first : first + length]]
                assert ids(rounds, number) == expected
                assert ids(rounds, number, 3) == expected[3:]
                assert rounds.global_ids(number, 3) == stream[first + 3]


def test_a_batch_knows_in_which_pass_it_is_so_that_augmentation_does():
    rounds = Batches(Numbers(8), 4, True, length=3)
    assert [passes.tolist() for _, passes in rounds.epoch(1)] == [[1] * 4, [2] * 4, [2] * 4]


@pytest.mark.parametrize(("size", "world"), [(13, 1), (13, 2), (12, 3), (2, 3), (5, 4)])
def test_evaluation_covers_each_image_once(as_rank, size, world):
    seen = []
    for rank in range(world):
        as_rank(rank, world)
        batches = Batches(Numbers(size), 2, False)
        ids_read = ids(batches)
        assert len(batches) - len(ids_read) in (0, 1)
        seen += flat(ids_read)
    assert sorted(seen) == list(range(size))


def test_a_batch_larger_than_the_data(as_rank):
    with pytest.raises(UsageError, match=r"--batch_size 9 .*8 images"):
        Batches(Numbers(8), 9, True)
    as_rank(0, 3)
    with pytest.raises(UsageError, match=r"--batch_size 3 on 3"):
        Batches(Numbers(8), 3, True)


def test_workers_change_no_pixel(image_tree):
    root = str(image_tree)
    paths = find_images(root)
    images = FileImages(root, paths, range(len(paths)), [], 3)
    augment = AutoAugment("rand-m9-mstd0.5-inc1", (8, 8), DATASETS["image_folder"].mean)
    transform = CropAndFlip((8, 8), 0.2, True, augment=augment)
    epochs = []
    for workers in (0, 2):
        data = TransformedImages(images, transform, seed=7)
        batches = Batches(data, 4, True, 7, num_workers=workers)
        epochs.append([batch for epoch in (0, 1) for batch in batches.epoch(epoch)])
    for (alone, targets), (shared, same) in zip(*epochs, strict=True):
        assert torch.equal(alone, shared) and torch.equal(targets, same)


class Dies(Numbers):
    def __init__(self, size, mark):
        super().__init__(size)
        self.mark = mark

    def __getitem__(self, item):
        if item[1] == 11 and not os.path.exists(self.mark):
            open(self.mark, "w").close()
            os._exit(1)  # as the kernel does to a worker when memory runs out
        return super().__getitem__(item)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_while_a_step_runs_costs_no_image(tmp_path, workers, monkeypatch):
    """Nor where somebody's own loader has set torch's handler before."""
    before = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    assert len(list(torch.utils.data.DataLoader(range(2), num_workers=1))) == 2
    expected = ids(Batches(Numbers(40), 4, True))
    batches = Batches(Dies(40, str(tmp_path / "died")), 4, True, num_workers=workers)
    pixels = []
    for imgs, _ in batches.epoch():
        pixels.append(imgs[:, 0].tolist())
        time.sleep(0.05)  # the step
    signal.signal(signal.SIGCHLD, before)
    assert pixels == expected
    assert (tmp_path / "died").exists()


def test_bad_images_are_counted_once_named_and_limited(caplog):
    batches = Batches(Numbers(20, bad=(3, 9)), 4, True, max_bad_images=2)
    for epoch in (0, 1):
        assert len(ids(batches, epoch)) == 5
    assert batches.bad_images == {3, 9}
    assert [word in caplog.text for word in ("image-3", "image-9")] == [True, True]
    assert caplog.text.count("image-3") == 1
    batches = Batches(Numbers(20, bad=(3, 9)), 4, True, max_bad_images=1)
    with pytest.raises(RunError, match="--max_bad_images 1") as caught:
        ids(batches)
    assert caught.value.status == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_usage_error_is_one_line_from_a_worker_too(tmp_path, workers):
    for i in range(4):
        (tmp_path / f"{i}.png").write_text("no image")
    images = FileImages(str(tmp_path), find_images(str(tmp_path)), [-1] * 4, [], 3)
    batches = Batches(TransformedImages(images, lambda x: x, 0), 2, True, num_workers=workers)
    with pytest.raises(UsageError) as caught:
        ids(batches)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("20 images in a row")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transforms_usage_error_keeps_its_words(tmp_path, workers):
    """Notes would stand below them, and the last line is told."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    images = FileImages(str(tmp_path), ["a.png"] * 4, [-1] * 4, [], 3)
    batches = Batches(TransformedImages(images, refuse, 0), 2, True, num_workers=workers)
    with pytest.raises(UsageError, match=r"^--aa needs 8 bits: use --aa none$"):
        ids(batches)


def refuse(image):
    raise UsageError("--aa needs 8 bits: use --aa none")


# -------------------------------------------------------------------------------------- randomness


def test_seeds_differ_by_every_counter_and_its_place():
    seeds = [derive_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)]
    assert len(set(seeds)) == 512 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0) != derive_seed(0, 0) and derive_seed(-1) != derive_seed(1)


def test_mask_noise_follows_from_seed_and_step():
    noise = mask_noise((64, 16), 0, 5)
    assert torch.equal(noise, mask_noise((64, 16), 0, 5))
    assert not torch.equal(noise, mask_noise((64, 16), 0, 6))
    assert not torch.equal(noise, mask_noise((64, 16), 1, 5))
    assert 0.4 < noise.mean() < 0.6 and noise.min() >= 0 and noise.max() < 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_of_several_types_share_a_batch(tmp_path, num_workers):
    """The same picture in 8 and in 16 bits and as floats is the same image."""
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "b.npy", pixels.astype(np.uint16) * 257)
    np.save(tmp_path / "c.npy", pixels / 255)
    images = FileImages(str(tmp_path), ["a.npy", "b.npy", "c.npy"], np.zeros(3), ["0"], 1)
    data = TransformedImages(images, lambda image: image, 0)
    ((imgs, _),) = Batches(data, 3, False, num_workers=num_workers).epoch()
    expected = torch.tensor(pixels / 255).float().expand(3, 1, 8, 8)
    torch.testing.assert_close(Normalize([0.0], [1.0])(imgs), expected)


def test_any_error_of_a_decoder_makes_a_bad_image():
    class Images:
        targets = (0, 0)

        def __len__(self):
            return 2

        def read(self, index):
            if index == 0:
                raise SystemError("a damaged header")
            return torch.zeros(1, 2, 2)

    image, target, bad = TransformedImages(Images(), lambda image: image, 0)[0, 0]
    assert image.shape == (1, 2, 2) and target == 0 and bad == 0


def test_no_more_workers_than_cores(recwarn):
    batches = Batches(Numbers(8), 4, True, num_workers=1000)
    assert batches.loader.num_workers == num_cores() and not recwarn.list


@pytest.mark.parametrize(
    ("error", "is_a_death"),
    [(RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), True),
     (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), True),
     (ConnectionResetError(104, "Connection reset by peer"), True), (EOFError(), True),
     (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nTraceback"), False),
     (EOFError("Caught EOFError in DataLoader worker process 0."), False),
     (RuntimeError("CUDA error"), False)],
    ids=str,
)  # fmt: skip
def test_what_a_living_worker_raises_is_no_death(error, is_a_death):
    assert loader.is_death(error) == is_a_death


class Raises(torch.utils.data.Dataset):
    """A data set with an error of its own."""

    def __len__(self):
        return 8

    def __getitem__(self, item):
        raise RuntimeError("stack expects each tensor to be equal size")


def test_an_error_of_a_worker_is_shown_as_it_is(caplog):
    batches = Batches(Raises(), 4, True, num_workers=1)
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        list(batches.epoch(0))
    assert "died" not in caplog.text


def test_a_bus_error_names_the_shared_memory():
    assert "--shm-size" in loader.shared_memory() and "--num_workers" in loader.shared_memory()
