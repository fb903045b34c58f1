"""Real images as uint8 tensors in memory, and the batches cut from them."""

from rotateconv.errors import DataError as DataError
from rotateconv.lab.data.loader import Batches as Batches
from rotateconv.lab.data.sets import DATASETS as DATASETS
from rotateconv.lab.data.sets import ImageData as ImageData
from rotateconv.lab.data.sets import Split as Split
from rotateconv.lab.data.sets import load_data as load_data
