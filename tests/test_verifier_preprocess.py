"""The tensor preprocessing against open_clip's PIL pipeline."""

import numpy as np
import pytest
import tiny_clips
import torch
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.preprocess import Preprocess
from PIL import Image

# PIL's coefficients have 8 bits less than ours, so a value next to .5 may be rounded to the other side.
WORST = 2.01  # in steps of 8 bits, before normalising
DIFFERENT = 0.03  # share of the pixels


def open_clip_pixels(preprocess, image):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(
        size=preprocess.size,
        mean=preprocess.mean,
        std=preprocess.std,
        interpolation=preprocess.interpolation,
        resize_mode=preprocess.resize_mode,
    )
    picture = Image.fromarray((image.numpy() * 255).round().astype(np.uint8))
    if preprocess.resize_mode == "squash":  # across first, as all Pillows before 13 did
        filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
        picture = picture.resize((preprocess.size[1], picture.height), filters[preprocess.interpolation])
    return image_transform_v2(config, is_train=False)(picture)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(224, 224), (64, 48)])
@pytest.mark.parametrize("shape", [(224, 224), (300, 400), (401, 299), (1024, 77), (50, 31), (1, 1), (3, 50)])
def test_same_pixels_as_open_clip(shape, size, mode, interpolation):
    if mode == "shortest" and size != (224, 224) and interpolation == "bilinear":
        pytest.skip("open_clip always resizes this case bicubically")
    if mode == "shortest" and size != (224, 224) and shape[0] > 1000:
        pytest.skip("Pillow 13 takes the other axis first")
    preprocess = Preprocess(size=size, resize_mode=mode, interpolation=interpolation)
    noise = torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(0)) / 255
    for image in (tiny_clips.images(1, *shape)[0] if min(shape) > 1 else noise, noise):
        ours, theirs = preprocess(image)[0], open_clip_pixels(preprocess, image)
        assert ours.shape == theirs.shape == (3, *size)
        steps = (ours - theirs).abs() * torch.tensor(preprocess.std)[:, None, None] * 255
        assert steps.max() < WORST
        assert (steps > 0.01).float().mean() < DIFFERENT


def test_an_image_of_the_right_size_is_only_normalised():
    image = tiny_clips.images(1, 224, 224)[0]
    assert torch.allclose(Preprocess()(image)[0], open_clip_pixels(Preprocess(), image), atol=1e-6)


def test_values_outside_the_range_are_clamped():
    image = torch.full((8, 8, 3), 1.5)
    image[0] = -0.5
    preprocess = Preprocess(size=(8, 8))
    assert torch.equal(preprocess(image), preprocess(image.clamp(0, 1)))


def test_a_large_image_is_one_resize():
    assert Preprocess()(torch.zeros(4096, 2048, 3)).shape == (1, 3, 224, 224)


def test_a_hair_of_an_image_is_refused():
    with pytest.raises(VerifierError, match="image of 8192x1 pixels is too long and narrow"):
        Preprocess()(torch.zeros(1, 8192, 3))


def test_a_smaller_crop_than_the_resized_edge():
    """Hugging Face's size 256 with crop_size 224: the crop comes out of the larger picture."""
    image = tiny_clips.images(1, 256, 256)[0]
    cropped = Preprocess(size=(224, 224), edge=256)(image)
    assert torch.equal(cropped, Preprocess(size=(256, 256))(image)[:, :, 16:240, 16:240])
