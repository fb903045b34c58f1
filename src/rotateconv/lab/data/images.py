"""The images that a configuration names."""

from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.decode import Progress
from rotateconv.lab.data.sets import ImageData, load_data


def images_key(config: RunConfig) -> tuple[object, ...]:
    """Return what two configurations have in common that load the same images."""
    where = config.data, config.data_dir, config.image_size, config.svhn_extra, config.skip_bad_images
    return *where, config.mean, config.std


def load_images(config: RunConfig, *, download: bool = False, progress: Progress | None = None) -> ImageData:
    """Return the images of a run, whole in memory.

    Args:
        config: `data`, `data_dir`, `image_size`, `svhn_extra`, `skip_bad_images`, `max_image_pixels`, `mean` and `std`
            are read.
        download: fetch missing files.
        progress: called as progress(done, total) while the images of a folder are decoded.

    Raises:
        DataError: see `load_data`.

    Example:
        >>> load_images(RunConfig(data="digits")).name
        'digits'
    """
    return load_data(
        config.data,
        config.data_dir,
        download=download,
        image_size=config.image_size,
        svhn_extra=config.svhn_extra,
        skip_bad_images=config.skip_bad_images,
        max_image_pixels=config.max_image_pixels,
        mean=config.mean,
        std=config.std,
        progress=progress,
    )
