"""Batches: what augmentation may do to an image, and that order and chance depend on seed and epoch alone."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rotateconv.lab.data import Batches, Split, loader

MEAN, STD = (0.5, 0.25, 0.4), (0.2, 0.3, 0.25)


def numbered(count: int, size: int = 8) -> Split:
    """Random images, each labeled with its own place."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count))


def make(split: Split, batch_size: int = 4, **options: object) -> Batches:
    return Batches(split, batch_size, mean=MEAN, std=STD, **options)


def epoch_of(batches: Batches, epoch: int = 0) -> tuple[Tensor, Tensor]:
    """The images and labels of a whole epoch, in order."""
    batches.set_epoch(epoch)
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def in_place(batches: Batches, epoch: int) -> Tensor:
    """The images of a whole epoch, each at the place that its label says."""
    images, labels = epoch_of(batches, epoch)
    return images[labels.argsort()]


def normalized(images: Tensor) -> Tensor:
    """The slow twin of normalization: one number after the other, in float64."""
    result = torch.empty(images.shape, dtype=torch.float64)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        result[:, channel] = (images[:, channel].double() / 255 - mean) / std
    return result


def variants(image: Tensor, pad: int, mode: str) -> Iterator[tuple[tuple[int, int, bool], Tensor]]:
    """Every crop of one normalized image padded pixel by pixel, with its corner and whether it is mirrored."""
    _, height, width = image.shape
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            crop = torch.zeros_like(image)
            for row in range(height):
                for column in range(width):
                    r, c = row + top - pad, column + left - pad
                    if mode == "fast":
                        r, c = height - 1 - abs(height - 1 - abs(r)), width - 1 - abs(width - 1 - abs(c))
                    if 0 <= r < height and 0 <= c < width:
                        crop[:, row, column] = image[:, r, c]
            yield (top, left, False), crop
            yield (top, left, True), crop.flip(2)


