"""The preprocessing against open_clip's PIL pipeline, and against PIL itself."""

import numpy as np
import pytest
import tiny_clips
import torch
import torchvision.transforms.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.preprocess import FILTERS, Preprocess
from PIL import Image

EXACT = 2e-6  # normalised: torchvision computes in another order; one step of 8 bits is 0.0145

sides = st.one_of(st.integers(1, 8), st.integers(1, 90), st.integers(200, 1100))
targets = st.tuples(st.integers(1, 70), st.integers(1, 70))


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
        picture = picture.resize((preprocess.size[1], picture.height), FILTERS[preprocess.interpolation])
    return image_transform_v2(config, is_train=False)(picture)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(224, 224), (64, 48)])
@pytest.mark.parametrize("shape", [(224, 224), (300, 400), (401, 299), (77, 1024), (50, 31), (1, 1), (3, 50)])
def test_same_pixels_as_open_clip(shape, size, mode, interpolation):
    if mode == "shortest" and size != (224, 224) and interpolation == "bilinear":
        pytest.skip("open_clip always resizes this case bicubically")
    preprocess = Preprocess(size=size, resize_mode=mode, interpolation=interpolation)
    image = torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(0)) / 255
    ours, theirs = preprocess(image)[0], open_clip_pixels(preprocess, image)
    assert ours.shape == theirs.shape == (3, *size)
    assert (ours - theirs).abs().max() <= EXACT


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(sides, sides),
    size=targets,
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    seed=st.integers(),
)
@example(shape=(1100, 1), size=(70, 1), interpolation="bicubic", seed=0)
def test_every_pixel_is_pils(shape, size, interpolation, seed):
    """In steps of 8 bits, whatever the sizes; noise of black, white and grey, where bicubic overshoots the most."""
    values = np.random.default_rng(abs(seed)).choice(np.array([0, 255, 255, 0, 1, 127, 254], np.uint8), (*shape, 3))
    plain = Preprocess(size, "squash", interpolation, mean=(0.0,) * 3, std=(1.0,) * 3)
    ours = plain(torch.from_numpy(values) / 255)[0].movedim(0, -1).numpy()
    across = Image.fromarray(values).resize((size[1], shape[0]), FILTERS[interpolation])
    theirs = np.asarray(across.resize((size[1], size[0]), FILTERS[interpolation]), np.float32) / np.float32(255)
    assert np.array_equal(ours, theirs)


def test_values_between_the_steps_are_rounded_even_without_a_resize():
    """As ComfyUI's clip_preprocess does; a PIL image has no others."""
    image = torch.tensor([0.4, 0.6]).repeat(32)[None, :, None].expand(64, 64, 3) / 255
    pixels = Preprocess((64, 64), mean=(0.0,) * 3, std=(1.0,) * 3)(image)
    assert torch.equal(pixels, torch.tensor([0.0, 1.0]).repeat(32).expand(1, 3, 64, 64) / 255)


def test_a_float_tensor_is_not_rounded_where_that_is_asked_for():
    image = torch.rand(50, 40, 3, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocess((20, 20), "squash", mean=(0.0,) * 3, std=(1.0,) * 3, eight_bit=False)
    expected = F.resize(image.movedim(-1, 0).contiguous(), [20, 20], F.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(preprocess(image)[0], expected)


@pytest.mark.parametrize("eight_bit", [True, False])
def test_the_layout_in_memory_makes_no_difference(eight_bit):
    preprocess = Preprocess((20, 20), eight_bit=eight_bit)
    image = torch.rand(3, 50, 40, generator=torch.Generator().manual_seed(0)).movedim(0, -1)
    assert torch.equal(preprocess(image), preprocess(image.contiguous()))
    assert preprocess(image).is_contiguous()


@pytest.mark.parametrize("crop_down", [True, False])
@pytest.mark.parametrize("extra", range(8))
def test_the_centre_is_cut_as_transformers_or_torchvision_cut_it(extra, crop_down):
    """Half a pixel is left over where the extra is odd; 3 and 7 are cut in two places."""
    image = torch.randint(0, 256, (32 + extra, 32, 3), generator=torch.Generator().manual_seed(0)) / 255
    cut = F.center_crop(image.movedim(-1, 0), [32, 32])
    if crop_down:
        import transformers

        processor = transformers.CLIPImageProcessor(
            crop_size={"height": 32, "width": 32}, do_resize=False, do_rescale=False, do_normalize=False
        )
        cut = processor(image.movedim(-1, 0), input_data_format="channels_first", return_tensors="pt").pixel_values[0]
    plain = Preprocess((32, 32), mean=(0.0,) * 3, std=(1.0,) * 3, crop_down=crop_down)
    assert (plain(image)[0] - cut).abs().max() <= EXACT


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
