"""Real images as uint8 tensors in memory, and the batches cut from them."""

from rotateconv.data.loader import Batches as Batches
from rotateconv.data.sets import DATASETS as DATASETS
from rotateconv.data.sets import DataError as DataError
from rotateconv.data.sets import ImageData as ImageData
from rotateconv.data.sets import Split as Split
from rotateconv.data.sets import load_data as load_data