def test_without_augmentation_images_are_normalized_in_order() -> None:
    split = numbered(10)
    images, labels = epoch_of(make(split, flip=True))
    assert torch.equal(labels, split.labels)
    torch.testing.assert_close(images.double(), normalized(split.images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("augment", ["paper", "fast"])
@pytest.mark.parametrize("flip", [False, True])
def test_every_augmented_image_is_a_crop_and_every_crop_occurs(augment: str, flip: bool) -> None:
    split = numbered(6, size=8)
    batches = make(split, augment=augment, flip=flip, shuffle=True)
    epochs = [in_place(batches, epoch) for epoch in range(120)]
    for place, image in enumerate(normalized(split.images).float()):
        names, crops = zip(*variants(image, pad=1, mode=augment), strict=True)
        seen = set()
        for images in epochs:
            distance = (torch.stack(crops) - images[place]).abs().amax((1, 2, 3))
            assert distance.min() < 1e-5
            seen.add(names[int(distance.argmin())])
        assert seen == {name for name in names if flip or not name[2]}


def test_padding_of_paper_is_zero_after_normalization() -> None:
    white = Split(torch.full((50, 3, 8, 8), 255, dtype=torch.uint8), torch.arange(50))
    images, _ = epoch_of(make(white, augment="paper"))
    inside = normalized(white.images)[0, :, 0, 0].float().view(1, 3, 1, 1)
    outside = images == 0
    assert outside.any()
    torch.testing.assert_close(images, inside.where(~outside, 0.0), rtol=0, atol=1e-6)


def test_padding_of_fast_adds_no_new_value() -> None:
    white = Split(torch.full((50, 3, 8, 8), 255, dtype=torch.uint8), torch.arange(50))
    images, _ = epoch_of(make(white, augment="fast"))
    assert torch.equal(images, images[:1, :, :1, :1].expand_as(images))


@pytest.mark.parametrize(("size", "pad"), [(8, 1), (28, 3), (32, 4), (5, 1), (64, 8)])
def test_crops_reach_an_eighth_of_the_image_and_no_further(size: int, pad: int) -> None:
    images = torch.zeros(400, 3, size, size, dtype=torch.uint8)
    images[:, :, size // 2, size // 2] = 255
    batches = Batches(Split(images, torch.arange(400)), 50, mean=(0.0,) * 3, std=(1.0,) * 3, augment="paper")
    moved, _ = epoch_of(batches)
    place = moved[:, 0].flatten(1).argmax(1)
    for offset in (place // size - size // 2, place % size - size // 2):
        assert set(offset.tolist()) == set(range(-pad, pad + 1))


def test_crops_and_mirrors_of_paper_are_uniform() -> None:
    count, size = 9_000, 8
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    images[:, :, 4, 2] = 255
    moved, _ = epoch_of(make(Split(images, torch.arange(count)), 500, augment="paper", flip=True))
    place = moved[:, 0].flatten(1).argmax(1)
    row, column = place // size, place % size
    # 2 columns kept about 2, and 5 when mirrored: 3 x 3 corners times 2, each with count / 18 = 500 images.
    expected = {(r, c) for r in (3, 4, 5) for c in (1, 2, 3, 4, 5, 6)}
    found = {pair: int(((row == pair[0]) & (column == pair[1])).sum()) for pair in expected}
    assert sum(found.values()) == count
    # 6 standard deviations of a binomial count.
    assert max(abs(number - 500) for number in found.values()) < 6 * (500 * 17 / 18) ** 0.5


def test_fast_mirrors_each_image_in_every_other_epoch() -> None:
    count = 2_000
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    images[:, :, :, :3] = 255
    batches = make(Split(images, torch.arange(count)), 100, augment="fast", flip=True, shuffle=True)
    epochs = [in_place(batches, epoch)[:, 0, 4] for epoch in range(4)]
    mirrored = torch.stack([rows[:, 0] < rows[:, -1] for rows in epochs])
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[0], mirrored[2])
    assert torch.equal(mirrored[1], mirrored[3])
    assert 0.4 < mirrored[0].float().mean() < 0.6


def test_an_epoch_has_each_image_once_in_an_order_of_its_own() -> None:
    batches = make(numbered(101), shuffle=True)
    orders = [epoch_of(batches, epoch)[1] for epoch in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(101))
    assert not any(torch.equal(orders[i], orders[j]) for i, j in ((0, 1), (1, 2), (0, 2)))


@pytest.mark.parametrize("augment", loader.AUGMENTS)
def test_chance_depends_on_seed_and_epoch_alone(augment: str) -> None:
    split, options = numbered(33), {"augment": augment, "flip": True, "shuffle": True}
    first = epoch_of(make(split, seed=1, **options), 5)
    torch.rand(7)  # the state of the global generator has no part in it
    again = make(split, seed=1, **options)
    epoch_of(again, 2)
    assert all(map(torch.equal, epoch_of(again, 5), first))
    assert not torch.equal(epoch_of(make(split, seed=2, **options), 5)[1], first[1])


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
    augment=st.sampled_from(loader.AUGMENTS),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_processes_share_what_one_process_has_at_their_common_size(
    count: int, batch_size: int, world_size: int, augment: str, shuffle: bool, drop_last: bool
) -> None:
    drop_last = drop_last and count >= batch_size * world_size
    options = {"augment": augment, "flip": True, "shuffle": shuffle, "drop_last": drop_last, "seed": 4}
    split = numbered(count)
    alone = make(split, batch_size * world_size, **options)
    ranks = [make(split, batch_size, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {len(alone)}
    seen: list[int] = []
    for (images, labels), *shares in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([share[0] for share in shares]), images)
        assert torch.equal(torch.cat([share[1] for share in shares]), labels)
        sizes = [len(share[1]) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size
        seen += labels.tolist()
    assert len(set(seen)) == len(seen) == (count - count % (batch_size * world_size) if drop_last else count)


@pytest.mark.parametrize("augment", loader.AUGMENTS)
def test_resuming_in_mid_epoch_gives_the_batches_of_an_uninterrupted_run(augment: str) -> None:
    split, options = numbered(22), {"augment": augment, "flip": True, "shuffle": True, "seed": 9}
    whole = make(split, **options)
    epochs = []
    for epoch in (3, 4):
        whole.set_epoch(epoch)
        epochs.append(list(whole))
    for done in range(len(whole) + 1):
        stopped = make(split, **options)
        stopped.set_epoch(3)
        for _, _ in zip(range(done), stopped, strict=False):
            state = stopped.state_dict()
        if done == 0:
            state = stopped.state_dict()
        assert state == {"epoch": 3, "batch": done}
        resumed = make(split, **options)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        for epoch, expected in ((3, epochs[0][done:]), (4, epochs[1])):
            resumed.set_epoch(epoch)  # which keeps the position when it is the epoch of the state
            found = list(resumed)
            assert len(found) == len(expected)
            for got, want in zip(found, expected, strict=True):
                assert all(map(torch.equal, got, want))


def test_another_epoch_and_a_second_pass_start_at_the_first_batch() -> None:
    batches = make(numbered(10), shuffle=True)
    batches.load_state_dict({"epoch": 2, "batch": 2})
    batches.set_epoch(3)
    assert batches.state_dict() == {"epoch": 3, "batch": 0}
    assert len(list(batches)) == 3
    next(iter(batches))
    assert len(list(batches)) == 3
    batches.load_state_dict({"epoch": 3, "batch": 2})
    assert [len(list(batches)) for _ in range(3)] == [1, 3, 3]


@pytest.mark.parametrize("augment", loader.AUGMENTS)
def test_the_number_of_threads_changes_nothing(augment: str) -> None:
    split, options = numbered(64, size=32), {"augment": augment, "flip": True, "shuffle": True}
    torch.set_num_threads(1)
    one = epoch_of(make(split, 64, **options))
    torch.set_num_threads(3)
    assert all(map(torch.equal, epoch_of(make(split, 64, **options)), one))


@pytest.mark.parametrize("augment", loader.AUGMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_change_no_value(augment: str, dtype: torch.dtype) -> None:
    split, options = numbered(9), {"augment": augment, "flip": True}
    plain, _ = next(iter(make(split, **options)))
    cast, labels = next(iter(make(split, dtype=dtype, channels_last=True, **options)))
    assert plain.is_contiguous()
    assert cast.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    assert torch.equal(cast, plain.to(dtype))


def test_the_arithmetic_is_float32_whatever_the_default() -> None:
    split = numbered(4)
    plain, _ = next(iter(make(split)))
    torch.set_default_dtype(torch.float64)
    assert torch.equal(next(iter(make(split)))[0], plain)


@pytest.mark.parametrize("augment", loader.AUGMENTS)
@pytest.mark.parametrize("fits", [False, True])
def test_batches_appear_on_the_device_wherever_the_images_stay(
    augment: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_fits", lambda images, device: fits)
    batches = make(numbered(10), augment=augment, flip=True, shuffle=True, device="meta")
    assert batches._images.device.type == ("meta" if fits else "cpu")
    for images, labels in batches:
        assert images.device.type == labels.device.type == "meta"
        assert images.shape[1:] == (3, 8, 8)


def test_images_stay_off_a_gpu_that_they_would_half_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    images = numbered(10).images
    for free, fits in ((2 * images.nbytes, True), (2 * images.nbytes - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert loader._fits(images, torch.device("cuda")) is fits
    assert loader._fits(images, torch.device("cpu"))


def test_one_pass_over_the_images_is_no_alias_of_them() -> None:
    split = numbered(4)
    before = split.images.clone()
    for images, _ in make(split):
        images.zero_()
    assert torch.equal(split.images, before)
    assert F.l1_loss(next(iter(make(split)))[0].double(), normalized(before)) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "strong"}, "augment must be one of none, paper, fast, got 'strong'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, r"rank must lie in 0..world_size - 1, got rank 2 of 2"),
        ({"rank": -1}, r"rank must lie in 0..world_size - 1, got rank -1 of 1"),
        ({"mean": (0.5,)}, "3 channels need 3 means and standard deviations, got 1 and 3"),
        ({"std": (0.5,)}, "3 channels need 3 means and standard deviations, got 3 and 1"),
        ({"std": (0.5, 0.0, 0.5)}, "standard deviations must be positive"),
        ({"drop_last": True, "world_size": 3}, "batch_size 4 on 3 processes with drop_last leaves no batch of 10"),
    ],
)
def test_what_is_refused(options: dict[str, object], message: str) -> None:
    split = numbered(10)
    with pytest.raises(ValueError, match=message):
        Batches(split, **{"batch_size": 4, "mean": MEAN, "std": STD, **options})


@pytest.mark.parametrize("batch", [-1, 4])
def test_a_position_outside_the_epoch_is_refused(batch: int) -> None:
    batches = make(numbered(10))
    with pytest.raises(ValueError, match=f"the saved position is batch {batch} of an epoch of 3 batches"):
        batches.load_state_dict({"epoch": 0, "batch": batch})
