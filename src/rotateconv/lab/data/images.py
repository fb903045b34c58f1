"""The images that a configuration names."""

from rotateconv.lab.data.decode import Progress
from rotateconv.lab.data.sets import ImageData, load_data
from rotateconv.lab.parts import ImageSource


def load_images(source: ImageSource, *, download: bool = False, progress: Progress | None = None) -> ImageData:
    """Return the images of a run, whole in memory.

    Example:
        >>> from rotateconv.lab.config import RunConfig
        >>> load_images(RunConfig(data="digits").images).name
        'digits'
    """
    keys = {key: value for key, value in vars(source).items() if key != "data"}
    return load_data(source.data, keys.pop("data_dir"), download=download, progress=progress, **keys)
